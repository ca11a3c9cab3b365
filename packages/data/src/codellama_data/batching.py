"""MindRecord files to batches for training: shuffled by seed and epoch, sharded by rank, resumable at any step.

B = rows of a batch on one rank, L = ids of a row (seq_length + 1).

Memory: one batch, and 8 bytes a row for the epoch's permutation. What is read ahead stays with the operating system.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from codellama_data.errors import DataError
from codellama_data.reading import Batch, MindRecordRows, Source, open_rows

_ROWS_AHEAD = 64  # announced to the operating system; more gained nothing


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
        self._order: npt.NDArray[np.int64] | None = None
        self._steps_ahead = -(-_ROWS_AHEAD // batch_size)
        self._announced = 0

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        epoch, within = divmod(self.step, self.steps_per_epoch)
        if self._epochs is not None and epoch >= self._epochs:
            raise StopIteration
        if self._order is None or within == 0:
            self._order = self._permutation(epoch)
            self._announced = within
        if self._shuffle and within >= self._announced:
            # Rows in random order: the disk is quick only when it knows many of them at once.
            self._announced = min(within + self._steps_ahead, self.steps_per_epoch)
            for step in range(within, self._announced):
                self.rows.prefetch(self._indices(step))
        batch = self.rows.read(self._indices(within))
        self.step += 1
        return batch

    def _permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        if not self._shuffle:
            return np.arange(len(self.rows))
        # The raw stream of PCG64 is promised to stay the same in every NumPy version; Generator.permutation is not.
        keys = np.random.PCG64([self._seed, epoch]).random_raw(len(self.rows))
        return np.argsort(keys, kind="stable")

    def _indices(self, step: int) -> npt.NDArray[np.int64]:
        """Row numbers of this rank in a step of the current epoch."""
        assert self._order is not None
        start = (step * self._num_shards + self._shard_id) * self._batch_size
        return self._order[start : start + self._batch_size]


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
