"""Sums over the processes of one machine, in memory that they share.

MindSpore's CPU backend sends what it sums through sockets. Processes of one machine need none: one of them makes the
memory (`Offer`), all of them open it (`SharedSum`), and each calls the operator at the same place of the same program.
The memory has no name in the file system and goes with the last of the processes, however they end.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from codellama_kernels.library import LIBRARY
from codellama_kernels.operator import declare, require

_WORD_BITS = 24  # of a number that float32 carries exactly
_WORD_BYTES = 8


class Offer:
    """Memory for the sums of `size` processes, made by one of them.

    Attributes:
        numbers: by which the others find it: four, below 2**24, which float32 carries exactly.

    Raises:
        OSError: there is none.
    """

    def __init__(self, size: int) -> None:
        word = secrets.randbits(2 * _WORD_BITS)
        self._file = _library().codellama_channel_offer(size, ctypes.c_uint64(word))
        if self._file < 0:
            raise OSError("there is no memory for sums")
        self.numbers = (os.getpid(), self._file, word >> _WORD_BITS, word & ((1 << _WORD_BITS) - 1))

    def close(self) -> None:
        """Ends the offer. Who has opened the memory keeps it."""
        os.close(self._file)


class SharedSum:
    """What makes operators that add up a float32 Tensor, of one axis or more, over the processes of a group.

    All processes must make the same sums in the same order. Every number is added up in the order of ranks, once: the
    result is the same on all, to the last bit. A sum that meets one of another size or number, or whose other processes
    end or do not come in time, fails, and so do all of the group from then on, in every process; the first to find out
    says why on stderr. (A process that has ended is seen to when its parent has waited for it, as msrun does.)

    Args:
        numbers: of the `Offer`.
        rank: of this process among the group's, from 0.
        size: processes.
        seconds: how long a process waits for another.

    Raises:
        OSError: the offer is not of this machine, or can not be opened.
    """

    def __init__(self, numbers: Sequence[int], rank: int, size: int, seconds: float) -> None:
        process, offered, high, low = numbers
        path = f"/proc/{process}/fd/{offered}"
        word = (high << _WORD_BITS | low).to_bytes(_WORD_BYTES, sys.byteorder)
        # on another machine, or in another container, this may be any file: it is not opened for writing
        with _opened(path, os.O_RDONLY) as file:
            if os.pread(file, _WORD_BYTES, 0) != word:
                raise OSError("the memory of the offer is not on this machine")
        with _opened(path, os.O_RDWR) as file:
            self._channel = _library().codellama_channel_open(file, rank, size, ctypes.c_double(seconds))
        if self._channel < 0:
            raise OSError("the memory of the offer can not be mapped")

    def operator(self) -> ops.Custom:
        """(x, `labels`) -> the sum of all processes' x, in a graph; without a gradient."""
        return declare("shared_sum", ("x", "labels"), _shape, ms.float32, integers=("labels",))

    def labels(self, number: int) -> Tensor:
        """The operator's second argument, int32 [2]: where it adds up, and which of the program's sums it is."""
        return Tensor(np.array([self._channel, number], np.int32))


def _shape(x: list[int], labels: list[int]) -> list[int]:
    if not x:  # of which the engine would make a number of Python's
        raise ValueError("x must have an axis or more")
    require("labels", labels, [2])
    return x


@contextlib.contextmanager
def _opened(path: str, how: int) -> Iterator[int]:
    file = os.open(path, how | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        yield file
    finally:
        os.close(file)


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(LIBRARY))
