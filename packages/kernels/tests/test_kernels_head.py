"""`cached_head` against the NumPy float64 oracle."""

from __future__ import annotations

import kernels_call
import kernels_oracle as oracle
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

TOLERANCE = 5e-5  # absolute; logits are a few units
WELL_CONDITIONED = 0.1  # eps under which the norm of a vector near zero does not magnify rounding 300 times


@settings(deadline=None, max_examples=60)
@given(
    tokens=st.integers(1, 30),
    batch=st.integers(1, 20),
    hidden=st.integers(1, 300),
    vocabulary=st.integers(1, 3000),
    kind=st.sampled_from([np.float32, np.float16, np.int8]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape(tokens: int, batch: int, hidden: int, vocabulary: int, kind: type, seed: int) -> None:
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((tokens, hidden)).astype(np.float32)
    last = generator.integers(0, tokens, batch).astype(np.int32)
    norm = generator.standard_normal(hidden).astype(np.float32)
    exact = weight = generator.standard_normal((vocabulary, hidden)) * hidden**-0.5
    scales = []
    if kind is np.int8:
        weight, scale = oracle.quantized(weight)
        exact, scales = oracle.dequantized(weight, scale), [scale]
    else:
        exact = weight = weight.astype(kind)
    expected, expected_logits = oracle.head(x, last, norm, exact, WELL_CONDITIONED)
    greedy, logits = kernels_call.head(x, last, norm, weight, WELL_CONDITIONED, scales)
    np.testing.assert_allclose(logits, expected_logits, rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(greedy, logits.argmax(-1))
    rows = np.arange(batch)
    assert (expected_logits[rows, expected] - expected_logits[rows, greedy] <= 2 * TOLERANCE).all()


def test_the_first_of_equal_logits_wins() -> None:
    x = np.ones((1, 4), np.float32)
    weight = np.zeros((50_000, 4), np.float32)
    weight[[17, 400, 49_999]] = 1
    greedy, _ = kernels_call.head(x, np.zeros(1, np.int32), np.ones(4, np.float32), weight)
    assert greedy[0] == 17


def test_a_row_outside_of_x_is_refused() -> None:
    x, norm, weight = np.ones((2, 4), np.float32), np.ones(4, np.float32), np.ones((8, 4), np.float32)
    eps, greedy, logits = np.array([1e-5], np.float32), np.zeros(1, np.int32), np.zeros((1, 8), np.float32)
    for last, status in ((1, 0), (2, 1), (-1, 1)):
        arguments = (x, np.array([last], np.int32), norm, weight, eps, greedy, logits)
        assert kernels_call.call("codellama_cached_head", *arguments) == status
