"""What ranks say to each other: sums, gathers and neighbours' tensors in groups of ranks, and their gradients.

The CPU backend of MindSpore 2.10 has two collectives: a summing AllReduce in any group and an AllGather of the whole
world. Everything else is emulated here, and nowhere else, by a sum with zeros, which is exact: `x + 0 = x`. Ranks of
one machine add up in shared memory where they can (`shared_memory`), with MindSpore's AllReduce otherwise. On other
backends the native operators are called; that branch has not been run (no device was at hand).

Sums that do not depend on each other are made in the order in which MindSpore has compiled the graph, which runs CPU
operators one at a time: the same on ranks with the same graph. Should two of different cells ever meet, they fail.

Every operator carries two attributes, `logical` and `axis`, into the compiled graph, by which `traffic` counts what a
step really sends. The size of a collective is that of its whole tensor: what all-gather yields and reduce-scatter
takes.

Shapes: R ranks of a group, T rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import mindspore as ms
from mindspore import Tensor, nn, ops
from mindspore.communication import GlobalComm, create_group, get_rank

from codellama_parallel.mesh import Ranks
from codellama_parallel.shared_memory import SharedSums, enabled, shared_sums

LOGICAL, AXIS = "logical", "axis"  # names of the attributes
# Numbers that the CPU backend sums at a time, 4 MiB: two processes exchange 0.53 GB/s in tensors of 1 to 8 MiB, half of
# that in tensors of 32 MiB and more.
_PIECE = 1 << 20
_BETWEEN_TWO = -1  # the number of a sum in which one gives and the other takes: these are not the same cell


@dataclass(frozen=True)
class Group:
    """A communicator, seen from one of its ranks.

    Args:
        axis: what the group is for: "model", "key_value", "data", "pipeline", "tied" or "world".
        ranks: its members, in order of their parts.
        index: where this process stands among them.
        name: the backend's name for it.
        native: the backend has all collectives in it.
        shared: what sums float32 in it, on CPU, where all ranks are on one machine; None where MindSpore does.
    """

    axis: str
    ranks: Ranks
    index: int
    name: str
    native: bool
    shared: SharedSums | None = None

    @property
    def size(self) -> int:
        """Ranks, R."""
        return len(self.ranks)


def group(axis: str, ranks: Ranks, world_size: int) -> Group:
    """The group of these ranks, this process among them; made at first use, in the same order on all of its ranks."""
    rank = get_rank() if world_size > 1 else 0
    index, name = ranks.index(rank), _communicator(ranks, world_size)
    if ms.get_context("device_target") != "CPU":
        return Group(axis, ranks, index, name, native=True)
    shared = _shared(axis, name, index, len(ranks), enabled()) if len(ranks) > 1 else None
    return Group(axis, ranks, index, name, native=False, shared=shared)


@cache
def _communicator(ranks: Ranks, world_size: int) -> str:
    if len(ranks) == world_size:
        return str(GlobalComm.WORLD_COMM_GROUP)
    name = "ranks-" + "-".join(map(str, ranks))
    if len(ranks) > 1:
        create_group(name, list(ranks))
    return name


@cache
def _shared(axis: str, name: str, index: int, size: int, _: bool) -> SharedSums | None:
    """Of an axis each: ranks that meet on several make their cells in the same order on each, not over all."""
    return shared_sums(name, index, size)


class AllReduce(nn.Cell):
    """The sum over the group of x, of any shape. No gradient of its own."""

    def __init__(self, members: Group, logical: str = "all_reduce", number: int | None = None) -> None:
        super().__init__()
        self.native, self.shared = members.native, members.shared is not None
        self.sum = _labelled(ops.AllReduce(ops.ReduceOp.SUM, members.name), logical, members)
        if members.shared is not None:
            self.shared_sum = _labelled(members.shared.operator(), logical, members)
            self.labels = members.shared.labels(number)

    def construct(self, x: Tensor) -> Tensor:
        if self.shared and x.dtype == ms.float32:
            return ops.reshape(self.shared_sum(ops.reshape(x, (-1,)), self.labels), x.shape)
        if self.native or x.size <= _PIECE:
            return self.sum(x)
        flat = ops.reshape(x, (-1,))
        sums: tuple[Tensor, ...] = (self.sum(flat[:_PIECE]),)
        for start in range(_PIECE, x.size, _PIECE):
            # in the same order on all ranks, and no piece is cut before its turn
            sums += (self.sum(ops.depend(flat, sums[-1])[start : start + _PIECE]),)
        return ops.reshape(ops.concat(sums), x.shape)


class AllGather(nn.Cell):
    """x [T, ...] of every rank, one below the other -> [R * T, ...]. No gradient of its own."""

    def __init__(self, members: Group) -> None:
        super().__init__()
        self.native = members.native
        if members.native:
            self.gather = _labelled(ops.AllGather(members.name), "all_gather", members)
        else:
            self.gather = AllReduce(members, "all_gather")
        self.before, self.after = members.index, members.size - 1 - members.index

    def construct(self, x: Tensor) -> Tensor:
        if self.native:
            return self.gather(x)
        return self.gather(between_zeros(x, self.before, self.after))


class ReduceScatter(nn.Cell):
    """The sum over the group of x [R * T, ...], of which each rank has its part -> [T, ...]. No gradient of its own."""

    def __init__(self, members: Group) -> None:
        super().__init__()
        self.native, self.size, self.index = members.native, members.size, members.index
        if members.native:
            operator = ops.ReduceScatter(ops.ReduceOp.SUM, members.name)
            self.scatter = _labelled(operator, "reduce_scatter", members)
        else:
            self.scatter = AllReduce(members, "reduce_scatter")

    def construct(self, x: Tensor) -> Tensor:
        total = self.scatter(x)
        if self.native:
            return total
        rows = x.shape[0] // self.size
        return total[self.index * rows : (self.index + 1) * rows]


class Identity(nn.Cell):
    """x -> x, where there is nobody to talk to or nothing to compute."""

    def construct(self, x: Tensor) -> Tensor:
        return x


# The pairs of Megatron-LM (arXiv:1909.08053 section 3, arXiv:2205.05198 section 4.2.2). Each is what the other is
# backwards: copy and reduce, gather and scatter.


class Copy(nn.Cell):
    """x -> x; backwards the sum of the ranks' gradients: x is the same on all and each uses it for its own part."""

    def __init__(self, members: Group) -> None:
        super().__init__()
        self.all_reduce = AllReduce(members)

    def construct(self, x: Tensor) -> Tensor:
        return x

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        return (self.all_reduce(dout),)


class Reduce(nn.Cell):
    """The sum of the ranks' x; backwards the gradient as it is."""

    def __init__(self, members: Group) -> None:
        super().__init__()
        self.all_reduce = AllReduce(members)

    def construct(self, x: Tensor) -> Tensor:
        return self.all_reduce(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        return (dout,)


class Gather(nn.Cell):
    """x [T / R, H] of each rank -> [T, H]; backwards the sum of the ranks' gradients, each rank its rows."""

    def __init__(self, members: Group) -> None:
        super().__init__()
        self.all_gather, self.reduce_scatter = AllGather(members), ReduceScatter(members)

    def construct(self, x: Tensor) -> Tensor:
        return self.all_gather(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        return (self.reduce_scatter(dout),)


class Scatter(nn.Cell):
    """The sum of the ranks' x [T, H], each rank its rows [T / R, H]; backwards all rows' gradients."""

    def __init__(self, members: Group) -> None:
        super().__init__()
        self.all_gather, self.reduce_scatter = AllGather(members), ReduceScatter(members)

    def construct(self, x: Tensor) -> Tensor:
        return self.reduce_scatter(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        return (self.all_gather(dout),)


class Send(nn.Cell):
    """Gives x to the other rank of a pair, which runs `Receive` at the same time."""

    def __init__(self, pair: Group) -> None:
        super().__init__()
        self.native = pair.native
        if pair.native:
            self.send = _labelled(ops.Send(0, 1 - pair.index, pair.name), "send", pair)
        else:
            self.send = AllReduce(pair, "send", _BETWEEN_TWO)

    def construct(self, x: Tensor) -> Tensor:
        return self.send(x)


class Receive(nn.Cell):
    """The other rank's x, float32 of this shape."""

    def __init__(self, pair: Group, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.native, self.shape = pair.native, shape
        if pair.native:
            operator = ops.Receive(0, 1 - pair.index, list(shape), ms.float32, pair.name)
            self.receive = _labelled(operator, "receive", pair)
        else:
            self.receive = AllReduce(pair, "receive", _BETWEEN_TWO)

    def construct(self) -> Tensor:
        if self.native:
            return self.receive()
        return self.receive(ops.zeros(self.shape, ms.float32))


class Exchange(nn.Cell):
    """Gives x to the other rank of a pair and takes the other's tensor, of the same shape."""

    def __init__(self, pair: Group, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.native, self.index = pair.native, pair.index
        if pair.native:
            self.send, self.receive = Send(pair), Receive(pair, shape)
        else:
            self.both = AllReduce(pair, "exchange")

    def construct(self, x: Tensor) -> Tensor:
        if self.native:
            if self.index == 0:
                sent = self.send(x)
                return ops.depend(self.receive(), sent)
            received = self.receive()
            return ops.depend(received, self.send(ops.depend(x, received)))
        both = self.both(between_zeros(ops.expand_dims(x, 0), self.index, 1 - self.index))
        return both[1 - self.index]


def between_zeros(x: Tensor, before: int, after: int) -> Tensor:
    """x [T, ...] with `before` and `after` times as many rows of zeros around it."""
    rows = x.shape[0]
    sides: tuple[tuple[int, int], ...] = ((before * rows, after * rows),)
    for _ in x.shape[1:]:
        sides += ((0, 0),)
    return ops.Pad(sides)(x)  # concatenated zeros would be constants of the graph


def _labelled(operator: ops.Primitive, logical: str, members: Group) -> ops.Primitive:
    return operator.add_prim_attr(LOGICAL, logical).add_prim_attr(AXIS, members.axis)
