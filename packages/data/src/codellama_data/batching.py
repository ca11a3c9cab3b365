"""MindRecord files to batches for training: shuffled by seed and epoch, sharded by rank, resumable at any step.

B = rows of a batch on one rank, L = ids of a row (seq_length + 1).

Memory: one batch, or a few small ones that are read together, and 8 bytes a row for the epoch's permutation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from codellama_data.errors import DataError
from codellama_data.readahead import ReadAhead
from codellama_data.reading import Batch, MindRecordRows, Source, StoredBatch, open_rows

_ROWS_AT_ONCE = 64  # small batches are read several at a time: they share what a call costs, and still fit in the cache


class Batches(Iterator[Batch]):
    """An iterator of {column: int32 [B, L]}, a new array each, for training.

    The order of the rows is a permutation of all of them, each one equally likely, that depends on (seed, epoch) alone.
    Every step takes the next `batch_size * num_shards` rows of it; shard `shard_id` gets its `batch_size` consecutive
    ones, so the ranks' batches put together are those of a single rank with the larger batch.

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

    Attributes:
        rows: the opened files.
        step: batches delivered since the very first one; give it as `start_step` to go on exactly there.
        steps_per_epoch: batches of one pass over the rows.

    Raises:
        DataError: a file is missing or damaged (named), or the options make no batch.
    """

    def __init__(
        self,
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
    ) -> None:
        if batch_size < 1 or start_step < 0 or seed < 0:
            found = f"found {batch_size}, {start_step}, {seed}"
            raise DataError(f"batch_size must be above 0, start_step and seed at least 0, {found}")
        if num_shards < 1 or not 0 <= shard_id < num_shards:
            raise DataError(f"shard_id {shard_id} must be in 0..num_shards - 1, num_shards is {num_shards}")
        if num_shards > 1 and not drop_remainder:
            raise DataError("drop_remainder=False works with one shard only: the last batch would differ between ranks")
        self.rows = path if isinstance(path, MindRecordRows) else open_rows(path)
        self._batch_size, self._seed, self._shuffle = batch_size, seed, shuffle
        self._shard_id, self._num_shards, self._epochs = shard_id, num_shards, epochs
        whole, rest = divmod(len(self.rows), batch_size * num_shards)
        self.steps_per_epoch = whole + (1 if rest and not drop_remainder else 0)
        if not self.steps_per_epoch:
            found = f"{self.rows.files[0]}: {len(self.rows)} rows"
            raise DataError(
                f"{found} make no batch of {batch_size * num_shards}; use a smaller batch_size or more data"
            )
        self.step = start_step
        self._order: npt.NDArray[np.int64] | None = None
        self._steps_at_once = max(1, _ROWS_AT_ONCE // batch_size)
        self._ready: deque[StoredBatch] = deque()

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        if not self._ready:
            self._read_on()
        self.step += 1
        return {column: values.astype(np.int32, copy=False) for column, values in self._ready.popleft().items()}

    def places(self, step: int) -> list[tuple[Path, int]]:
        """File and number within it of each row of a step's batch, counted from 0 as `step` is: for messages."""
        epoch, within = divmod(step, self.steps_per_epoch)
        numbers = self._own_rows(epoch)[within * self._batch_size : (within + 1) * self._batch_size]
        return [self.rows.place(number) for number in numbers.tolist()]

    def _read_on(self) -> None:
        """Read the batch of the current step, and of those behind it as many as are worth one reading."""
        epoch, within = divmod(self.step, self.steps_per_epoch)
        if self._epochs is not None and epoch >= self._epochs:
            raise StopIteration
        if self._order is None or within == 0:
            self._order = self._own_rows(epoch)
            self._ahead = ReadAhead(self.rows, self._order, self._shuffle)
        size, last = self._batch_size, min(within + self._steps_at_once, self.steps_per_epoch)
        start, stop = within * size, last * size
        self._ahead.before_reading(start, stop)
        rows = self.rows.read_stored(self._order[start:stop])
        for at in range(0, stop - start, size):
            self._ready.append({column: values[at : at + size] for column, values in rows.items()})

    def _permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        if not self._shuffle:
            return np.arange(len(self.rows))
        # The raw stream of PCG64 is promised to stay the same in every NumPy version; Generator.permutation is not.
        keys = np.random.PCG64([self._seed, epoch]).random_raw(len(self.rows))
        return np.argsort(keys, kind="stable")

    def _own_rows(self, epoch: int) -> npt.NDArray[np.int64]:
        """Row numbers of this rank in the order in which an epoch's steps take them."""
        order = self._permutation(epoch)
        if self._num_shards == 1:
            return order
        steps = order[: self.steps_per_epoch * self._num_shards * self._batch_size]
        return steps.reshape(self.steps_per_epoch, self._num_shards, -1)[:, self._shard_id].reshape(-1)


batches = Batches  # a name that reads as what it gives
