"""pass@k: the unbiased estimator of Chen et al. 2021 (arXiv:2107.03374, section 2.1), and its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that k of n samples hold one of the c correct ones: 1 - C(n-c, k) / C(n, k).

    Raises:
        ValueError: not 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, found n={n}, c={c}, k={k}")
    # the product of 1 - k/i does not overflow where the binomials would
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1)) if n - c >= k else 1.0


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean over tasks and its standard error, s / sqrt(tasks); NaN for a single task.

    Of one sample a task this is the binomial error: 3.9 points at 0.47 of 164.
    """
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return mean, math.nan
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, math.sqrt(variance / count)
