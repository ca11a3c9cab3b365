"""Reading rows of MindRecord files in any order, in plain Python.

L = ids of a row. Memory: the rows that are asked for, and 12 bytes for each row of the files (where it is).

MindSpore's `MindDataset` reads the same rows, but one by one through a pipeline of queues, at a tenth of this speed.
"""

from __future__ import annotations

import contextlib
import glob
import os
import sqlite3
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from codellama_data.errors import DataError
from codellama_data.header import Header, read_header
from codellama_data.header import verify as verify_checksums
from codellama_data.integers import decode_row, find_layout
from codellama_data.output import database_path

Batch = dict[str, npt.NDArray[np.int32]]
Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_VERIFIED_BYTES = 1 << 30  # about a second; a longer wait before training is for the caller to ask for
_OPEN_FILES = 200  # of one sequence of rows; the usual limit of a process is 1024
_BYTES_AT_ONCE = 1 << 26  # Linux reads no more than 2 GiB in one call
_INDEX_DTYPE = np.dtype([("at", np.int64), ("size", np.int32)])  # bytes
_PLACES = """
SELECT ? + PAGE_ID_BLOB * ? + PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END - PAGE_OFFSET_BLOB FROM INDEXES ORDER BY ROW_ID
"""


class _Descriptors:
    """Open files by number, not more than a process may have."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self._open: dict[int, int] = {}
        weakref.finalize(self, _close, self._open)

    def __getitem__(self, number: int) -> int:
        if number not in self._open:
            if len(self._open) >= _OPEN_FILES:
                _close(self._open)
            self._open[number] = os.open(self._files[number], os.O_RDONLY | os.O_CLOEXEC)
        return self._open[number]


def _close(descriptors: dict[int, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])


class MindRecordRows:
    """The rows of one or several MindRecord files, seen as one sequence.

    Attributes:
        files: the files in the order of their rows.
        columns: names of the columns, all int32 vectors.
        row_length: L, the ids of the first row.
    """

    def __init__(self, files: Sequence[Path], verify: bool | None = None) -> None:
        if not files:
            raise DataError("no MindRecord file given")
        self.files = tuple(files)
        headers = [read_header(path) for path in self.files]
        indices = [_read_index(path, header) for path, header in zip(self.files, headers, strict=True)]
        if verify or (verify is None and sum(header.size for header in headers) <= _VERIFIED_BYTES):
            for path, header in zip(self.files, headers, strict=True):
                verify_checksums(path, header)
        self.columns = headers[0].columns
        sets = {path.absolute(): header.names for path, header in zip(self.files, headers, strict=True)}
        for path, header in zip(self.files, headers, strict=True):
            if header.columns != self.columns:
                found, expected = ", ".join(header.columns), ", ".join(self.columns)
                raise DataError(f"{path}: has the columns {found}, {self.files[0]} has {expected}")
            for name in header.names:
                if sets.get(path.absolute().with_name(name), header.names) != header.names:
                    raise DataError(f"{path}: is left over from another run than {name}, remove what does not belong")
        self._index = np.concatenate(indices)
        self._ends = np.cumsum([len(index) for index in indices])  # row number behind each file's last row
        if not len(self):
            raise DataError(f"{self.files[0]}: holds no rows")
        self._descriptors = _Descriptors(self.files)
        first = bytearray(self._index["size"][0])
        self._read_bytes(np.array([0]), memoryview(first), len(first))
        self._layout = find_layout(bytes(first), self.columns)
        self.row_length = self._decoded(0)[self.columns[0]].size

    def __len__(self) -> int:
        return len(self._index)

    @property
    def num_rows(self) -> int:
        """Number of rows in all files."""
        return len(self)

    @property
    def seq_length(self) -> int:
        """Tokens that a row trains on: L - 1."""
        return self.row_length - 1

    def read(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Batch:
        """Rows by number, in any order.

        Args:
            indices: B numbers from 0 to num_rows - 1, at least one.

        Returns:
            {column: int32 [B, L]}.

        Raises:
            DataError: there is no such row, one can not be read, or they differ in length.
        """
        numbers = self._checked(indices)
        if self._layout is not None and (self._index["size"][numbers] == self._layout.dtype.itemsize).all():
            rows = np.empty(len(numbers), self._layout.dtype)
            self._read_bytes(numbers, rows.view(np.uint8).data, rows.itemsize)
            if self._layout.fits(rows):
                return {column: rows[column].astype(np.int32) for column in self.columns}
        decoded = [self._decoded(number) for number in numbers.tolist()]
        try:
            return {column: np.stack([row[column] for row in decoded]) for column in self.columns}
        except ValueError:
            raise DataError(f"{self.files[0]}: rows differ in length, a batch needs equal ones") from None

    def prefetch(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> None:
        """Have the operating system read rows that will be asked for soon; returns at once."""
        numbers = self._checked(indices)
        files = np.searchsorted(self._ends, numbers, side="right").tolist()
        with contextlib.suppress(OSError):  # only an advice; reading will tell what is wrong
            for file, (at, size) in zip(files, self._index[numbers].tolist(), strict=True):
                os.posix_fadvise(self._descriptors[file], at, size, os.POSIX_FADV_WILLNEED)

    def stream(self, indices: Iterable[int]) -> Iterator[Batch]:
        """Rows one by one in the order of `indices`, each column int32 [L]; they may differ in length.

        Raises:
            DataError: there is no such row, or it can not be read.
        """
        for number in indices:
            yield {column: values[0] for column, values in self.read([number]).items()}

    def __iter__(self) -> Iterator[Batch]:
        return self.stream(range(len(self)))

    def _checked(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        numbers = np.asarray(indices, dtype=np.int64)
        wrong = (numbers < 0) | (numbers >= len(self))
        if wrong.any():
            raise DataError(f"{self.files[0]}: row {numbers[wrong][0]} does not exist, there are {len(self)}")
        if not numbers.size:
            raise DataError(f"{self.files[0]}: no row asked for, expected at least one number")
        return numbers

    def _read_bytes(self, numbers: npt.NDArray[np.int64], buffer: memoryview, size: int) -> None:
        """Fill a buffer with rows of `size` bytes each."""
        files = np.searchsorted(self._ends, numbers, side="right").tolist()
        places = self._index["at"][numbers].tolist()
        count = len(places)
        # Rows in the order of the file lie one behind the other: one call for many of them.
        in_order = files.count(files[0]) == count and places == list(range(places[0], places[0] + size * count, size))
        together = max(1, _BYTES_AT_ONCE // size) if in_order else 1
        for row in range(0, count, together):
            path = self.files[files[row]]
            part = buffer[row * size : min(row + together, count) * size]
            try:
                done = os.preadv(self._descriptors[files[row]], [part], places[row])
            except OSError as error:
                raise DataError(f"{path}: can not be read ({error.strerror})") from error
            if done < len(part):
                raise DataError(f"{path}: damaged, it ends within a row")

    def _decoded(self, number: int) -> Batch:
        """One row, whatever the widths of its elements."""
        row = bytearray(self._index["size"][number])
        self._read_bytes(np.array([number]), memoryview(row), len(row))
        try:
            return decode_row(bytes(row), self.columns)
        except ValueError as error:
            path = self.files[int(np.searchsorted(self._ends, number, side="right"))]
            raise DataError(f"{path}: damaged, row {number} can not be read ({error})") from None


def open_rows(source: Source, verify: bool | None = None) -> MindRecordRows:
    """Open MindRecord files.

    Args:
        source: one file; OUT, when its partitions OUT0..OUTN-1 exist; one partition (all of its set are opened); a
            glob; a folder (every `*.mindrecord*` in it); or a list of files, taken as they are.
        verify: compare the checksums of files that this package wrote, reading them whole; None does so up to 1 GiB.

    Raises:
        DataError: a file is missing, damaged, without its `.db`, or has other columns than the first.
    """
    if not isinstance(source, (str, os.PathLike)):
        return MindRecordRows([Path(path) for path in source], verify)
    path = Path(source)
    if path.is_dir():
        found = sorted(one for one in path.glob("*.mindrecord*") if one.suffix != ".db")
        if not found:
            raise DataError(f"{path}: the folder holds no *.mindrecord file")
        return MindRecordRows(found, verify)
    if not path.exists():
        siblings = path.parent.glob(f"{glob.escape(path.name)}*")
        partitions = sorted(one for one in siblings if one.name[len(path.name) :].isdigit())
        if partitions:
            path = partitions[0]
        elif glob.has_magic(str(path)):
            found = sorted(Path(one) for one in glob.glob(str(path)) if not one.endswith(".db"))  # noqa: PTH207
            if not found:
                raise DataError(f"{path}: the pattern matches no file")
            return MindRecordRows(found, verify)
        else:
            raise DataError(f"{path}: no such MindRecord file")
    return MindRecordRows([path.with_name(name) for name in read_header(path).names], verify)


def _read_index(path: Path, header: Header) -> npt.NDArray[np.void]:
    """Where each row of a file is, from its `.db`; whatever contradicts the header is told."""
    database = database_path(path)
    if not database.is_file():
        raise DataError(f"{database}: missing, a MindRecord file needs its .db beside it")
    size = path.stat().st_size
    if size < header.size:
        raise DataError(f"{path}: damaged, {size} bytes long where its header promises {header.size}")
    try:
        connection = sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)
        try:
            indexed, last = connection.execute("SELECT COUNT(*), MAX(ROW_ID) FROM INDEXES").fetchone()
            places = connection.execute(_PLACES, (header.data_start, header.page_bytes))
            index = np.fromiter(places, _INDEX_DTYPE)
        finally:
            connection.close()
    except (sqlite3.Error, ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{database}: damaged ({error})") from None
    if indexed != header.rows or (indexed and last != indexed - 1):
        raise DataError(f"{database}: damaged, {indexed} rows where {path.name} has {header.rows}")
    if (
        (index["at"] < header.data_start).any()
        or (index["size"] < 1).any()
        or (index["at"] + index["size"] > size).any()
    ):
        raise DataError(f"{database}: damaged, it leads outside of {path.name}")
    return index
