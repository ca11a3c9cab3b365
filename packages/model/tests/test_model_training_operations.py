"""Training's operations: composed against NumPy, and the entry of this device against composed."""

from __future__ import annotations

import numpy as np
import pytest
from codellama_model import select
from mindspore import Tensor, nn, ops

IGNORED, Z_LOSS = -100, 1e-2
TOKENS, HIDDEN, VOCABULARY = 11, 6, 14
RELATIVE = 1e-5


@pytest.fixture(params=["composed", "cpu"])
def operations(request: pytest.FixtureRequest):
    return select(request.param)


def problem() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape).astype(np.float32) for shape in ((TOKENS, HIDDEN), (VOCABULARY, HIDDEN)))
    labels = rng.integers(0, VOCABULARY, TOKENS).astype(np.int32)
    labels[::4] = IGNORED
    return x, weight, labels


def loss_and_gradients() -> tuple[float, np.ndarray, np.ndarray]:
    """Cross-entropy with z-loss of `problem`, in float64."""
    x, weight, labels = problem()
    counted = labels != IGNORED
    logits = x.astype(np.float64) @ weight.T.astype(np.float64)
    lse = np.log(np.exp(logits).sum(-1))
    loss = (lse - logits[np.arange(TOKENS), np.maximum(labels, 0)] + Z_LOSS * lse**2)[counted].sum()
    gradient = np.exp(logits - lse[:, None]) * (1 + 2 * Z_LOSS * lse)[:, None]
    gradient[np.arange(TOKENS), np.maximum(labels, 0)] -= 1
    gradient[~counted] = 0
    return loss, gradient @ weight, gradient.T @ x


class Loss(nn.Cell):
    def __init__(self, operations) -> None:
        super().__init__()
        cross_entropy = operations.linear_cross_entropy(IGNORED, Z_LOSS)
        cross_entropy.set_train()
        self.gradient = ops.value_and_grad(cross_entropy, (0, 1), has_aux=True)

    def construct(self, x, weight, labels):
        return self.gradient(x, weight, labels)


def test_cross_entropy_with_z_loss(operations) -> None:
    (loss, tokens), gradients = Loss(operations)(*map(Tensor, problem()))
    expected, *expected_gradients = loss_and_gradients()
    np.testing.assert_allclose(loss.asnumpy(), expected, rtol=RELATIVE)
    assert float(tokens.asnumpy()) == (problem()[2] != IGNORED).sum()
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(found.asnumpy(), wanted, rtol=0, atol=1e-5)


class Slices(nn.Cell):
    """The same loss from two slices of the vocabulary, put together as ranks would."""

    def __init__(self, operations, first: int) -> None:
        super().__init__()
        self.first = first
        self.slice, self.gradient = operations.vocabulary_slice, operations.vocabulary_slice_gradient

    def construct(self, x, weight, labels):
        parts = ((weight[: self.first], labels), (weight[self.first :], labels - self.first))
        largest_a, total_a, logit_a = self.slice(x, *parts[0])
        largest_b, total_b, logit_b = self.slice(x, *parts[1])
        largest = ops.maximum(largest_a, largest_b)
        total = total_a * ops.exp(largest_a - largest) + total_b * ops.exp(largest_b - largest)
        counted = (labels != IGNORED).astype(x.dtype)
        lse = largest + ops.log(total)
        logit = ops.select(labels != IGNORED, ops.maximum(logit_a, logit_b), lse)
        loss = ops.sum((lse - logit + Z_LOSS * ops.square(lse)) * counted)
        d_lse = (1 + 2 * Z_LOSS * lse) * counted
        dx_a, dw_a = self.gradient(x, *parts[0], largest, total, d_lse, -counted)
        dx_b, dw_b = self.gradient(x, *parts[1], largest, total, d_lse, -counted)
        return loss, dx_a + dx_b, ops.concat((dw_a, dw_b), 0)


def test_slices_of_the_vocabulary_make_up_the_whole(operations) -> None:
    found = Slices(operations, 5)(*map(Tensor, problem()))
    for one, wanted in zip(found, loss_and_gradients(), strict=True):
        np.testing.assert_allclose(one.asnumpy(), wanted, rtol=RELATIVE, atol=1e-5)
