"""The configurations of the goldens, their weights and batches, from seeded NumPy: the same for either side.

Imported by the script that makes the goldens, which has torch, and by the tests, which have MindSpore.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# name -> LlamaConfig keys. No hidden size is a power of two; multi-head, grouped, one key/value head; both thetas.
CASES: dict[str, dict[str, int | float | bool]] = {
    "multi_head": {"hidden_size": 36, "num_heads": 3, "n_kv_heads": 3, "intermediate_size": 52, "theta": 1e6},
    "grouped": {"hidden_size": 40, "num_heads": 10, "n_kv_heads": 2, "intermediate_size": 28, "theta": 1e6},
    "one_kv_head": {"hidden_size": 24, "num_heads": 4, "n_kv_heads": 1, "intermediate_size": 44, "theta": 1e4},
    "tied": {
        "hidden_size": 36,
        "num_heads": 9,
        "n_kv_heads": 3,
        "intermediate_size": 40,
        "theta": 1e4,
        "tie_word_embeddings": True,
    },
    "wide_heads": {
        "hidden_size": 24,
        "num_heads": 4,
        "n_kv_heads": 2,
        "intermediate_size": 20,
        "head_dim": 10,
        "theta": 1e6,
    },
}
COMMON: dict[str, int | float | bool] = {"vocab_size": 67, "num_layers": 2, "max_position_embedding": 64}
LENGTHS = (19, 7, 12)  # ragged rows of the batch
IGNORE_INDEX = -100


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
    """Random parameters by MindFormers' names, large enough that attention is far from uniform."""
    rng = np.random.default_rng(7)
    tree = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape)
        values = 1 + 0.2 * values if len(shape) == 1 else values * 1.5 / np.sqrt(shape[-1])
        tree[name] = values.astype(np.float32)
    return tree


def batch() -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """ids [3, 19] padded on the right with 0, and labels with the padding (and a stretch of one row) ignored."""
    rng = np.random.default_rng(11)
    ids = np.zeros((len(LENGTHS), max(LENGTHS)), np.int32)
    labels = np.full_like(ids, IGNORE_INDEX)
    for row, length in enumerate(LENGTHS):
        ids[row, :length] = rng.integers(3, COMMON["vocab_size"], length)
        labels[row, :length] = ids[row, :length]
    labels[0, :5] = IGNORE_INDEX
    return ids, labels


WEIGHT_DECAY = 0.1


def adamw_problem() -> tuple[list[NDArray[np.float32]], list[list[NDArray[np.float32]]], list[float]]:
    """Parameters (a matrix, a vector), five steps' gradients, of very different sizes, and learning rates down to 0."""
    rng = np.random.default_rng(5)
    shapes = ((7, 5), (6,))
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    gradients = [
        [(rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 2, shape)).astype(np.float32) for shape in shapes]
        for _ in range(5)
    ]
    return weights, gradients, [1e-2, 2e-2, 1e-2, 5e-3, 0.0]
