"""Sums over the processes of one machine, in memory that they share.

MindSpore's CPU backend sends what it sums through sockets. Processes of one machine need none: one of them makes the
memory (`Offer`), all of them open it (`SharedSum`), and each calls the operator at the same place of the same program.
The memory has no name in the file system and goes with the last of the processes, however they end.
"""

from __future__ import annotations

import ctypes
import os
import secrets
from collections.abc import Sequence
from functools import lru_cache

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from codellama_kernels.library import LIBRARY
from codellama_kernels.operator import declare, require

NUMBERS = 4  # of an offer
_WORD_BITS = 24  # of a number that float32 carries exactly
_WORD_BYTES = 8


class Offer:
    """Memory for the sums of `size` processes, made by one of them.

    Attributes:
        numbers: by which the others find it: `NUMBERS` of them, below 2**24, which float32 carries exactly.

    Raises:
        OSError: there is none.
    """

    def __init__(self, size: int) -> None:
        self._file = os.memfd_create("codellama-sum", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self._file, _library().codellama_channel_bytes(size))
            word = secrets.randbits(2 * _WORD_BITS)
            os.pwrite(self._file, word.to_bytes(_WORD_BYTES, "little"), 0)
        except OSError:
            self.close()
            raise
        self.numbers = (os.getpid(), self._file, word >> _WORD_BITS, word & ((1 << _WORD_BITS) - 1))

    def close(self) -> None:
        """Ends the offer. Who has opened the memory keeps it."""
        os.close(self._file)


class SharedSum:
    """What makes operators that add up a float32 Tensor, of one axis or more, over the processes of a group.

    All processes must make the same sums in the same order: where a graph has several, each must depend on the one
    before. Every number is added up in the order of ranks, once: the result is the same on all, to the last bit. A sum
    that meets another, or whose other processes end or do not come in time, fails in all processes, as do those after
    it; one of them says why on stderr.

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
        file = os.open(f"/proc/{process}/fd/{offered}", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:  # on another machine, or in another container, this may be another file
            if os.pread(file, _WORD_BYTES, 0) != (high << _WORD_BITS | low).to_bytes(_WORD_BYTES, "little"):
                raise OSError("the memory of the offer is not on this machine")
            self._channel = _library().codellama_channel_open(file, rank, size, ctypes.c_double(seconds))
        finally:
            os.close(file)
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


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(LIBRARY))
    library.codellama_channel_bytes.restype = ctypes.c_int64
    return library
