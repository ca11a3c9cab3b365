"""A file seen as memory: many small pieces of it at once, without a call to the system for each.

The pages of a mapped file stay the operating system's: they count as this process's resident memory (RssFile) while
memory is free, and are taken back, unwritten, as soon as something else needs it.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from codellama_data.errors import DataError

# Linux reads no more for one request than a device's `read_ahead_kb`, by default this much (mm/readahead.c).
_BYTES_ANNOUNCED = 1 << 17


class MappedFile:
    """One file, opened for reading.

    Args:
        path: the file.
        size: bytes that it must have at least.

    Raises:
        DataError: the file can not be opened, or is shorter.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size
        try:
            with path.open("rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: there is nothing to map in an empty file
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise DataError(f"{path}: can not be read ({reason})") from error

    def pieces(self, at: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.void]:
        """Copy pieces of `size` bytes [n] that begin at `at` [n], places within the file.

        Raises:
            DataError: the file has become shorter since it was opened.
        """
        if self._map.size() < self._size:  # what is behind its end would end this process with a bus error
            raise DataError(f"{self._path}: damaged, it became shorter while it was read")
        starts = len(self._map) - size + 1
        # Every place of the file seen as the beginning of a piece; nothing is copied before the right ones are chosen.
        every: npt.NDArray[np.void] = np.ndarray((starts,), np.dtype((np.void, size)), self._map, strides=(1,))
        return every[at]

    def announce(self, parts: Iterable[tuple[int, int]]) -> None:
        """Have the operating system read parts (start, stop) that will be asked for soon; returns at once."""
        with contextlib.suppress(OSError):  # only an advice; reading will tell what is wrong
            for start, stop in parts:
                for at in range(start - start % mmap.PAGESIZE, stop, _BYTES_ANNOUNCED):
                    self._map.madvise(mmap.MADV_WILLNEED, at, min(_BYTES_ANNOUNCED, stop - at))
