"""Rows on their way to a MindRecord file: a plain binary file of fixed-length rows that grows by appending.

MindRecord partitions hold consecutive rows, so how many rows there are must be known before the first one is written.
The spool is what makes that possible in constant memory, and what an interrupted run can go on from.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from codellama_data.errors import DataError


def integer_type(count: int) -> type[np.int16] | type[np.int32]:
    """The smaller of the two types that holds 0 .. count - 1 (and the label -100)."""
    return np.int16 if count <= 1 << 15 else np.int32


class Spool:
    """An append-only file of integers that is read back as rows.

    Args:
        path: the file; created, or continued after its first `length` integers.
        columns: names of the columns; one row is `columns x row_length` integers.
        row_length: integers of a column in one row.
        dtype: how they are stored, in the MindRecord file, too.
        length: integers of an earlier run to keep; what follows them is cut off.
    """

    def __init__(
        self,
        path: Path,
        columns: tuple[str, ...],
        row_length: int,
        dtype: type[np.int16] | type[np.int32],
        length: int = 0,
    ) -> None:
        self.path, self.columns, self.row_length, self.dtype = path, columns, row_length, dtype
        size = length * np.dtype(dtype).itemsize
        try:
            self._stream = path.open("ab")
            if os.fstat(self._stream.fileno()).st_size < size:
                raise DataError(f"{path}: shorter than its journal says, start anew without --resume")
            self._stream.truncate(size)
        except OSError as error:
            raise DataError(f"{path}: can not be written ({error.strerror})") from error

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self._stream.close()
        except OSError:
            if kind is None:  # an error that is already on its way says more
                raise

    def append(self, values: npt.NDArray[np.int32]) -> None:
        """Add integers at the end; they need not fill a row."""
        try:
            self._stream.write(values.astype(self.dtype, copy=False).tobytes())
        except OSError as error:
            raise DataError(f"{self.path.parent}: rows can not be written ({error.strerror})") from error

    def flush(self) -> int:
        """Hand everything to the operating system and return the length of the file in integers."""
        try:
            self._stream.flush()
        except OSError as error:
            raise DataError(f"{self.path.parent}: rows can not be written ({error.strerror})") from error
        return os.fstat(self._stream.fileno()).st_size // np.dtype(self.dtype).itemsize

    def sync(self) -> int:
        """`flush`, and wait until the disk has it."""
        length = self.flush()
        os.fsync(self._stream.fileno())
        return length

    def rows(self) -> int:
        """Complete rows so far."""
        return self.flush() // (len(self.columns) * self.row_length)
