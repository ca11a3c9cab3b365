"""AdamW against torch's; clipping against its definition."""

from __future__ import annotations

from pathlib import Path

import golden_cases as cases
import mindspore as ms
import numpy as np
from codellama_model import AdamW, clip_by_global_norm
from mindspore import Parameter, Tensor, nn

GOLDENS = Path(__file__).parent / "goldens"
UPDATE_TOLERANCE = 2e-6  # absolute, on weights near 1: float32 rounding of five updates


def test_five_steps_equal_those_of_torch():
    weights, gradients, rates = cases.adamw_problem()
    parameters = [Parameter(Tensor(value), name=f"p{index}") for index, value in enumerate(weights)]
    optimizer = AdamW(parameters, weight_decay=cases.WEIGHT_DECAY)
    for rate, step in zip(rates, gradients, strict=True):
        optimizer(tuple(map(Tensor, step)), Tensor(rate, ms.float32))
    golden = np.load(GOLDENS / "adamw.npz")
    for index, parameter in enumerate(parameters):
        np.testing.assert_allclose(parameter.asnumpy(), golden[str(index)], atol=UPDATE_TOLERANCE, rtol=0)
    assert float(optimizer.step.asnumpy()) == len(rates)


class Clip(nn.Cell):
    def construct(self, first, second, limit):
        return clip_by_global_norm((first, second), limit)


def test_clipping_scales_to_the_limit_and_leaves_short_gradients_alone():
    first, second = np.array([3.0, 0.0], np.float32), np.array([[4.0]], np.float32)
    clip = Clip()
    (a, b), norm = clip(Tensor(first), Tensor(second), Tensor(1.0, ms.float32))
    assert norm.asnumpy() == 5
    np.testing.assert_allclose(a.asnumpy(), first / 5, rtol=1e-6)
    np.testing.assert_allclose(b.asnumpy(), second / 5, rtol=1e-6)
    (a, b), _ = clip(Tensor(first), Tensor(second), Tensor(6.0, ms.float32))
    assert (a.asnumpy() == first).all() and (b.asnumpy() == second).all()
