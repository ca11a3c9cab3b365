"""Attention of whole sequences: against float64, its gradients against differences, packed documents, long rows."""

from __future__ import annotations

import kernels_train_call as kernels
import kernels_train_oracle as oracle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_call import call
from test_kernels_train_products import check_slope, normal

TOLERANCE = 1e-5  # absolute; values are a few units and the weights sum to 1


def starts(generator, batch: int, length: int, documents: int):
    """The first visible key of each token, int32 [B, S], for rows cut into documents at random."""
    first = np.zeros((batch, length), np.int32)
    for row in range(batch):
        for cut in sorted(generator.integers(0, length, documents - 1)):
            first[row, cut:] = cut
    return first


def inputs(generator, batch, length, kv_heads, group, width):
    query = normal(generator, batch, length, kv_heads * group, width)
    key, value = (normal(generator, batch, length, kv_heads, width) for _ in range(2))
    return query, key, value


@settings(deadline=None, max_examples=30)
@given(
    batch=st.integers(1, 2),
    length=st.integers(1, 300),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    width=st.integers(1, 70),
    documents=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape(batch, length, kv_heads, group, width, documents, seed) -> None:
    generator = np.random.default_rng(seed)
    query, key, value = inputs(generator, batch, length, kv_heads, group, width)
    first_key = starts(generator, batch, length, documents)
    if documents == 1:
        first_key = first_key[:1]  # one row serves all
    scale = width**-0.5
    out, lse = kernels.attention(query, key, value, first_key, scale)
    exact = [array.astype(np.float64) for array in (query, key, value)]
    np.testing.assert_allclose(out, oracle.attention(*exact, first_key, scale), rtol=0, atol=TOLERANCE)
    dout = normal(generator, *out.shape)
    gradients = kernels.attention_backward(query, key, value, first_key, scale, out, lse, dout)
    check_slope(
        lambda query, key, value: oracle.attention(query, key, value, first_key, scale),
        [query, key, value],
        gradients,
        dout,
        generator,
    )


@pytest.mark.parametrize("length", [1, 2, 127, 128, 129, 255, 256, 257, 513, 4097])
def test_lengths_around_the_blocks(length: int) -> None:
    generator = np.random.default_rng(length)
    query, key, value = inputs(generator, 1, length, 1, 1, 8)
    first_key = starts(generator, 1, length, 3)
    out, lse = kernels.attention(query, key, value, first_key, 0.3)
    exact = [array.astype(np.float64) for array in (query, key, value)]
    np.testing.assert_allclose(out, oracle.attention(*exact, first_key, 0.3), rtol=0, atol=TOLERANCE)
    dout = normal(generator, *out.shape)
    gradients = kernels.attention_backward(query, key, value, first_key, 0.3, out, lse, dout)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    # a value's gradient is its weights' sum over the queries: summed over keys, that of all of dout
    np.testing.assert_allclose(gradients[2].sum((0, 1, 2)), dout.sum(0), rtol=0, atol=1e-3)


def test_a_document_is_as_if_alone() -> None:
    """Bit by bit the same sums, wherever the blocks begin."""
    generator = np.random.default_rng(0)
    query, key, value = inputs(generator, 1, 400, 2, 2, 16)
    first_key = np.zeros((1, 400), np.int32)
    first_key[:, 150:] = 150
    together, _ = kernels.attention(query, key, value, first_key, 0.25)
    part = [np.ascontiguousarray(array[:, 150:]) for array in (query, key, value)]
    alone, _ = kernels.attention(*part, np.zeros((1, 250), np.int32), 0.25)
    np.testing.assert_allclose(together[150:], alone, rtol=0, atol=TOLERANCE)


def test_large_scores_do_not_overflow() -> None:
    generator = np.random.default_rng(1)
    query, key, value = inputs(generator, 1, 200, 1, 2, 16)
    query *= 300
    out, lse = kernels.attention(query, key, value, np.zeros((1, 200), np.int32), 10.0)
    exact = [array.astype(np.float64) for array in (query, key, value)]
    expected = oracle.attention(*exact, np.zeros((1, 200), np.int32), 10.0)
    np.testing.assert_allclose(out, expected, rtol=0, atol=5e-2)  # scores of 1e5 are known to 1e-2 in float32
    zeros = np.zeros((1, 200), np.int32)
    gradients = kernels.attention_backward(query, key, value, zeros, 10.0, out, lse, out)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_repeats_bit_by_bit() -> None:
    generator = np.random.default_rng(2)
    query, key, value = inputs(generator, 2, 700, 2, 2, 32)
    first_key = starts(generator, 2, 700, 4)
    runs = []
    for _ in range(3):
        out, lse = kernels.attention(query, key, value, first_key, 0.2)
        runs.append([out, lse, *kernels.attention_backward(query, key, value, first_key, 0.2, out, lse, out)])
    for run in runs[1:]:
        for found, expected in zip(run, runs[0], strict=True):
            np.testing.assert_array_equal(found, expected)


def test_a_token_that_does_not_see_itself_is_refused() -> None:
    query, key, value = inputs(np.random.default_rng(3), 1, 4, 1, 1, 2)
    scale, out, lse = np.ones(1, np.float32), np.zeros((4, 2), np.float32), np.zeros((1, 1, 4), np.float32)
    for first_key, status in (([0, 0, 2, 1], 0), ([0, 2, 0, 0], 1), ([0, -1, 0, 0], 1)):
        arguments = (query, key, value, np.array([first_key], np.int32), scale, out, lse)
        assert call("codellama_attention", *arguments) == status
