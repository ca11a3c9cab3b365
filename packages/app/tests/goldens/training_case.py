"""The training problem of the goldens, from seeded NumPy: the same network, batches and rates for either side.

Imported by the script that makes the goldens, which has torch, and by the tests, which have MindSpore.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MODEL: dict[str, int | float] = {
    "vocab_size": 97,
    "hidden_size": 40,
    "num_layers": 2,
    "num_heads": 4,
    "n_kv_heads": 2,
    "intermediate_size": 56,
    "max_position_embedding": 64,
    "theta": 1e4,
}
STEPS = 50
ROWS, LENGTH = 4, 24  # of a step's batch; the rows differ in how many tokens are under loss
LEARNING_RATE, WARMUP_STEPS, WEIGHT_DECAY = 1e-2, 7, 0.1
MAX_GRAD_NORM = 2.5  # between the norms of the steps: some are clipped, some are not
LORA = {"rank": 4, "alpha": 12.0, "targets": ("wq", "wv", "w2")}
LORA_LEARNING_RATE = 2e-2
IGNORE_INDEX = -100


def weights(shapes: dict[str, tuple[int, ...]], seed: int = 3) -> dict[str, NDArray[np.float32]]:
    """Random parameters by MindFormers' names."""
    rng = np.random.default_rng(seed)
    tree = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape)
        values = 1 + 0.1 * values if len(shape) == 1 else values / np.sqrt(shape[-1])
        tree[name] = values.astype(np.float32)
    return tree


def adapters() -> dict[str, NDArray[np.float32]]:
    """Low-rank matrices of every target of every layer: `...lora_a` [r, in] random, `...lora_b` [out, r] near 0."""
    hidden, ffn = int(MODEL["hidden_size"]), int(MODEL["intermediate_size"])
    value_width = hidden // int(MODEL["num_heads"]) * int(MODEL["n_kv_heads"])
    rank = int(LORA["rank"])  # type: ignore[call-overload]
    sides = {"attention.wq": (hidden, hidden), "attention.wv": (value_width, hidden), "feed_forward.w2": (hidden, ffn)}
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(int(MODEL["num_layers"])):
        for matrix, (outputs, inputs) in sides.items():
            shapes[f"model.layers.{layer}.{matrix}.lora_a"] = (rank, inputs)
            shapes[f"model.layers.{layer}.{matrix}.lora_b"] = (outputs, rank)
    tree = weights(shapes, seed=4)
    return {name: value * np.float32(0.1 if name.endswith("_b") else 1) for name, value in tree.items()}


def batches() -> list[dict[str, NDArray[np.int32]]]:
    """`STEPS` batches of ids and labels, int32 [ROWS, LENGTH + 1], of a language with rules to be learnt."""
    rng = np.random.default_rng(5)
    vocab = int(MODEL["vocab_size"])
    made = []
    for _ in range(STEPS):
        ids = np.empty((ROWS, LENGTH + 1), np.int32)
        ids[:, 0] = rng.integers(0, vocab, ROWS)
        for at in range(1, LENGTH + 1):  # each id follows from the one before it, or is any
            follows = (ids[:, at - 1] * 5 + 7) % vocab
            ids[:, at] = np.where(rng.random(ROWS) < 0.9, follows, rng.integers(0, vocab, ROWS))
        labels = ids.copy()
        for row in range(ROWS):
            labels[row, : rng.integers(1, LENGTH)] = IGNORE_INDEX
        made.append({"input_ids": ids, "labels": labels})
    return made
