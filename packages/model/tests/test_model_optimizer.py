"""AdamW against torch's; clipping against its definition."""

from __future__ import annotations

from pathlib import Path

import golden_cases as cases
import mindspore as ms
import numpy as np
from codellama_model import AdamW, clip_scale, global_norm
from mindspore import Parameter, Tensor, nn

GOLDENS = Path(__file__).parent / "goldens"
UPDATE_TOLERANCE = 2e-6  # absolute, on weights near 1: float32 rounding of five updates


def test_five_steps_equal_those_of_torch():
    weights, gradients, rates = cases.adamw_problem()
    parameters = [Parameter(Tensor(value), name=f"p{index}") for index, value in enumerate(weights)]
    optimizer = AdamW(parameters, weight_decay=cases.WEIGHT_DECAY)
    for rate, step in zip(rates, gradients, strict=True):
        # as if the gradients came summed over four tokens: the scale belongs to the update
        summed = tuple(Tensor(gradient * 4) for gradient in step)
        optimizer(summed, Tensor(rate, ms.float32), Tensor(0.25, ms.float32))
    golden = np.load(GOLDENS / "adamw.npz")
    for index, parameter in enumerate(parameters):
        np.testing.assert_allclose(parameter.asnumpy(), golden[str(index)], atol=UPDATE_TOLERANCE, rtol=0)
    assert float(optimizer.step.asnumpy()) == len(rates)


class Clip(nn.Cell):
    def construct(self, first, second):
        norm = global_norm((first, second))
        return norm, clip_scale(norm, 1.0), clip_scale(norm, 6.0)


def test_clipping_scales_to_the_limit_and_leaves_short_gradients_alone():
    first, second = np.array([3.0, 0.0], np.float32), np.array([[4.0]], np.float32)
    norm, long, short = (value.asnumpy() for value in Clip()(Tensor(first), Tensor(second)))
    assert norm == 5 and short == 1
    np.testing.assert_allclose(long, 1 / 5, rtol=1e-6)
