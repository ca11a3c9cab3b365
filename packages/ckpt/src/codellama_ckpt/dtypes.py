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
    flat = np.ascontiguousarray(values).reshape(-1).view(np.uint32)
    bits: NDArray[np.uint16] = np.empty(flat.shape, np.uint16)
    for first in range(0, flat.size, _BLOCK):
        block = flat[first : first + _BLOCK]
        rounded = (block + (((block >> 16) & 1) + np.uint32(0x7FFF))) >> 16
        # Rounding would carry a NaN's payload into infinity or the sign; cut it and keep it quiet instead.
        is_nan = (block & 0x7FFFFFFF) > 0x7F800000
        bits[first : first + _BLOCK] = np.where(is_nan, (block >> 16) | 0x40, rounded)
    return bits.reshape(values.shape)


def from_bfloat16(bits: Array) -> NDArray[np.float32]:
    """Bits of bfloat16 (uint16, any shape) -> the same values as float32, exactly."""
    if bits.dtype != np.uint16:
        raise CheckpointError(f"the bits of bfloat16 are uint16, found {bits.dtype}")
    values: NDArray[np.float32] = np.empty(bits.shape, np.float32)
    widen_into(values, bits, BY_NAME["bfloat16"])
    return values


def widen_into(out: Array, stored: Array, dtype: DType) -> None:
    """Write `stored` (the storage array of `dtype`) into the float32 array `out` of the same shape, in one pass."""
    if dtype.name == "bfloat16":
        np.left_shift(stored, 16, out=out.view(np.uint32), dtype=np.uint32)
    else:
        np.copyto(out, stored, casting="same_kind")
