"""Matrix products of training, norms and activations: against float64, and their gradients against differences."""

from __future__ import annotations

import kernels_train_call as kernels
import kernels_train_oracle as oracle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

TOLERANCE = 2e-6  # relative to the root of the sum of squares of the terms: float32 rounds each to 6e-8
SLOPE_TOLERANCE = 1e-4  # relative to the norms of gradient and direction, float32 against differences in float64
ROUNDING = 1e-6  # of an entry that is a difference of numbers near 1, such as a gradient that cancels to zero
side = st.integers(1, 150)
seeds = st.integers(0, 2**32 - 1)


def normal(generator, *shape: int):
    return generator.standard_normal(shape).astype(np.float32)


def check_product(ours, a, b) -> None:
    """ours = a b^T, where the terms of each sum may be large and cancel."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    size = np.sqrt((a**2).sum(-1))[:, None] * np.sqrt((b**2).sum(-1))[None]
    assert (np.abs(ours - a @ b.T) <= TOLERANCE * size + 1e-30).all()


def check_slope(function, arguments, gradients, weights, generator) -> None:
    """Gradients of sum(function * weights) along random directions of all arguments at once, and of each alone."""
    for alone in (None, *range(len(arguments))):
        ways = [
            generator.standard_normal(value.shape) * (alone is None or index == alone)
            for index, value in enumerate(arguments)
        ]
        expected = oracle.slope(function, arguments, ways, weights)
        found = sum(float((gradient * way).sum()) for gradient, way in zip(gradients, ways, strict=True))
        size = sum(np.linalg.norm(gradient * way) for gradient, way in zip(gradients, ways, strict=True))
        rounding = ROUNDING * sum(np.linalg.norm(way) for way in ways)
        assert abs(found - expected) <= SLOPE_TOLERANCE * size + rounding


@settings(deadline=None, max_examples=60)
@given(tokens=side, inputs=side, outputs=side, seed=seeds)
def test_linear_and_its_gradients(tokens: int, inputs: int, outputs: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    x, weight, dy = (
        normal(generator, tokens, inputs),
        normal(generator, outputs, inputs),
        normal(generator, tokens, outputs),
    )
    check_product(kernels.linear(x, weight), x, weight)
    dx, dw = kernels.linear_backward(x, weight, dy)
    check_product(dx, dy, weight.T)
    check_product(dw, dy.T, x.T)


@pytest.mark.parametrize(
    ("tokens", "inputs", "outputs"),
    [(1, 4300, 1), (2, 3, 4300), (4300, 2, 3), (513, 600, 700), (40, 700, 4200), (1100, 50, 600), (1700, 130, 200)],
)
def test_products_of_several_blocks(tokens: int, inputs: int, outputs: int) -> None:
    test_linear_and_its_gradients.hypothesis.inner_test(tokens, inputs, outputs, 0)


def test_products_keep_numbers_of_any_size() -> None:
    """Down to 1e-30 and up to 1e30 in one product: no scaling is lost, whatever the processor multiplies with."""
    generator = np.random.default_rng(1)
    x, weight = normal(generator, 40, 70), normal(generator, 50, 70)
    for power in (-30, -15, 15, 30):
        scaled = (x * np.float32(10.0**power)).astype(np.float32)
        check_product(kernels.linear(scaled, weight), scaled, weight)


def test_products_of_numbers_that_are_none_are_none() -> None:
    x, weight = np.ones((33, 40), np.float32), np.ones((35, 40), np.float32)
    x[3, 5] = np.nan
    found = kernels.linear(x, weight)
    assert np.isnan(found[3]).all() and (np.delete(found, 3, axis=0) == 40).all()
    x[3, 5] = np.inf
    assert not np.isfinite(kernels.linear(x, weight)[3]).any()


@settings(deadline=None, max_examples=40)
@given(tokens=side, hidden=st.integers(1, 300), seed=seeds)
def test_rms_norm_and_its_gradients(tokens: int, hidden: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    x, weight, dy = normal(generator, tokens, hidden), normal(generator, hidden), normal(generator, tokens, hidden)
    eps = 0.1  # well conditioned where a vector is near zero
    y, rstd = kernels.rms_norm(x, weight, eps)
    np.testing.assert_allclose(y, oracle.rms_norm(x.astype(np.float64), weight, eps), rtol=0, atol=1e-5)
    gradients = kernels.rms_norm_backward(x, weight, rstd, dy)
    check_slope(lambda x, weight: oracle.rms_norm(x, weight, eps), [x, weight], gradients, dy, generator)


@settings(deadline=None, max_examples=40)
@given(tokens=side, ffn=st.integers(1, 300), seed=seeds)
def test_swiglu_and_its_gradients(tokens: int, ffn: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    gate, up, dy = (normal(generator, tokens, ffn) for _ in range(3))
    gate *= 5
    np.testing.assert_allclose(
        kernels.swiglu(gate, up), oracle.swiglu(gate.astype(np.float64), up), rtol=2e-6, atol=1e-6
    )
    check_slope(oracle.swiglu, [gate, up], kernels.swiglu_backward(gate, up, dy), dy, generator)


def test_swiglu_of_large_gates() -> None:
    gate = np.array([[-200.0, -90.0, 0.0, 90.0, 200.0]], np.float32)
    up = np.ones_like(gate)
    np.testing.assert_allclose(kernels.swiglu(gate, up), [[0, 0, 0, 90, 200]], atol=1e-30)
    d_gate, _ = kernels.swiglu_backward(gate, up, up)
    np.testing.assert_allclose(d_gate, [[0, 0, 0.5, 1, 1]], atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 40),
    heads=st.integers(1, 5),
    half=st.integers(1, 40),
    each_row=st.booleans(),
    seed=seeds,
)
def test_rotation_and_its_gradient(batch, length, heads, half, each_row, seed) -> None:
    generator = np.random.default_rng(seed)
    x, dy = normal(generator, batch, length, heads, 2 * half), normal(generator, batch, length, heads, 2 * half)
    cos, sin = (normal(generator, batch if each_row else 1, length, 1, 2 * half) for _ in range(2))
    expected = oracle.rotate(x.astype(np.float64), cos, sin)
    np.testing.assert_allclose(kernels.rotate(x, cos, sin), expected, rtol=0, atol=1e-5)
    gradient = kernels.rotate(dy, cos, sin, back=True)
    check_slope(lambda x: oracle.rotate(x, cos, sin), [x], [gradient], dy, generator)


def test_arguments_that_do_not_fit_are_refused() -> None:
    from kernels_call import call

    x, weight, y = np.ones((3, 4), np.float32), np.ones((5, 4), np.float32), np.ones((3, 5), np.float32)
    assert call("codellama_linear", x, weight, y) == 0
    for wrong in ((x, weight), (x, weight, y.T.copy()), (x, y, y), (x.astype(np.float64), weight, y)):
        assert call("codellama_linear", *wrong) == 1
    eps, rstd = np.ones(1, np.float32), np.ones(3, np.float32)
    assert call("codellama_rms_norm", x, weight[0].copy(), eps, x.copy(), rstd) == 0
    assert call("codellama_rms_norm", x, rstd, eps, x.copy(), rstd) == 1
    assert call("codellama_swiglu", x, y, x.copy()) == 1
    head = np.ones((1, 3, 2, 4), np.float32)
    assert call("codellama_rotate", head, head[:, :2, :1].copy(), head[:, :2, :1].copy(), head.copy()) == 1
