"""Random weights that are the same numbers on every mesh, drawn slice by slice.

Each row of a parameter has a stream of its own: Philox (Salmon et al. 2011), keyed by the seed and the parameter's
name, its counter starting at the row's number. So any rank draws the rows it holds, alone, and never a whole parameter.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from codellama_parallel.plan import Box

_COUNTER_WORDS = 4  # of 64 bits; the row stands in the last, so two rows' streams are 2^192 numbers apart


def normal_slice(name: str, shape: tuple[int, ...], box: Box, deviation: float, seed: int) -> NDArray[np.float32]:
    """The slice `box` of a parameter whose numbers are independent and normal, with mean 0 and this deviation.

    Args:
        name: the parameter's name.
        shape: of the whole parameter, one or two dimensions. A slice by columns is cut from whole rows.
        box: [begin, end) of every dimension.
        deviation: standard deviation.
        seed: of the run.
    """
    key = np.frombuffer(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], np.uint64)
    (begin, end), *rest = box
    (columns,) = rest or ((0, 1),)
    length = shape[1] if rest else 1
    rows = np.empty((end - begin, columns[1] - columns[0]), np.float32)
    counter = np.zeros(_COUNTER_WORDS, np.uint64)
    for row in range(begin, end):
        counter[-1] = row
        stream = np.random.Generator(np.random.Philox(key=key, counter=counter))
        rows[row - begin] = stream.standard_normal(length, np.float32)[slice(*columns)]
    rows *= np.float32(deviation)
    return rows if rest else rows[:, 0]
