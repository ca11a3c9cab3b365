"""Head and cross-entropy in one, whole and by slices of the vocabulary; the optimizer's update."""

from __future__ import annotations

import itertools

import kernels_train_call as kernels
import kernels_train_oracle as oracle
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernels_call import call
from test_kernels_train_products import check_slope, normal

IGNORED = -100
RELATIVE = 1e-5  # of a loss of many tokens
Z_LOSS = 1e-2


def problem(seed: int, tokens: int, hidden: int, vocabulary: int):
    generator = np.random.default_rng(seed)
    x, weight = normal(generator, tokens, hidden), normal(generator, vocabulary, hidden) * 0.5
    labels = generator.integers(0, vocabulary, tokens).astype(np.int32)
    labels[generator.random(tokens) < 0.3] = IGNORED
    return generator, x, weight, labels


@settings(deadline=None, max_examples=60)
@given(
    tokens=st.integers(1, 100),
    hidden=st.integers(1, 80),
    vocabulary=st.integers(1, 700),
    z_loss=st.sampled_from([0.0, Z_LOSS]),
    seed=st.integers(0, 2**32 - 1),
)
@example(tokens=140, hidden=130, vocabulary=1300, z_loss=0.0, seed=1)  # dx: the team shares out the vocabulary
def test_any_shape(tokens, hidden, vocabulary, z_loss, seed) -> None:
    generator, x, weight, labels = problem(seed, tokens, hidden, vocabulary)

    def loss(x, weight):
        return oracle.cross_entropy(x, weight, labels, IGNORED, z_loss)

    expected = loss(x.astype(np.float64), weight.astype(np.float64))
    found, counted, *gradients = kernels.cross_entropy(x, weight, labels, IGNORED, z_loss)
    np.testing.assert_allclose(found, expected, rtol=RELATIVE, atol=1e-4)
    assert counted == (labels != IGNORED).sum()
    assert not gradients[0][labels == IGNORED].any()
    check_slope(loss, [x, weight], gradients, np.float64(1), generator)
    without = kernels.cross_entropy(x, weight, labels, IGNORED, z_loss, gradient=False)
    np.testing.assert_array_equal(without, [found, counted])


def test_several_chunks_add_up() -> None:
    """A vocabulary so wide that 100 tokens take three chunks."""
    _, x, weight, labels = problem(0, 100, 3, 450_000)
    loss, _, dx, dw = kernels.cross_entropy(x, weight, labels, IGNORED)
    halves = [kernels.cross_entropy(x[part], weight, labels[part], IGNORED) for part in (slice(50), slice(50, 100))]
    np.testing.assert_allclose(loss, halves[0][0] + halves[1][0], rtol=RELATIVE)
    np.testing.assert_allclose(dx, np.concatenate([half[2] for half in halves]), atol=1e-6)
    np.testing.assert_allclose(dw, halves[0][3] + halves[1][3], atol=1e-5)


def test_nothing_under_loss() -> None:
    _, x, weight, labels = problem(1, 7, 5, 11)
    for found in kernels.cross_entropy(x, weight, np.full_like(labels, IGNORED), IGNORED):
        assert not found.any()


def test_large_logits_do_not_overflow() -> None:
    x, weight = np.full((2, 1), 1000, np.float32), np.array([[1], [-1], [0.5]], np.float32)
    loss, _, dx, _ = kernels.cross_entropy(x, weight, np.array([0, 1], np.int32), IGNORED)
    assert loss == 2000
    np.testing.assert_allclose(dx, [[0], [2]])


def test_a_label_outside_of_the_vocabulary_is_refused() -> None:
    x, weight, ignored = np.ones((1, 4), np.float32), np.ones((8, 4), np.float32), np.array([IGNORED], np.int32)
    for label, status in ((7, 0), (IGNORED, 0), (8, 1), (-1, 1)):
        scalars = [np.zeros(1, np.float32) for _ in range(3)]
        arguments = (x, weight, np.array([label], np.int32), ignored, *scalars)
        assert call("codellama_linear_cross_entropy", *arguments) == status


@settings(deadline=None, max_examples=30)
@given(parts=st.integers(1, 4), vocabulary=st.integers(4, 300), seed=st.integers(0, 2**32 - 1))
def test_slices_of_the_vocabulary_make_up_the_whole(parts: int, vocabulary: int, seed: int) -> None:
    _, x, weight, labels = problem(seed, 20, 16, vocabulary)
    expected, _, dx, dw = kernels.cross_entropy(x, weight, labels, IGNORED, Z_LOSS)
    bounds = np.linspace(0, vocabulary, parts + 1).astype(int)
    slices = [(weight[a:b], (labels - a).astype(np.int32)) for a, b in itertools.pairwise(bounds)]
    found = [np.array(kernels.vocabulary_slice(x, *one)) for one in slices]
    largest = np.max([one[0] for one in found], axis=0)
    total = sum(one[1] * np.exp(one[0] - largest) for one in found)
    logit = np.max([one[2] for one in found], axis=0)
    counted = labels != IGNORED
    lse = largest + np.log(total)
    np.testing.assert_allclose((lse - logit + Z_LOSS * lse**2)[counted].sum(), expected[0], rtol=RELATIVE, atol=1e-4)
    d_lse = np.where(counted, 1 + 2 * Z_LOSS * lse, 0).astype(np.float32)
    d_logit = -counted.astype(np.float32)
    backward = [kernels.vocabulary_slice_backward(x, *one, largest, total, d_lse, d_logit) for one in slices]
    np.testing.assert_allclose(sum(one[0] for one in backward), dx, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([one[1] for one in backward]), dw, rtol=0, atol=1e-5)


def test_repeats_bit_by_bit() -> None:
    _, x, weight, labels = problem(2, 300, 100, 5000)
    first = kernels.cross_entropy(x, weight, labels, IGNORED)
    for _ in range(2):
        for found, expected in zip(kernels.cross_entropy(x, weight, labels, IGNORED), first, strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [1, 15, 16, 17, 16384, 40_000])
def test_adamw_is_the_papers(size: int) -> None:
    """arXiv:1711.05101, algorithm 2, over three steps in float64."""
    generator = np.random.default_rng(size)
    beta1, beta2, eps, decay, rate, scale = 0.9, 0.95, 1e-8, 0.1, 1e-2, 0.5
    parameter, first, second = normal(generator, size), np.zeros(size, np.float32), np.zeros(size, np.float32)
    p, m, v = (value.astype(np.float64) for value in (parameter, first, second))
    for step in (1, 2, 3):
        gradient = normal(generator, size)
        kernels.adamw(parameter, first, second, gradient, rate, scale, step, (beta1, beta2, eps, decay))
        g = scale * gradient.astype(np.float64)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        root = np.sqrt(v / (1 - beta2**step)) + eps
        p = p - rate * decay * p - rate * m / (1 - beta1**step) / root
        for ours, exact in ((parameter, p), (first, m), (second, v)):
            np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 100, 16385, 300_000])
def test_squared_norm(size: int) -> None:
    gradient = normal(np.random.default_rng(size), size)
    np.testing.assert_allclose(kernels.squared_norm(gradient), (gradient.astype(np.float64) ** 2).sum(), rtol=1e-6)
