"""From the gradient sums of one rank to the update of its parameters: buckets, norm, clipping, AdamW, ZeRO-1.

Shapes: D data-parallel copies, C numbers of a bucket that one copy goes on with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from codellama_model import AdamW, Operations, clip_scale
from mindspore import Parameter, Tensor, nn, ops
from numpy.typing import NDArray

from codellama_parallel.buckets import Bucket, gradient_buckets
from codellama_parallel.collectives import AllGather, AllReduce, Group, ReduceScatter, between_zeros, group
from codellama_parallel.mesh import Mesh
from codellama_parallel.plan import Plan

_LARGEST = float(np.finfo(np.float32).max)  # a norm beyond it (or none at all) comes of gradients that are not finite


class SummedBucket(nn.Cell):
    """Adds up the sums of a bucket over its group, in place. Takes and gives a token, which keeps buckets in order."""

    def __init__(self, sums: Sequence[Parameter], members: Group) -> None:
        super().__init__(auto_prefix=False)
        self.sums = ms.ParameterTuple(sums)
        self.shapes, self.sizes = _extents(sums)
        self.all_reduce = AllReduce(members)

    def construct(self, token: Tensor) -> Tensor:
        parts: tuple[Tensor, ...] = ()
        for one in self.sums:
            parts += (ops.reshape(one, (-1,)),)
        total = self.all_reduce(ops.depend(ops.concat(parts), token))
        done: tuple[Tensor, ...] = ()
        start = 0
        for index, shape in enumerate(self.shapes):
            size = self.sizes[index]
            done += (ops.assign(self.sums[index], ops.reshape(total[start : start + size], shape)),)
            start += size
        return ops.depend(token, done)


class ScatteredBucket(nn.Cell):
    """Adds up the sums of a bucket over the data axis, in place; a copy has its rows of the total, and 0 elsewhere."""

    def __init__(self, sums: Sequence[Parameter], members: Group) -> None:
        super().__init__(auto_prefix=False)
        self.sums = ms.ParameterTuple(sums)
        self.shapes, self.sizes = _extents(sums)
        self.copies, self.index = members.size, members.index
        self.reduce_scatter = ReduceScatter(members)

    def construct(self, token: Tensor) -> Tensor:
        rows: tuple[Tensor, ...] = ()
        for one in self.sums:
            rows += (ops.reshape(one, (self.copies, -1)),)
        own = self.reduce_scatter(ops.depend(ops.concat(rows, 1), token))
        done: tuple[Tensor, ...] = ()
        start = 0
        for index, shape in enumerate(self.shapes):
            size = self.sizes[index] // self.copies
            total = between_zeros(own[:, start : start + size], self.index, self.copies - 1 - self.index)
            done += (ops.assign(self.sums[index], ops.reshape(total, shape)),)
            start += size
        return ops.depend(token, done)


class GatheredBucket(nn.Cell):
    """Puts the parameters of a bucket together again from the rows that each data-parallel copy has updated."""

    def __init__(self, parts: Sequence[Parameter], parameters: Sequence[Parameter], members: Group) -> None:
        super().__init__(auto_prefix=False)
        self.parts, self.parameters = ms.ParameterTuple(parts), ms.ParameterTuple(parameters)
        self.shapes, self.sizes = _extents(parameters)
        self.copies = members.size
        self.all_gather = AllGather(members)

    def construct(self, token: Tensor) -> Tensor:
        own: tuple[Tensor, ...] = ()
        for one in self.parts:
            own += (ops.reshape(ops.depend(one, token), (1, -1)),)  # an update may be unseen by the graph
        rows = self.all_gather(ops.concat(own, 1))
        done: tuple[Tensor, ...] = ()
        start = 0
        for index, shape in enumerate(self.shapes):
            size = self.sizes[index] // self.copies
            done += (ops.assign(self.parameters[index], ops.reshape(rows[:, start : start + size], shape)),)
            start += size
        return ops.depend(token, done)


class Update(nn.Cell):
    """One update of this rank's parameters from its gradient sums, which are 0 afterwards.

    The sums of the whole job are divided once, by its tokens under loss; its joint norm is clipped once. Where a
    gradient is not finite, nothing is updated, on any rank.

    Args:
        parameters: this rank's, in the network's order.
        sums: their gradients', float32, in the same order.
        totals: (sum of the loss, tokens under loss) of this rank's micro-batches, float32 [2].
        mesh, plan: the job.
        operations: the entry of the device table.
        beta1, beta2, eps, weight_decay: AdamW's.
        max_grad_norm: the joint 2-norm is clipped to it.
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
        super().__init__(auto_prefix=False)
        self.max_grad_norm, self.totals, self.sums = max_grad_norm, totals, ms.ParameterTuple(sums)
        by_name = {parameter.name: parameter for parameter in parameters}
        sum_of = dict(zip(by_name, sums, strict=True))
        data = group("data", mesh.data_group(), mesh.size)
        masters = {
            name: Parameter(Tensor(_own_rows(parameter, data)), name=f"master.{name}")
            for name, parameter in by_name.items()
            if plan.optimizer_parts(name) > 1
        }
        self._copied = [(by_name[name], master, data) for name, master in masters.items()]
        before, after = [], []
        for bucket in gradient_buckets(plan, mesh.coordinate):
            members = group(bucket.axis, _ranks(bucket, mesh, plan), mesh.size)
            held = [sum_of[name] for name in bucket.names]
            if bucket.operation == "all_reduce":
                before.append(SummedBucket(held, members))
            else:
                before.append(ScatteredBucket(held, members))
                own = [masters[name] for name in bucket.names]
                after.append(GatheredBucket(own, [by_name[name] for name in bucket.names], members))
        self.before, self.after = nn.CellList(before, auto_prefix=False), nn.CellList(after, auto_prefix=False)
        # rows of each sum that this rank updates with: none means all
        self.rows = tuple(masters[name].shape[0] if name in masters else 0 for name in by_name)
        self.part = data.index
        self.shares = tuple(1 / plan.copies(name) for name in by_name)  # a number held n times is counted 1/n each time
        self.optimizer = AdamW(
            [masters.get(name, parameter) for name, parameter in by_name.items()],
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            weight_decay=weight_decay,
            operations=operations,
        )
        # the loss is the same on all ranks of a model group and known on the last stage only
        self.counts = float(mesh.last_stage and mesh.coordinate.model == 0)
        self.alone = mesh.size == 1
        self.world = AllReduce(group("world", mesh.world(), mesh.size))

    def copy_masters(self) -> None:
        """Takes the rows that ZeRO-1 updates from the parameters again, after these were set from outside."""
        for parameter, master, data in self._copied:
            master.set_data(Tensor(_own_rows(parameter, data)))

    def construct(self, learning_rate: Tensor, loss_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Two float32 scalars -> (sum of the loss, tokens under it, norm before clipping), of the whole job."""
        token = learning_rate
        for bucket in self.before:
            token = bucket(token)
        gradients: tuple[Tensor, ...] = ()
        squares = ops.zeros((), ms.float32)
        for index, one in enumerate(self.sums):
            gradient = ops.depend(one, token)
            rows = self.rows[index]
            if rows:
                gradient = gradient[self.part * rows : (self.part + 1) * rows]
            gradients += (gradient,)
            squares += ops.reshape(self.optimizer.squared_norm(gradient), ()) * self.shares[index]
        totals = ops.concat((self.totals * self.counts, ops.reshape(squares, (1,))))
        if not self.alone:
            totals = self.world(ops.depend(totals, token))
        divisor = ops.maximum(totals[1], 1.0) * loss_scale
        norm = ops.sqrt(totals[2]) / divisor
        updated = norm
        if norm <= _LARGEST:  # no number is below nor above it where a gradient is none
            updated = self.optimizer(gradients, learning_rate, clip_scale(norm, self.max_grad_norm) / divisor)
        token = ops.depend(norm, updated)
        for bucket in self.after:
            token = bucket(token)
        cleared: tuple[Tensor, ...] = (ops.assign(self.totals, ops.depend(ops.zeros_like(self.totals), token)),)
        for one in self.sums:
            cleared += (ops.assign(one, ops.depend(ops.zeros_like(one), token)),)
        return ops.depend(totals[0], cleared), totals[1], norm


def zeros_like(parameters: Sequence[Parameter], prefix: str) -> list[Parameter]:
    """A float32 buffer beside each parameter."""
    return [
        Parameter(Tensor(np.zeros(one.shape, np.float32)), name=f"{prefix}.{one.name}", requires_grad=False)
        for one in parameters
    ]


def _own_rows(parameter: Parameter, data: Group) -> NDArray[np.float32]:
    """This copy's rows of a parameter, which the optimizer updates."""
    rows = parameter.shape[0] // data.size
    return parameter.asnumpy()[data.index * rows : (data.index + 1) * rows].copy()


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
