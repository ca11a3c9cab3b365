"""Finds out whether the ranks of a group can add up in memory that they share, and gives them what does it.

MindSpore's CPU backend sends sums through sockets, at half a gigabyte a second. Ranks of one machine can do without
where each has a package that offers it under the entry point `codellama_parallel.sums` (codellama-kernels does; this
package imports none). The ranks agree on it once a group, by two of MindSpore's own sums. CODELLAMA_SHARED_MEMORY=0
turns it off.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import entry_points
from itertools import count
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

ENTRY_POINT = "codellama_parallel.sums"
SWITCH = "CODELLAMA_SHARED_MEMORY"
_WAIT_VARIABLE, _WAIT_SECONDS = "MS_CPU_COMM_OP_TIMEOUT", "30"  # MindSpore's, and its default
_NUMBERS = 4  # that an offer consists of


class SharedSums:
    """The sums of a group that are made in shared memory.

    Args:
        offered: what the installed package has made of the group's memory: its `operator` and `labels`.
    """

    def __init__(self, offered: Any) -> None:
        self._offered, self._numbers = offered, count()

    def operator(self) -> ops.Primitive:
        """(x, labels) -> the sum over the group, in a graph."""
        return self._offered.operator()

    def labels(self, number: int | None = None) -> Tensor:
        """The operator's second argument. By its number a sum knows the others' of the same place in the program.

        All ranks of a group make their cells in the same order, so by default they are counted.
        """
        return self._offered.labels(next(self._numbers) if number is None else number)


def shared_sums(communicator: str, index: int, size: int) -> SharedSums | None:
    """What the ranks of a group add up with, or None on all of them. All ranks of the group must call it.

    Args:
        communicator: MindSpore's name of the group.
        index: this rank's number among the group's.
        size: ranks of the group.
    """
    talk = _Sum(communicator)
    package = _package()
    offer = None
    if index == 0 and package is not None:
        try:
            offer = package.Offer(size)
        except OSError:  # no memory: then nobody finds any
            offer = None
    numbers = [int(number) for number in talk.sum(offer.numbers if offer else [0] * _NUMBERS)]
    found = None
    if package is not None:
        try:
            found = package.SharedSum(numbers, index, size, float(os.environ.get(_WAIT_VARIABLE, _WAIT_SECONDS)))
        except OSError:  # another machine's
            found = None
    everybody = talk.sum([float(found is not None)] * _NUMBERS)[0] == size
    if offer:
        offer.close()
    return SharedSums(found) if everybody else None


def _package() -> Any:
    if os.environ.get(SWITCH) == "0":
        return None
    return next((found for entry in entry_points(group=ENTRY_POINT, name="cpu") if (found := entry.load()())), None)


class _Sum(nn.Cell):
    """MindSpore's own sum of a few numbers."""

    def __init__(self, communicator: str) -> None:
        super().__init__()
        self.all_reduce = ops.AllReduce(ops.ReduceOp.SUM, communicator)

    def construct(self, x: Tensor) -> Tensor:
        return self.all_reduce(x)

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Of each number, exact below 2**24."""
        return [float(one) for one in self(Tensor(np.array(numbers, np.float32), ms.float32)).asnumpy()]
