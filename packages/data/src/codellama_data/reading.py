"""Reading rows of MindRecord files in any order, in plain Python.

L = ids of a row. Memory: the rows that are asked for, and 12 bytes for each row of the files (where it is). The files
are mapped, so what was read of them stays in memory as long as nobody else needs it (see `mapping.py`).

MindSpore's `MindDataset` reads the same rows, but one by one through a pipeline of queues, at a tenth of this speed.
"""

from __future__ import annotations

import glob
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from codellama_data.errors import DataError
from codellama_data.header import Header, read_header
from codellama_data.header import verify as verify_checksums
from codellama_data.integers import RowLayout, decode_row, find_layout
from codellama_data.mapping import MappedFile
from codellama_data.output import database_path

Batch = dict[str, npt.NDArray[np.int32]]
StoredBatch = dict[str, npt.NDArray[np.int16] | npt.NDArray[np.int32]]
Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_VERIFIED_BYTES = 1 << 30  # about a second; a longer wait before training is for the caller to ask for
_OPEN_FILES = 200  # of one sequence of rows; the usual limit of a process is 1024
_INDEX_DTYPE = np.dtype([("at", np.int64), ("size", np.int32)])  # bytes
_PLACES = """
SELECT ? + PAGE_ID_BLOB * ? + PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END - PAGE_OFFSET_BLOB FROM INDEXES ORDER BY ROW_ID
"""


class _MappedFiles:
    """Mapped files by number, not more at once than a process may have open."""

    def __init__(self, files: Sequence[Path], sizes: Sequence[int]) -> None:
        self._files, self._sizes = files, sizes
        self._open: dict[int, MappedFile] = {}

    def __getitem__(self, number: int) -> MappedFile:
        if number not in self._open:
            if len(self._open) >= _OPEN_FILES:
                self._open.clear()
            self._open[number] = MappedFile(self._files[number], self._sizes[number])
        return self._open[number]


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
        self._at = np.concatenate([index["at"] for index in indices])  # bytes, as is `_size`
        self._size = np.concatenate([index["size"] for index in indices])
        self._ends = np.cumsum([len(index) for index in indices])  # row number behind each file's last row
        if not len(self):
            raise DataError(f"{self.files[0]}: holds no rows")
        self._mapped = _MappedFiles(self.files, [header.size for header in headers])
        layout = find_layout(self._row_bytes(0), self.columns)
        ours = all(header.checksums is not None for header in headers)  # then no row mixes elements of several widths
        equal = layout is not None and (self._size == layout.dtype.itemsize).all()
        self._layout = layout if ours and equal else None
        self.row_length = self._decoded(0)[self.columns[0]].size

    def __len__(self) -> int:
        return len(self._at)

    @property
    def num_rows(self) -> int:
        """Number of rows in all files."""
        return len(self)

    @property
    def num_bytes(self) -> int:
        """What the rows take in the files."""
        return int(self._size.sum(dtype=np.int64))

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
        stored = self.read_stored(self._checked(indices))
        return {column: values.astype(np.int32, copy=False) for column, values in stored.items()}

    def read_stored(self, numbers: npt.NDArray[np.int64]) -> StoredBatch:
        """`read` without conversion: int16 where every row has two bytes for an id, else int32.

        For who reads more rows at once than are needed as int32 at the same time, and knows that they exist.
        """
        batch = self._read_arrays(numbers, self._layout) if self._layout is not None else None
        if batch is not None:
            return batch
        decoded = [self._decoded(number) for number in numbers.tolist()]
        try:
            return {column: np.stack([row[column] for row in decoded]) for column in self.columns}
        except ValueError:
            raise DataError(f"{self.files[0]}: rows differ in length, a batch needs equal ones") from None

    def place(self, number: int) -> tuple[Path, int]:
        """The file that holds a row, and the row's number within it."""
        (row,) = self._checked([number]).tolist()
        file = int(np.searchsorted(self._ends, row, side="right"))
        return self.files[file], row - (int(self._ends[file - 1]) if file else 0)

    def prefetch(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> None:
        """Have the operating system read rows that will be asked for soon; returns at once."""
        numbers = self._checked(indices)
        for file, chosen in self._by_file(numbers):
            starts = self._at[numbers[chosen]]
            ends = starts + self._size[numbers[chosen]]
            # Rows that lie one behind the other are one request.
            breaks = np.flatnonzero(starts[1:] != ends[:-1]) + 1
            first, last = np.append(0, breaks), np.append(breaks - 1, -1)
            file.announce(zip(starts[first].tolist(), ends[last].tolist(), strict=True))

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
        wrong = numbers.view(np.uint64) >= len(self)  # so seen, a number below 0 is a large one
        if wrong.any():
            raise DataError(f"{self.files[0]}: row {numbers[wrong][0]} does not exist, there are {len(self)}")
        if not numbers.size:
            raise DataError(f"{self.files[0]}: no row asked for, expected at least one number")
        return numbers

    def _by_file(self, numbers: npt.NDArray[np.int64]) -> list[tuple[MappedFile, slice | npt.NDArray[np.bool_]]]:
        """The files that hold some rows, each with which of `numbers` those are."""
        if len(self.files) == 1:
            return [(self._mapped[0], slice(None))]
        files = np.searchsorted(self._ends, numbers, side="right")
        return [(self._mapped[number], files == number) for number in sorted(set(files.tolist()))]

    def _read_arrays(self, numbers: npt.NDArray[np.int64], layout: RowLayout) -> StoredBatch | None:
        """Rows that lie in the files as arrays; None where one has other lengths than it should."""
        at, files = self._at[numbers], self._by_file(numbers)

        def pieces(offset: int, size: int) -> npt.NDArray[np.void]:
            if len(files) == 1:
                return files[0][0].pieces(at + offset, size)
            found = np.empty(len(at), np.dtype((np.void, size)))
            for file, chosen in files:
                found[chosen] = file.pieces(at[chosen] + offset, size)
            return found

        batch: StoredBatch = {}
        for column, lengths_at, lengths, elements_at in layout.places:
            if not (pieces(lengths_at, len(lengths)) == np.void(lengths)).all():
                return None
            elements = pieces(elements_at, layout.row_length * layout.width).view(layout.element)
            batch[column] = elements.reshape(len(at), layout.row_length)
        return batch

    def _row_bytes(self, number: int) -> bytes:
        numbers = np.array([number])
        ((file, _),) = self._by_file(numbers)
        return file.pieces(self._at[numbers], int(self._size[number])).tobytes()

    def _decoded(self, number: int) -> Batch:
        """One row, whatever the widths of its elements."""
        try:
            return decode_row(self._row_bytes(number), self.columns)
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
