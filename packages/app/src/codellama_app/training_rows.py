"""The rows of a run: batch after batch from any step on, checked, each row traceable to its file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from codellama_data import DataError, batches, open_rows
from codellama_data.header import read_header
from numpy.typing import NDArray

from codellama_app.command import UserError

Batch = dict[str, NDArray[np.int32]]
_CHUNK = 1 << 22


class TrainingRows(Iterator[Batch]):
    """Batches in training order.

    Args:
        path: MindRecord rows of seq_length + 1 ids.
        batch_size: rows of a step.
        seed: of the order.
        vocab_size: every id is below it.
        start_step: steps whose batches were consumed before.

    Attributes:
        steps_per_epoch: batches of one pass.
        columns: of the rows.

    Raises:
        DataError: a file is missing or damaged, or there are too few rows.
        UserError: rows of another length than `seq_length`.
    """

    def __init__(
        self, path: Path, batch_size: int, seq_length: int, *, seed: int, vocab_size: int, start_step: int = 0
    ) -> None:
        rows = open_rows(path)
        if rows.seq_length != seq_length:
            raise UserError(
                f"{path} has rows of {rows.seq_length} + 1 ids, the configuration dataset.seq_length {seq_length};"
                " give the one that fits"
            )
        if len(rows) < batch_size:
            raise UserError(
                f"{path} has {len(rows)} rows, fewer than one step takes ({batch_size}: dataset.batch_size times"
                " gradient_accumulation_steps)"
            )
        self._rows, self._vocab_size = rows, vocab_size
        self._batches = batches(rows, batch_size, seed=seed, start_step=start_step)
        self.steps_per_epoch = self._batches.steps_per_epoch
        self.columns = rows.columns

    def __next__(self) -> Batch:
        step = self._batches.step
        batch = next(self._batches)
        ids = batch["input_ids"]
        if ids.min() < 0 or ids.max() >= self._vocab_size:
            row, column = np.argwhere((ids < 0) | (ids >= self._vocab_size))[0]
            file, number = self.places(step)[int(row)]
            raise DataError(
                f"{file}: row {number} holds id {ids[row, column]}, the model has {self._vocab_size}"
                " (model.vocab_size): the file is damaged or was made with another tokenizer"
            )
        return batch

    def places(self, step: int) -> list[tuple[Path, int]]:
        """File and number within it of each row of the batch of a step (counted from 0)."""
        return self._batches.places(step)

    def digest(self) -> str:
        """SHA-256 over the rows: over the checksums that the files carry, over their bytes where they carry none."""
        total = hashlib.sha256()
        for file in self._rows.files:
            header = read_header(file)
            if header.checksums is not None:
                total.update(repr((header.rows, header.columns, header.checksums)).encode())
                continue
            with file.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    total.update(chunk)
        return total.hexdigest()
