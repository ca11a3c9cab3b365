"""A bigram model of ids: the yardstick that a trained network must beat.

Interpolated Kneser-Ney smoothing (Chen and Goodman 1998, section 2.7), the best of the simple n-gram estimates, so that
beating it says something. Counting streams over the rows; memory grows with the number of distinct pairs only.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_MERGE_AT = 1 << 22  # pairs collected before they are merged into the counts


class Bigram:
    """P(next id | id), estimated from rows of ids.

    Args:
        rows: arrays int [B, S + 1]; pairs are counted within a row.
        vocab_size: V; an id never seen still has some probability.
    """

    def __init__(self, rows: Iterable[NDArray[np.int32]], vocab_size: int) -> None:
        self.vocab_size = vocab_size
        pairs, counts = _count(rows, vocab_size)
        first, second = pairs // vocab_size, pairs % vocab_size
        ones, twos = (counts == 1).sum(), (counts == 2).sum()
        discount = ones / max(1, ones + 2 * twos)  # Ney, Essen and Kneser 1994
        self._pairs = pairs
        self._kept = np.maximum(counts - discount, 0)
        self._context = np.bincount(first, counts, vocab_size)
        followers = np.bincount(first, minlength=vocab_size)
        with np.errstate(invalid="ignore", divide="ignore"):
            self._backoff = np.where(self._context > 0, discount * followers / self._context, 1.0)
        preceders = np.bincount(second, minlength=vocab_size)
        self._unigram = (preceders + 1) / (preceders.sum() + vocab_size)

    def mean_loss(self, rows: Iterable[NDArray[np.int32]]) -> float:
        """Mean negative log-likelihood in nats of each id of the rows [B, S + 1] given the one before it."""
        total, number = 0.0, 0
        for block in rows:
            first, second = block[:, :-1].reshape(-1).astype(np.int64), block[:, 1:].reshape(-1).astype(np.int64)
            pair = first * self.vocab_size + second
            at = np.minimum(np.searchsorted(self._pairs, pair), len(self._pairs) - 1)
            kept = np.where(self._pairs[at] == pair, self._kept[at], 0.0)
            direct = kept / np.maximum(self._context[first], 1)
            total -= np.log(direct + self._backoff[first] * self._unigram[second]).sum()
            number += pair.size
        return total / number


def _count(rows: Iterable[NDArray[np.int32]], vocab_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distinct pairs, coded as first * V + second and sorted, and how often each occurs."""
    pairs, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    waiting: list[NDArray[np.int64]] = []
    size = 0
    for block in rows:
        waiting.append((block[:, :-1].astype(np.int64) * vocab_size + block[:, 1:]).reshape(-1))
        size += waiting[-1].size
        if size >= _MERGE_AT:
            pairs, counts = _merge(pairs, counts, waiting)
            waiting, size = [], 0
    return _merge(pairs, counts, waiting) if waiting else (pairs, counts)


def _merge(
    pairs: NDArray[np.int64], counts: NDArray[np.int64], waiting: list[NDArray[np.int64]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    new, new_counts = np.unique(np.concatenate(waiting), return_counts=True)
    both, place = np.unique(np.concatenate([pairs, new]), return_inverse=True)
    return both, np.bincount(place, np.concatenate([counts, new_counts])).astype(np.int64)
