"""The held-out loss of a network, and of a bigram model on the same rows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from codellama_data import batches, open_rows
from codellama_model import CausalLMLoss
from numpy.typing import NDArray

from codellama_app.bigram import Bigram
from codellama_app.config import RunConfig
from codellama_app.loss_inputs import loss_inputs


def network_loss(loss: CausalLMLoss, rows: Path, config: RunConfig) -> float:
    """Mean loss in nats per token over the held-out rows.

    `loss` must be in evaluation use (and not the one that trains: switching that to and fro compiles its step again).
    """
    total = tokens = 0.0
    for batch in _held_out(rows, config):
        batch_total, batch_tokens = loss(*loss_inputs(batch))
        total += float(batch_total.asnumpy())
        tokens += float(batch_tokens.asnumpy())
    return total / max(tokens, 1.0)


def bigram_loss(train_rows: Path, rows: Path, config: RunConfig) -> float:
    """Mean loss in nats of a bigram model that was counted on all training rows, over the same held-out rows."""
    size = config.dataset.batch_size
    every = batches(train_rows, size, seed=0, shuffle=False, epochs=1, drop_remainder=False)
    bigram = Bigram((batch["input_ids"] for batch in every), config.llama().vocab_size)
    return bigram.mean_loss(batch["input_ids"] for batch in _held_out(rows, config))


def _held_out(rows: Path, config: RunConfig) -> Iterator[dict[str, NDArray[np.int32]]]:
    """Batches of `eval_rows` rows drawn from all files; all of one shape, so that one graph serves them."""
    size = config.dataset.batch_size
    count = max(1, min(config.dataset.eval_rows, len(open_rows(rows))) // size)
    return islice(batches(rows, size, seed=0, epochs=1), count)
