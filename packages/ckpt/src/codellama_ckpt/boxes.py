"""Boxes within a tensor: what slices select, what two boxes share, and the contiguous runs that make one up.

A box is `((start, stop), ...)`, one pair a dimension, 0 <= start <= stop; `()` is the whole of a 0-d tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Shape = tuple[int, ...]
Box = tuple[tuple[int, int], ...]


def whole(shape: Shape) -> Box:
    """The box that is all of a tensor."""
    return tuple((0, size) for size in shape)


def extent(box: Box) -> Shape:
    """Shape of what a box selects."""
    return tuple(stop - start for start, stop in box)


def box_of(slices: Sequence[slice] | None, shape: Shape) -> Box:
    """What `array[slices]` selects of an array of this shape, by NumPy's rules for negative, open and too large bounds.

    Args:
        slices: at most one a dimension, without a step; dimensions not mentioned are whole; None means everything.
        shape: of the tensor.

    Raises:
        ValueError: more slices than dimensions, a step other than 1, or something that is no slice.
    """
    if slices is None:
        return whole(shape)
    if len(slices) > len(shape):
        raise ValueError(f"{len(slices)} slices for {len(shape)} dimensions")
    box = []
    for part, size in zip(slices, shape, strict=False):  # dimensions beyond the slices are whole
        if not isinstance(part, slice):
            raise ValueError(f"{part!r} is not a slice")
        start, stop, step = part.indices(size)
        if step != 1:
            raise ValueError(f"{part!r} has a step; only runs of neighbours are read")
        box.append((start, max(start, stop)))
    return tuple(box) + whole(shape[len(box) :])


def intersection(a: Box, b: Box) -> Box | None:
    """What two boxes of one tensor share, or None where that is nothing."""
    common = tuple((max(a0, b0), min(a1, b1)) for (a0, a1), (b0, b1) in zip(a, b, strict=True))
    return common if all(start < stop for start, stop in common) else None


def shifted(box: Box, origin: Sequence[int]) -> Box:
    """The same box, counted from `origin`."""
    return tuple((start - first, stop - first) for (start, stop), first in zip(box, origin, strict=True))


def tiling_fault(boxes: Sequence[Box], shape: Shape) -> str | None:
    """Why the boxes do not cover a tensor of this shape exactly once, in a few words; None when they do."""
    for box in boxes:
        if len(box) != len(shape) or any(stop > size for (_, stop), size in zip(box, shape, strict=True)):
            return f"a slice {text_of(box)} reaches outside of the shape {list(shape)}"
    filled = [box for box in boxes if math.prod(extent(box))]
    if shape and len(filled) > 1:
        bounds = np.array(filled)  # (boxes, dimensions, 2)
        for first, box in enumerate(bounds[:-1]):  # one against all others: memory for one row, however many there are
            others = bounds[first + 1 :]
            overlaps = np.maximum(box[:, 0], others[:, :, 0]) < np.minimum(box[:, 1], others[:, :, 1])
            if (both := overlaps.all(axis=1)).any():
                second = first + 1 + int(both.argmax())
                return f"its slices {text_of(filled[first])} and {text_of(filled[second])} overlap"
    elif len(filled) > 1:
        return f"it is held {len(filled)} times"
    held, needed = sum(math.prod(extent(box)) for box in filled), math.prod(shape)
    if held != needed or not boxes:
        return f"its slices hold {held:,} of its {needed:,} elements"
    return None


def runs(source: Shape, box: Box, target: Shape, at: Sequence[int]) -> tuple[int, list[int], list[int]]:
    """The contiguous runs by which a box is copied between two C-contiguous arrays.

    Args:
        source: shape of the array copied from.
        box: what is copied of it; not empty.
        target: shape of the array copied into.
        at: where the box's first element goes in the target, one index a dimension.

    Returns:
        Elements in each run, and for each run the flat index of its first element in the source and in the target.
    """
    sizes = extent(box)
    # A run spans the trailing dimensions that the box fills in both arrays, and its part of the dimension before them.
    axis = len(sizes)
    length = 1
    while axis > 0:
        axis -= 1
        length *= sizes[axis]
        if not sizes[axis] == source[axis] == target[axis]:
            break
    offsets = []
    for shape, origin in ((source, [start for start, _ in box]), (target, list(at))):
        strides = [math.prod(shape[dimension + 1 :]) for dimension in range(len(shape))]
        first = np.array([sum(i * stride for i, stride in zip(origin, strides, strict=True))], np.int64)
        for size, stride in zip(sizes[:axis], strides[:axis], strict=True):
            first = (first[:, None] + np.arange(size, dtype=np.int64) * stride).reshape(-1)
        offsets.append(first.tolist())
    return length, offsets[0], offsets[1]


def text_of(box: Box) -> str:
    """`[0:2, 0:8]`."""
    return "[" + ", ".join(f"{start}:{stop}" for start, stop in box) + "]"
