"""Finds out whether the ranks of a group can add up in memory that they share, and gives them what does it.

MindSpore's CPU backend sends sums through sockets, at half a gigabyte a second. Ranks of one machine can do without
where each has a package that offers it under the entry point `codellama_parallel.sums` (codellama-kernels does; this
package imports none). The ranks agree on it when a group is made, by two of MindSpore's own sums.
CODELLAMA_SHARED_MEMORY=0 turns it off.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from itertools import count
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from codellama_parallel.launch import WAIT_VARIABLE

ENTRY_POINT = "codellama_parallel.sums"
SWITCH = "CODELLAMA_SHARED_MEMORY"
_WAIT_SECONDS = 30.0  # MindSpore's own default
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
        """The operator's second argument. A sum of one cell that meets another cell's fails, by their numbers.

        All ranks of a group make their cells in the same order, so by default they are counted.
        """
        return self._offered.labels(next(self._numbers) if number is None else number)


def enabled() -> bool:
    """Whether this rank may add up in shared memory; where one of a group may not, none of it does."""
    return os.environ.get(SWITCH) != "0"


def shared_sums(communicator: str, index: int, size: int) -> SharedSums | None:
    """What the ranks of a group add up with, or None on all of them. All ranks of the group must call it.

    Args:
        communicator: MindSpore's name of the group.
        index: this rank's number among the group's.
        size: ranks of the group.
    """
    talk, package = _Sum(communicator), _package() if enabled() else None
    offer = _try(lambda: package.Offer(size)) if index == 0 and package is not None else None
    try:
        numbers = [int(number) for number in talk.sum([0] * _NUMBERS if offer is None else offer.numbers)]
        found = None
        if package is not None and any(numbers):
            found = _try(lambda: package.SharedSum(numbers, index, size, _wait_seconds()))
        everybody = talk.sum([float(found is not None)] * _NUMBERS)[0] == size
    finally:
        if offer is not None:
            offer.close()
    return SharedSums(found) if everybody else None


def _wait_seconds() -> float:
    return float(os.environ.get(WAIT_VARIABLE) or _WAIT_SECONDS)


def _package() -> Any:
    for entry in entry_points(group=ENTRY_POINT, name="cpu"):
        offered = _try(entry.load)
        found = _try(offered) if offered is not None else None
        if found is not None:
            return found
    return None


def _try(make: Callable[[], Any]) -> Any:
    """None where it can not be made, for whatever reason: the other ranks wait for an answer."""
    try:
        return make()
    except OSError as error:
        logging.getLogger(__name__).info("no sums in shared memory: %s", error)
    except Exception:  # a package that does not fit this one
        logging.getLogger(__name__).warning("no sums in shared memory", exc_info=True)
    return None


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
