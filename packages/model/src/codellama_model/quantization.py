"""How weights may be kept for prediction, and the making of int8: symmetric, a scale for each group of neighbours.

A row's inputs are cut into groups of `GROUP`, the last of which may be shorter. Activations stay float32. NumPy only.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

WeightDtype = Literal["fp32", "fp16", "int8"]
WEIGHT_DTYPES: tuple[WeightDtype, ...] = ("fp32", "fp16", "int8")
GROUP = 64  # with float16 scales 8.25 bits a weight
_LARGEST = 127  # symmetric: -128 is not used
_SMALLEST_SCALE = np.float16(2.0**-24)  # float16's least positive number


def quantize(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """weight [out, in] -> (numbers int8 [out, in], scales float16 [out, ceil(in / GROUP)]).

    A number times its group's scale is within half a scale of the weight. Scales are rounded up to float16, so that
    this holds for the largest weight of a group too.
    """
    rows, columns = weight.shape
    groups = -(-columns // GROUP)
    padded = weight if columns == groups * GROUP else np.pad(weight, ((0, 0), (0, groups * GROUP - columns)))
    grouped = padded.reshape(rows, groups, GROUP)
    exact = np.maximum(grouped.max(-1), -grouped.min(-1)) / np.float32(_LARGEST)
    scales = np.maximum(exact.astype(np.float16), _SMALLEST_SCALE)
    scales = np.where(scales.astype(np.float32) < exact, np.nextafter(scales, np.float16(np.inf)), scales)
    numbers = np.rint(grouped / scales[..., None].astype(np.float32)).astype(np.int8)
    return np.ascontiguousarray(numbers.reshape(rows, -1)[:, :columns]), scales


def dequantize(numbers: NDArray[np.int8], scales: NDArray[np.float16]) -> NDArray[np.float32]:
    """The weight float32 [out, in] that the network computes with."""
    factors = scales.astype(np.float32).repeat(GROUP, axis=1)[:, : numbers.shape[1]]
    return numbers.astype(np.float32) * factors
