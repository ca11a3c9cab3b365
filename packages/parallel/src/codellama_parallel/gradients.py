"""From the gradient sums of one rank to the update of its parameters: buckets, norm, clipping, AdamW, ZeRO-1.

An update has two parts, with the norm of all gradients between them: the sums are added up over the job, bucket by
bucket; then the parameters are updated and, under ZeRO-1, gathered, bucket by bucket again. Every bucket is a compiled
graph of its own, so that what it lays out and receives is freed before the next one begins: at most one bucket is in
memory beside sums, parameters and moments. (Within one graph the compiler would bring all copies forward.)

Shapes: D data-parallel copies, C numbers of a bucket that one copy goes on with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from codellama_model import AdamW, Operations
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Zero, initializer
from mindspore.nn.utils import no_init_parameters

from codellama_parallel.buckets import Bucket, gradient_buckets
from codellama_parallel.collectives import AllGather, AllReduce, Group, ReduceScatter, group
from codellama_parallel.mesh import Mesh
from codellama_parallel.plan import Plan

_LARGEST = float(np.finfo(np.float32).max)  # a norm beyond it (or none at all) comes of gradients that are not finite


class Rows:
    """The rows [begin, end) of a parameter that this copy updates: all of them, or its part."""

    def __init__(self, parameter: Parameter, parts: int, part: int) -> None:
        count = parameter.shape[0] // parts
        self.all = parts == 1
        self.begin = 0 if self.all else part * count
        self.end = self.begin + count
        self.shape = (count, *parameter.shape[1:])


class SummedBucket(nn.Cell):
    """Adds up the sums of a bucket over its group, in place."""

    def __init__(self, sums: Sequence[Parameter], members: Group) -> None:
        super().__init__(auto_prefix=False)
        self.sums = ms.ParameterTuple(sums)
        self.shapes, self.sizes = _extents(sums)
        self.all_reduce = AllReduce(members)

    def construct(self) -> bool:
        parts: tuple[Tensor, ...] = ()
        for one in self.sums:
            parts += (ops.reshape(one, (-1,)),)
        total = self.all_reduce(ops.concat(parts))
        start = 0
        for index, shape in enumerate(self.shapes):
            size = self.sizes[index]
            ops.assign(self.sums[index], ops.reshape(total[start : start + size], shape))
            start += size
        return True


class ScatteredBucket(nn.Cell):
    """Adds up the sums of a bucket over the data axis; a copy puts its rows of the total in the place of its own."""

    def __init__(self, sums: Sequence[Parameter], rows: Sequence[Rows], members: Group) -> None:
        super().__init__(auto_prefix=False)
        self.sums = ms.ParameterTuple(sums)
        self.numbers = tuple(Tensor(np.arange(one.begin, one.end, dtype=np.int32)) for one in rows)
        self.shapes = tuple(one.shape for one in rows)
        self.sizes = tuple(math.prod(shape) for shape in self.shapes)
        self.copies = members.size
        self.reduce_scatter = ReduceScatter(members)

    def construct(self) -> bool:
        rows: tuple[Tensor, ...] = ()
        for one in self.sums:
            rows += (ops.reshape(one, (self.copies, -1)),)
        own = self.reduce_scatter(ops.concat(rows, 1))
        start = 0
        for index, shape in enumerate(self.shapes):
            size = self.sizes[index]
            total = ops.reshape(own[:, start : start + size], shape)
            ops.scatter_update(self.sums[index], self.numbers[index], total)
            start += size
        return True


class Totals(nn.Cell):
    """-> (sum of the loss, tokens under it, squares of all gradients) of the whole job, float32 [3].

    Args:
        sums: this rank's, reduced.
        rows: of each, those that this rank goes on with.
        shares: of each, its part of the squares: a number held n times is counted 1/n each time.
        totals: (sum of the loss, tokens under loss) of this rank's micro-batches, float32 [2].
        optimizer: whose squared norm it is.
        mesh: the job's.
    """

    def __init__(
        self,
        sums: Sequence[Parameter],
        rows: Sequence[Rows],
        shares: Sequence[float],
        totals: Parameter,
        optimizer: AdamW,
        mesh: Mesh,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.sums, self.totals, self.shares = ms.ParameterTuple(sums), totals, tuple(shares)
        self.slices, self.split = tuple((one.begin, one.end) for one in rows), tuple(not one.all for one in rows)
        self.squared_norm = optimizer.squared_norm
        # the loss is the same on all ranks of a model group and known on the last stage only
        self.counts = float(mesh.last_stage and mesh.coordinate.model == 0)
        self.alone = mesh.size == 1
        self.world = AllReduce(group("world", mesh.world(), mesh.size))

    def construct(self) -> Tensor:
        squares = ops.zeros((1,), ms.float32)
        for index, one in enumerate(self.sums):
            gradient = one
            if self.split[index]:
                begin, end = self.slices[index]
                gradient = ops.depend(one, squares)[begin:end]  # one copy of rows at a time
            # not `+=`, which writes into a tensor
            squares = squares + ops.reshape(self.squared_norm(gradient), (1,)) * self.shares[index]
        totals = ops.concat((self.totals * self.counts, squares))
        return totals if self.alone else self.world(totals)


class Updated(nn.Cell):
    """AdamW on the parameters that this rank updates whole: (rate, factor of the sums), scalars -> the step.

    Counts the steps, for the rows as well.
    """

    def __init__(
        self, optimizer: AdamW, indices: Sequence[int], parameters: Sequence[Parameter], sums: Sequence[Parameter]
    ) -> None:
        super().__init__(auto_prefix=False)
        self.parameters, self.sums, self.step = ms.ParameterTuple(parameters), ms.ParameterTuple(sums), optimizer.step
        self.updates = nn.CellList([_Adam(optimizer, index) for index in indices], auto_prefix=False)

    def construct(self, learning_rate: Tensor, scale: Tensor) -> Tensor:
        step = ops.assign_add(self.step, 1.0)
        done: tuple[Tensor, ...] = ()
        for index, update in enumerate(self.updates):
            done += (update(self.parameters[index], self.sums[index], learning_rate, scale, step),)
        return ops.depend(step, done)


class UpdatedRows(nn.Cell):
    """AdamW on this copy's rows of the parameters of a bucket: (rate, factor of the sums, step) -> step, scalars.

    The operators of the device table write a whole Parameter: the rows are copied into windows and updated there.
    """

    def __init__(
        self,
        optimizer: AdamW,
        indices: Sequence[int],
        parameters: Sequence[Parameter],
        sums: Sequence[Parameter],
        rows: Sequence[Rows],
        windows: Sequence[Parameter],
    ) -> None:
        super().__init__(auto_prefix=False)
        self.parameters, self.sums = ms.ParameterTuple(parameters), ms.ParameterTuple(sums)
        self.windows = ms.ParameterTuple(windows)
        self.updates = nn.CellList([_Adam(optimizer, index) for index in indices], auto_prefix=False)
        self.slices = tuple((one.begin, one.end) for one in rows)

    def construct(self, learning_rate: Tensor, scale: Tensor, step: Tensor) -> Tensor:
        done: tuple[Tensor, ...] = ()
        for index, update in enumerate(self.updates):
            begin, end = self.slices[index]
            filled = ops.assign(self.windows[index], self.parameters[index][begin:end])
            gradient = ops.depend(self.sums[index][begin:end], filled)
            done += (update(self.windows[index], gradient, learning_rate, scale, step),)
        return ops.depend(step, done)


class GatheredBucket(nn.Cell):
    """Puts the parameters of a bucket together again from the rows that each data-parallel copy has updated.

    A graph of its own: an update may be unseen by the graph that it is in.
    """

    def __init__(self, windows: Sequence[Parameter], parameters: Sequence[Parameter], members: Group) -> None:
        super().__init__(auto_prefix=False)
        self.windows, self.parameters = ms.ParameterTuple(windows), ms.ParameterTuple(parameters)
        self.shapes, self.sizes = _extents(parameters)
        self.copies = members.size
        self.all_gather = AllGather(members)

    def construct(self) -> bool:
        own: tuple[Tensor, ...] = ()
        for one in self.windows:
            own += (ops.reshape(one, (1, -1)),)
        rows = self.all_gather(ops.concat(own, 1))
        start = 0
        for index, shape in enumerate(self.shapes):
            size = self.sizes[index] // self.copies
            ops.assign(self.parameters[index], ops.reshape(rows[:, start : start + size], shape))
            start += size
        return True


class _Adam(nn.Cell):
    """The optimizer's operator with the moments and constants of one parameter."""

    def __init__(self, optimizer: AdamW, index: int) -> None:
        super().__init__(auto_prefix=False)
        self.first, self.second = optimizer.first[index], optimizer.second[index]
        self.update, self.decay = optimizer.update, optimizer.decays[index]
        self.beta1, self.beta2, self.eps = optimizer.beta1, optimizer.beta2, optimizer.eps

    def construct(
        self, parameter: Tensor, gradient: Tensor, learning_rate: Tensor, scale: Tensor, step: Tensor
    ) -> Tensor:
        return self.update(
            parameter,
            self.first,
            self.second,
            gradient,
            learning_rate,
            scale,
            step,
            self.beta1,
            self.beta2,
            self.eps,
            self.decay,
        )


class Cleared(nn.Cell):
    """Sets the sums to `zero`, float32 [], one after the other: each needs its zeros for a moment.

    `zero` is an argument, because of a constant the graph compiler would make constants of all the sums' sizes.
    """

    def __init__(self, sums: Sequence[Parameter]) -> None:
        super().__init__(auto_prefix=False)
        self.sums = ms.ParameterTuple(sums)

    def construct(self, zero: Tensor) -> Tensor:
        token = zero
        for one in self.sums:
            token = ops.depend(zero, ops.assign(one, ops.broadcast_to(token, one.shape)))
        return token


class Update:
    """One update of this rank's parameters from its gradient sums, which are 0 afterwards.

    The sums of the whole job are divided once, by its tokens under loss; its joint norm is clipped once. Where a
    gradient is not finite, nothing is updated, on any rank.

    Args:
        parameters: this rank's, float32, in the network's order.
        sums: their gradients', float32, in the same order.
        totals: (sum of the loss, tokens under loss) of this rank's micro-batches, float32 [2].
        mesh, plan: the job.
        operations: the entry of the device table.
        beta1, beta2, eps, weight_decay: AdamW's.
        max_grad_norm: the joint 2-norm is clipped to it.

    Attributes:
        optimizer: AdamW's counter, and the moments of the rows that this rank updates.
        windows: room for the rows of the parameters of one bucket; none without ZeRO-1.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        sums: Sequence[Parameter],
        totals: Parameter,
        mesh: Mesh,
        plan: Plan,
        operations: Operations,
        *,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        max_grad_norm: float,
    ) -> None:
        self.max_grad_norm = max_grad_norm
        names = [parameter.name for parameter in parameters]
        index_of = {name: index for index, name in enumerate(names)}
        data = group("data", mesh.data_group(), mesh.size)
        rows = [Rows(one, plan.optimizer_parts(one.name), data.index) for one in parameters]
        self.optimizer = AdamW(
            [_of_shape(name, one.shape) for name, one in zip(names, rows, strict=True)],
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            weight_decay=weight_decay,
            operations=operations,
        )
        self.windows: list[Parameter] = []
        self.reduced: list[SummedBucket | ScatteredBucket] = []
        self.rows: list[tuple[UpdatedRows, GatheredBucket]] = []
        for bucket in gradient_buckets(plan, mesh.coordinate):
            members = group(bucket.axis, _ranks(bucket, mesh, plan), mesh.size)
            indices = [index_of[name] for name in bucket.names]
            held, own = [sums[index] for index in indices], [rows[index] for index in indices]
            if bucket.operation == "all_reduce":
                self.reduced.append(SummedBucket(held, members))
            else:
                self.reduced.append(ScatteredBucket(held, own, members))
                spread, windows = [parameters[index] for index in indices], self._windows(own)
                update = UpdatedRows(self.optimizer, indices, spread, held, own, windows)
                self.rows.append((update, GatheredBucket(windows, spread, members)))
        shares = [1 / plan.copies(name) for name in names]
        self.totals = Totals(sums, rows, shares, totals, self.optimizer, mesh)
        whole = [index for index, one in enumerate(rows) if one.all]
        self.updated = Updated(
            self.optimizer, whole, [parameters[index] for index in whole], [sums[index] for index in whole]
        )
        self.cleared = Cleared([*sums, totals])

    def _windows(self, rows: Sequence[Rows]) -> list[Parameter]:
        """A window each; those of other buckets where the shape is the same, new ones where there are too few."""
        free = list(self.windows)
        found = []
        for one in rows:
            window = next((window for window in free if window.shape == one.shape), None)
            if window is None:
                window = Parameter(
                    Tensor(np.zeros(one.shape, np.float32)), name=f"window.{len(self.windows)}", requires_grad=False
                )
                self.windows.append(window)
            else:
                free = [other for other in free if other is not window]  # `remove` compares numbers
            found.append(window)
        return found

    def __call__(self, learning_rate: float, loss_scale: float) -> tuple[float, float, float]:
        """(sum of the loss, tokens under it, norm before clipping), of the whole job, the same on every rank."""
        for bucket in self.reduced:
            bucket()
        total, tokens, squares = (float(value) for value in self.totals().asnumpy())
        divisor = max(tokens, 1.0) * loss_scale
        norm = math.sqrt(squares) / divisor
        if norm <= _LARGEST:  # no number is below nor above it where a gradient is none
            factor = self.max_grad_norm / max(norm, self.max_grad_norm) / divisor
            rate, scale = Tensor(learning_rate, ms.float32), Tensor(factor, ms.float32)
            step = self.updated(rate, scale)
            for update, gather in self.rows:
                update(rate, scale, step)
                gather()
        self.cleared(Tensor(0.0, ms.float32))
        return total, tokens, norm


def zeros_like(parameters: Sequence[Parameter], prefix: str) -> list[Parameter]:
    """A float32 buffer beside each parameter."""
    return [
        Parameter(Tensor(np.zeros(one.shape, np.float32)), name=f"{prefix}.{one.name}", requires_grad=False)
        for one in parameters
    ]


def _of_shape(name: str, shape: tuple[int, ...]) -> Parameter:
    """A parameter without memory, which tells the optimizer of which shape the moments are."""
    with no_init_parameters():
        return Parameter(initializer(Zero(), shape, ms.float32), name=name)


def _ranks(bucket: Bucket, mesh: Mesh, plan: Plan) -> tuple[int, ...]:
    if bucket.axis == "key_value":
        return mesh.key_value_group(plan.config.kv_heads)
    if bucket.axis == "model":
        return mesh.model_group()
    if bucket.axis == "tied":
        return mesh.stage_pair(0, mesh.strategy.pipeline_stage - 1)
    return mesh.data_group()


def _extents(parameters: Sequence[Parameter]) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]:
    """Shapes and sizes, as constants for a graph."""
    shapes = tuple(tuple(parameter.shape) for parameter in parameters)
    return shapes, tuple(math.prod(shape) for shape in shapes)
