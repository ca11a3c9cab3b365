"""What the machine can do at best: its matrix-product rate, measured."""

from __future__ import annotations

import time

import numpy as np
from mindspore import Tensor, nn, ops

_SIDE = 1024  # large enough that the product, not its launch, is measured; small enough for a blink
_REPEATS, _ROUNDS = 8, 4


class _Products(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.product = ops.MatMul(transpose_b=True)

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        for _ in range(_REPEATS):
            x = self.product(x, weight)
        return x


def matmul_flops_per_second() -> float:
    """The best rate of float32 products of 1024 x 1024 matrices that MindSpore reaches here, in FLOP/s (about 1 s)."""
    rng = np.random.default_rng(0)
    x, weight = (Tensor(rng.standard_normal((_SIDE, _SIDE)).astype(np.float32) / _SIDE) for _ in range(2))
    products = _Products()
    products(x, weight).asnumpy()
    best = float("inf")
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        products(x, weight).asnumpy()
        best = min(best, time.perf_counter() - start)
    return _REPEATS * 2 * _SIDE**3 / best
