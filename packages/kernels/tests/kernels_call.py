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


def layer(x, positions, cos, sin, keys, values, weights, eps=EPS):
    """The output of `cached_layer`; keys and values are changed in place."""
    out = np.full_like(x, np.nan)
    ordered = [weights[name] for name in oracle.ORDER]
    eps_array = np.array([eps], np.float32)
    status = call("codellama_cached_layer", x, positions, cos, sin, keys, values, *ordered, eps_array, out)
    assert status == 0
    return out


def head(x, last, norm, weight, eps=EPS):
    """(greedy, logits) of `cached_head`."""
    greedy = np.full(len(last), -1, np.int32)
    logits = np.full((len(last), len(weight)), np.nan, np.float32)
    assert call("codellama_cached_head", x, last, norm, weight, np.array([eps], np.float32), greedy, logits) == 0
    return greedy, logits
