"""Calls the library's functions on NumPy arrays, as the engine would: fast enough for hundreds of random cases."""

from __future__ import annotations

import ctypes

import kernels_oracle as oracle
import numpy as np
from codellama_kernels.library import LIBRARY
from numpy.typing import NDArray

EPS = 1e-5


def call(function: str, *arrays: NDArray) -> int:
    """The function's status; 0 is success."""
    count = len(arrays)
    assert all(array.flags.c_contiguous for array in arrays)
    shapes = [(ctypes.c_int64 * array.ndim)(*array.shape) for array in arrays]
    pointer = ctypes.POINTER(ctypes.c_int64)
    return getattr(ctypes.CDLL(str(LIBRARY)), function)(
        count,
        (ctypes.c_void_p * count)(*(array.ctypes.data for array in arrays)),
        (ctypes.c_int * count)(*(array.ndim for array in arrays)),
        (pointer * count)(*(ctypes.cast(shape, pointer) for shape in shapes)),
        (ctypes.c_char_p * count)(*(str(array.dtype).encode() for array in arrays)),
        None,
        None,
    )


def layer(x, positions, cos, sin, keys, values, weights, eps=EPS, scales=(), function="cached_layers"):
    """The output of `cached_layers` with one layer; keys and values are changed in place."""
    return layers(x, positions, cos, sin, [(keys, values, weights, scales)], eps, function)


def layers(x, positions, cos, sin, of_each, eps=EPS, function="cached_layers"):
    """The output of `cached_layers`; of_each: (keys, values, weights, scales in the order of the matrices)."""
    out = np.full_like(x, np.nan)
    arguments = [x, positions, cos, sin, np.array([eps], np.float32)]
    for keys, values, weights, scales in of_each:
        arguments += [*(weights[name] for name in oracle.ORDER), keys, values, *scales]
    assert call(f"codellama_{function}", *arguments, out) == 0
    return out


def head(x, last, norm, weight, eps=EPS, scales=()):
    """(greedy, logits) of `cached_head`."""
    greedy = np.full(len(last), -1, np.int32)
    logits = np.full((len(last), len(weight)), np.nan, np.float32)
    arguments = (x, last, norm, weight, np.array([eps], np.float32), *scales, greedy, logits)
    assert call("codellama_cached_head", *arguments) == 0
    return greedy, logits
