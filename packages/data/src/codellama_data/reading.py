"""MindRecord files to batches for training: shuffled by seed and epoch, sharded by rank, resumable at any step.

B = rows of a batch on one rank, L = ids of a row (seq_length + 1).

Memory: MindSpore's row index and the epoch's permutation (about 100 bytes a row together), and the rows read ahead:
MindSpore's queues hold a few dozen rows, whatever the size of the files.
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
from codellama_data.output import database_path
from codellama_data.writing import first_line

Batch = dict[str, npt.NDArray[np.int32]]
Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_VERIFIED_BYTES = 1 << 30  # about a second; a longer wait before training is for the caller to ask for
_ROWS_PER_REQUEST = 1 << 16  # row numbers handed to MindSpore at once: 2 MiB of Python integers


class MindRecordRows:
    """The rows of one or several MindRecord files, seen as one sequence.

    Attributes:
        files: the files in the order of their rows.
        columns: names of the columns, all int32 vectors.
    """

    def __init__(self, files: Sequence[Path], verify: bool | None = None) -> None:
        if not files:
            raise DataError("no MindRecord file given")
        self.files = tuple(files)
        headers = [read_header(path) for path in self.files]
        for path, header in zip(self.files, headers, strict=True):
            _check_file(path, header)
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
        self._counts = [header.rows for header in headers]
        self._row_length: int | None = None
        if not len(self):
            raise DataError(f"{self.files[0]}: holds no rows")

    def __len__(self) -> int:
        return sum(self._counts)

    @property
    def num_rows(self) -> int:
        """Number of rows in all files."""
        return sum(self._counts)

    @property
    def row_length(self) -> int:
        """L, the ids of one row (found by reading the first row)."""
        if self._row_length is None:
            self._row_length = next(self._stream([0]))[self.columns[0]].size
        return self._row_length

    @property
    def seq_length(self) -> int:
        """Tokens that a row trains on: L - 1."""
        return self.row_length - 1

    def stream(self, indices: Iterable[int]) -> Iterator[Batch]:
        """Read rows one by one in the order of `indices` (0 .. num_rows - 1), each column int32 [L].

        Raises:
            DataError: an index is out of range, or a row can not be read.
        """
        request: list[int] = []
        for index in indices:
            if not 0 <= index < len(self):
                raise DataError(f"{self.files[0]}: row {index} does not exist, there are {len(self)}")
            request.append(int(index))
            if len(request) == _ROWS_PER_REQUEST:
                yield from self._stream(request)
                request = []
        if request:
            yield from self._stream(request)

    def __iter__(self) -> Iterator[Batch]:
        return self.stream(range(len(self)))

    def _stream(self, request: list[int]) -> Iterator[Batch]:
        import mindspore.dataset as ds  # noqa: PLC0415 (takes seconds; looking at a header does not need it)

        names = ", ".join(map(str, self.files))
        try:
            dataset = ds.MindDataset(
                [str(path) for path in self.files],
                columns_list=list(self.columns),
                sampler=ds.SubsetSampler(request),
                num_parallel_workers=1,
            )
            iterator = dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)
        except (RuntimeError, ValueError) as error:
            raise DataError(f"{names}: can not be read ({first_line(error)})") from None
        delivered = 0
        try:
            while delivered < len(request):
                try:
                    row = next(iterator)
                except StopIteration:
                    raise DataError(f"{names}: damaged, only {delivered} of {len(request)} rows came") from None
                except RuntimeError as error:
                    raise DataError(f"{names}: damaged, a row can not be read ({first_line(error)})") from None
                delivered += 1
                yield dict(zip(self.columns, row, strict=True))
        finally:
            iterator.stop()


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


class Batches(Iterator[Batch]):
    """An endless (or `epochs` long) iterator of batches; see `batches`.

    Attributes:
        step: batches delivered since the very first one; give it as `start_step` to go on exactly there.
        steps_per_epoch: batches of one pass over the rows.
    """

    def __init__(
        self,
        rows: MindRecordRows,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        start_step: int = 0,
        drop_remainder: bool = True,
        epochs: int | None = None,
        shard_id: int = 0,
        num_shards: int = 1,
    ) -> None:
        if batch_size < 1 or start_step < 0 or seed < 0:
            found = f"found {batch_size}, {start_step}, {seed}"
            raise DataError(f"batch_size must be above 0, start_step and seed at least 0, {found}")
        if num_shards < 1 or not 0 <= shard_id < num_shards:
            raise DataError(f"shard_id {shard_id} must be in 0..num_shards - 1, num_shards is {num_shards}")
        if num_shards > 1 and not drop_remainder:
            raise DataError("drop_remainder=False works with one shard only: the last batch would differ between ranks")
        self.rows, self._batch_size, self._seed, self._shuffle = rows, batch_size, seed, shuffle
        self._shard_id, self._num_shards, self._epochs = shard_id, num_shards, epochs
        whole, rest = divmod(len(rows), batch_size * num_shards)
        self.steps_per_epoch = whole + (1 if rest and not drop_remainder else 0)
        if not self.steps_per_epoch:
            wanted = batch_size * num_shards
            raise DataError(
                f"{rows.files[0]}: {len(rows)} rows make no batch of {wanted}; use a smaller batch_size or more data"
            )
        self.step = start_step
        self._stream: Iterator[Batch] | None = None

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        epoch, within = divmod(self.step, self.steps_per_epoch)
        if self._epochs is not None and epoch >= self._epochs:
            raise StopIteration
        if self._stream is None or within == 0:
            self._stream = self.rows.stream(self._indices(epoch, within))
        size = self._batch_size
        if self._num_shards == 1:
            size = min(size, len(self.rows) - within * size)
        rows = [next(self._stream) for _ in range(size)]
        try:
            batch = {column: np.stack([row[column] for row in rows]) for column in self.rows.columns}
        except ValueError:
            raise DataError(f"{self.rows.files[0]}: rows differ in length, a batch needs equal ones") from None
        self.step += 1
        return batch

    def _indices(self, epoch: int, first_step: int) -> Iterator[int]:
        """Row numbers of this rank for the rest of an epoch."""
        count = len(self.rows)
        order: Sequence[int] | npt.NDArray[np.int64] = range(count)
        if self._shuffle:
            # The raw stream of PCG64 is promised to stay the same in every NumPy version; Generator.permutation is not.
            keys = np.random.PCG64([self._seed, epoch]).random_raw(count)
            order = np.argsort(keys, kind="stable")
        for step in range(first_step, self.steps_per_epoch):
            start = (step * self._num_shards + self._shard_id) * self._batch_size
            yield from (int(index) for index in order[start : start + self._batch_size])


def batches(
    path: Source | MindRecordRows,
    batch_size: int,
    *,
    seed: int,
    shuffle: bool = True,
    start_step: int = 0,
    drop_remainder: bool = True,
    epochs: int | None = None,
    shard_id: int = 0,
    num_shards: int = 1,
) -> Batches:
    """Iterate over batches for training.

    The order of the rows is a permutation that depends on (seed, epoch) alone. Every step takes the next
    `batch_size * num_shards` rows of it; shard `shard_id` gets its `batch_size` consecutive ones, so the ranks' batches
    put together are those of a single rank with the larger batch.

    Args:
        path: what `open_rows` takes, or its result.
        batch_size: B, rows on this rank.
        seed: of the permutation.
        shuffle: False gives the order of the files, every epoch.
        start_step: batches already consumed; they are skipped without being read.
        drop_remainder: leave out the last rows of an epoch that fill no batch; False makes a shorter last batch.
        epochs: passes over the rows; None never ends.
        shard_id: this data-parallel rank.
        num_shards: number of data-parallel ranks.

    Returns:
        An iterator of {column: int32 [B, L]}; its `step` is the state to go on from.

    Raises:
        DataError: a file is missing or damaged (named), or the options make no batch.
    """
    rows = path if isinstance(path, MindRecordRows) else open_rows(path)
    return Batches(
        rows,
        batch_size,
        seed=seed,
        shuffle=shuffle,
        start_step=start_step,
        drop_remainder=drop_remainder,
        epochs=epochs,
        shard_id=shard_id,
        num_shards=num_shards,
    )


def _check_file(path: Path, header: Header) -> None:
    """Compare the size of one file and its row index with what its header promises."""
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
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise DataError(f"{database}: damaged ({error})") from None
    if indexed != header.rows or (indexed and last != indexed - 1):
        raise DataError(f"{database}: damaged, {indexed} rows where {path.name} has {header.rows}")
