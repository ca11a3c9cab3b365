"""Choosing the next id from logits: temperature, top-k, top-p, in NumPy on the host.

The order of the filters is transformers': temperature, then top_k, then top_p over all
that is left of the vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sampling:
    """How to choose among the next ids.

    Args:
        do_sample: draw at random; False takes the likeliest id (greedy) and ignores the rest.
        temperature: logits are divided by it; above 0.
        top_k: only the k likeliest ids; 0 means all.
        top_p: only the smallest set of likeliest ids whose probabilities sum to at least p; 1.0 means all.
        seed: with the row's number, fixes every draw: a row's text does not depend on its neighbours in a batch.

    Raises:
        ValueError: an impossible value; the message names it.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(
                f"temperature must be a number above 0, found {self.temperature} (for greedy, leave do_sample off)"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all ids) or more, found {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie above 0 and at most at 1, found {self.top_p}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, found {self.seed}")

    def generator(self, row: int) -> np.random.Generator:
        """The random numbers of one row of the caller's list."""
        return np.random.default_rng((self.seed, row))


def probabilities(logits: NDArray[np.float32], sampling: Sampling) -> NDArray[np.float64]:
    """logits [V] -> probabilities [V] after the filters, summing to 1."""
    scores = logits.astype(np.float64) / sampling.temperature
    if 0 < sampling.top_k < scores.size:
        lowest_kept = np.partition(scores, -sampling.top_k)[-sampling.top_k]
        scores[scores < lowest_kept] = -np.inf
    weights = np.exp(scores - scores.max())
    weights /= weights.sum()
    if sampling.top_p < 1:
        order = np.argsort(-weights, kind="stable")
        before = np.cumsum(weights[order]) - weights[order]  # mass of the likelier ids: the first is always kept
        weights[order[before >= sampling.top_p]] = 0
        weights /= weights.sum()
    return weights


def draw(logits: NDArray[np.float32], sampling: Sampling, generator: np.random.Generator) -> int:
    """One id drawn from logits [V]."""
    cumulative = np.cumsum(probabilities(logits, sampling))
    return int(np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right"))
