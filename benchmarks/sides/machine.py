"""What this machine can do at best, measured: bytes read from memory and float32 matrix products, a second each.

python machine.py          measures with torch, in an environment that has it: one JSON object
"""

import json
import time
from collections.abc import Callable

SIDE = 2048  # of the squares whose product is timed
BYTES = 1 << 30  # read from memory: more than the processor's caches hold
_ROUNDS = 5


def best_seconds(work: Callable[[], object]) -> float:
    """Of `_ROUNDS` calls, the shortest."""
    best = float("inf")
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def product_rate() -> float:
    """FLOP/s of NumPy's float32 matrix product."""
    import numpy as np  # noqa: PLC0415  (each side has its own library)

    square = np.ones((SIDE, SIDE), np.float32)
    return 2.0 * SIDE**3 / best_seconds(lambda: square @ square)


def torch_product_rate(kind: str = "float32") -> float:
    """FLOP/s of torch's product of matrices of a type."""
    import torch  # noqa: PLC0415

    square = torch.ones(SIDE, SIDE, dtype=getattr(torch, kind))
    return 2.0 * SIDE**3 / best_seconds(lambda: square @ square)


def torch_read_rate() -> float:
    """Bytes/s that torch's product of a large matrix and a vector reads."""
    import torch  # noqa: PLC0415

    matrix = torch.ones(BYTES // 4 >> 13, 1 << 13)
    vector = torch.ones(matrix.shape[1])
    return BYTES / best_seconds(lambda: matrix @ vector)


if __name__ == "__main__":
    print(
        json.dumps(
            {
                "product_rate": torch_product_rate(),
                "bfloat16_product_rate": torch_product_rate("bfloat16"),
                "read_rate": torch_read_rate(),
            }
        )
    )
