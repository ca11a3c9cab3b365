"""Element types: their names here, their codes in safetensors files, how NumPy holds them, and bfloat16.

NumPy has no bfloat16. Its bits travel as `uint16`, its values as `float32` (every bfloat16 is a float32 whose lower
half is zero), and nothing here guesses which of the two an array is: the caller's dtype name says it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from codellama_ckpt.errors import CheckpointError

# The element type of an array is data in this package (files name it), so no static parameter can.
Array = NDArray[Any]


class DType(NamedTuple):
    """One element type: `name` ("float32"), `code` in safetensors ("F32"), and the NumPy type that holds its bits."""

    name: str
    code: str
    storage: np.dtype[Any]

    @property
    def is_float(self) -> bool:
        return self.code[0] in "FB" and self.code != "BOOL"


# Little endian throughout, as safetensors is.
_TABLE = tuple(
    DType(name, code, np.dtype(storage))
    for name, code, storage in (
        ("float64", "F64", "<f8"),
        ("float32", "F32", "<f4"),
        ("float16", "F16", "<f2"),
        ("bfloat16", "BF16", "<u2"),
        ("int64", "I64", "<i8"),
        ("int32", "I32", "<i4"),
        ("int16", "I16", "<i2"),
        ("int8", "I8", "i1"),
        ("uint64", "U64", "<u8"),
        ("uint32", "U32", "<u4"),
        ("uint16", "U16", "<u2"),
        ("uint8", "U8", "u1"),
        ("bool", "BOOL", "?"),
    )
)
BY_NAME = {dtype.name: dtype for dtype in _TABLE}
BY_CODE = {dtype.code: dtype for dtype in _TABLE}

_BLOCK = 1 << 18  # elements converted at a time: 1 MiB of float32, so that the temporaries stay in the cache


def dtype_named(name: str) -> DType:
    """The element type called `name`; CheckpointError for a name that checkpoints do not hold."""
    try:
        return BY_NAME[name]
    except KeyError:
        raise CheckpointError(f"unknown dtype {name!r}; known are {', '.join(BY_NAME)}") from None


def flat_bytes(array: Array) -> memoryview:
    """The bytes of a C-contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8).data


def to_bfloat16(values: Array) -> NDArray[np.uint16]:
    """float32 values of any shape -> the bits of the nearest bfloat16 (ties to even; a NaN stays a NaN), same shape."""
    if values.dtype != np.float32:
        raise CheckpointError(f"bfloat16 is made from float32, found {values.dtype}")
    bits: NDArray[np.uint16] = np.empty(values.shape, np.uint16)
    cast_into(bits, values, BY_NAME["float32"], BY_NAME["bfloat16"])
    return bits


def from_bfloat16(bits: Array) -> NDArray[np.float32]:
    """Bits of bfloat16 (uint16, any shape) -> the same values as float32, exactly."""
    if bits.dtype != np.uint16:
        raise CheckpointError(f"the bits of bfloat16 are uint16, found {bits.dtype}")
    values: NDArray[np.float32] = np.empty(bits.shape, np.float32)
    cast_into(values, bits, BY_NAME["bfloat16"], BY_NAME["float32"])
    return values


def cast_into(out: Array, stored: Array, source: DType, target: DType) -> None:
    """Write the values of `stored` into `out`, each rounded once to the nearest value of the target type.

    Ties go to even, a NaN stays a NaN, and what is beyond the target's range becomes infinite, as IEEE 754 has it.

    Args:
        out: C-contiguous, of the storage type of `target`.
        stored: of the storage type of `source` and of the same shape.
        source: a float type.
        target: a float type.
    """
    if source == target:
        np.copyto(out, stored)
        return
    flat_out, flat = out.reshape(-1), np.ascontiguousarray(stored).reshape(-1)
    for first in range(0, flat.size, _BLOCK):
        _cast_block(flat_out[first : first + _BLOCK], flat[first : first + _BLOCK], source, target)


def _cast_block(out: Array, values: Array, source: DType, target: DType) -> None:
    if source.name == "bfloat16":
        if target.name == "float32":
            np.left_shift(values, 16, out=out.view(np.uint32), dtype=np.uint32)
            return
        values = np.left_shift(values, 16, dtype=np.uint32).view(np.float32)
    if target.name == "bfloat16":
        _round_to_bfloat16(out, _to_odd_float32(values) if values.dtype == np.float64 else values.astype(np.float32))
        return
    with np.errstate(over="ignore"):  # infinity is the rounded value; who minds looks at the result
        np.copyto(out, values, casting="same_kind")


def _round_to_bfloat16(out: Array, values: NDArray[np.float32]) -> None:
    bits = values.view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    # Rounding would carry a NaN's payload into infinity or the sign; cut it and keep it quiet instead.
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    out[...] = np.where(is_nan, (bits >> 16) | 0x40, rounded)


def _to_odd_float32(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """float64 -> float32 rounded to odd: whatever was lost shows in the last bit, so that rounding again is right."""
    with np.errstate(over="ignore"):
        nearest = values.astype(np.float32)
    inexact_and_even = (nearest != values) & ((nearest.view(np.uint32) & 1) == 0) & ~np.isnan(values)
    toward = np.where(nearest < values, np.float32(np.inf), np.float32(-np.inf))
    return np.where(inexact_and_even, np.nextafter(nearest, toward), nearest)
