"""The held-out loss of a network, and of a bigram model on the same rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from codellama_data import batches
from codellama_model import IGNORE_INDEX, CausalLMLoss

from codellama_app.bigram import Bigram
from codellama_app.config import RunConfig
from codellama_app.loss_inputs import loss_inputs
from codellama_app.training_rows import Batch


def network_loss(loss: CausalLMLoss, rows: Path, config: RunConfig) -> float:
    """Mean loss in nats per token over the held-out rows.

    `loss` must be in evaluation use (and not the one that trains: switching that to and fro compiles its step again).
    """

    def evaluate(batch: Batch) -> tuple[float, float]:
        total, tokens = loss(*loss_inputs(batch))
        return float(total.asnumpy()), float(tokens.asnumpy())

    return held_out_loss(evaluate, config.dataset.batch_size, rows, config)


def held_out_loss(
    evaluate: Callable[[Batch], tuple[float, float]], batch_rows: int, rows: Path, config: RunConfig
) -> float:
    """Mean loss in nats per token over the held-out rows, the same rows whatever the size of a batch.

    Args:
        evaluate: (summed loss, tokens under loss) of a batch.
        batch_rows: rows of every batch; the last one is filled up with rows that are not under loss.
        rows: the held-out file.
        config: of the run.
    """
    total = tokens = 0.0
    for batch in _held_out(rows, batch_rows, config):
        batch_total, batch_tokens = evaluate(_filled(batch, batch_rows))
        total += batch_total
        tokens += batch_tokens
    return total / max(tokens, 1.0)


def bigram_loss(train_rows: Path, rows: Path, config: RunConfig) -> float:
    """Mean loss in nats of a bigram model that was counted on all training rows, over the same held-out rows."""
    size = config.dataset.batch_size
    every = batches(train_rows, size, seed=0, shuffle=False, epochs=1, drop_remainder=False)
    bigram = Bigram((batch["input_ids"] for batch in every), config.llama().vocab_size)
    return bigram.mean_loss(batch["input_ids"] for batch in _held_out(rows, size, config))


def _held_out(rows: Path, batch_rows: int, config: RunConfig) -> Iterator[Batch]:
    """The first `eval_rows` rows of a permutation of all, in batches; the last one may be shorter."""
    left = config.dataset.eval_rows
    for batch in batches(rows, batch_rows, seed=0, epochs=1, drop_remainder=False):
        if left <= 0:
            return
        yield {name: column[:left] for name, column in batch.items()}
        left -= batch_rows


def _filled(batch: Batch, batch_rows: int) -> Batch:
    """All batches have one shape, so that one graph serves them."""
    missing = batch_rows - len(batch["input_ids"])
    if not missing:
        return batch
    columns = {"labels": batch["input_ids"], **batch}
    return {
        name: np.pad(column, ((0, missing), (0, 0)), constant_values=IGNORE_INDEX if name == "labels" else 0)
        for name, column in columns.items()
    }
