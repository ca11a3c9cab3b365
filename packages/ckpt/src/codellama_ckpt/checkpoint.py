"""`Checkpoint`: the tensors of any checkpoint by MindFormers' names, wherever their bytes are.

A reader of one kind of checkpoint only says where each tensor's pieces lie; slicing, assembling and widening are here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from codellama_ckpt.boxes import Box, Shape, box_of, extent, intersection, shifted
from codellama_ckpt.dtypes import Array, DType, widen_into
from codellama_ckpt.errors import CheckpointError

Kind = Literal["hugging_face", "full", "sharded"]
ReadAs = Literal["float32", "stored"]

_SCRATCH = 1 << 22  # bytes read at a time where elements must be widened


class TensorSource(Protocol):
    """A file that holds tensors; `SafetensorsFile` is one."""

    def read_into(self, key: str, box: Box, out: Array, at: Sequence[int]) -> None:
        """Read the stored bits of a box (not empty) of tensor `key` into the C-contiguous `out`, from index `at` on."""


@dataclass(frozen=True)
class Piece:
    """A box of a tensor that `source` holds under the name `key`."""

    box: Box
    source: TensorSource
    key: str


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's element type, its whole shape, and the pieces that tile it."""

    dtype: DType
    shape: Shape
    pieces: tuple[Piece, ...]


class Checkpoint(Collection[str]):
    """A collection of tensor names, each of which can be asked for its shape and type and be read, whole or in part.

    Made by `open_checkpoint`. Nothing but headers is read before `read`; no file is kept open.

    Attributes:
        kind: "hugging_face", "full" or "sharded".
        path: as it was opened.
        metadata: the text fields that the files carry.
        dropped: names, as the files have them, of tensors that are no parameters (rotary tables of old releases).
    """

    def __init__(
        self,
        kind: Kind,
        path: Path,
        tensors: Mapping[str, StoredTensor],
        metadata: Mapping[str, str],
        dropped: tuple[str, ...] = (),
    ) -> None:
        self.kind = kind
        self.path = path
        self.metadata = dict(metadata)
        self.dropped = dropped
        self._tensors = dict(tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"<{self.kind} checkpoint {self.path}: {len(self)} tensors>"

    def names(self) -> tuple[str, ...]:
        """Names, in the order in which their bytes lie in the files (reading in this order is sequential)."""
        return tuple(self._tensors)

    def shape(self, name: str) -> Shape:
        """Shape of the whole tensor."""
        return self._stored(name).shape

    def dtype(self, name: str) -> str:
        """Element type as stored: "float32", "float16", "bfloat16", "int64", ..."""
        return self._stored(name).dtype.name

    def read(self, name: str, slices: Sequence[slice] | None = None, dtype: ReadAs | None = None) -> Array:
        """Read a tensor, or the part of it that `slices` selects, into a new array.

        Only the bytes of that part are read, straight into the array that is returned.

        Args:
            name: MindFormers' name.
            slices: as in NumPy, at most one a dimension, without steps; None reads everything.
            dtype: None gives the values in the stored type, and bfloat16, which NumPy lacks, exactly as float32.
                "float32" gives float32 whatever float type is stored (exact from float16 and bfloat16, rounded from
                float64). "stored" gives the stored bits: as None, but bfloat16 as uint16 (`from_bfloat16` reads them).

        Returns:
            A C-contiguous array of its own memory, of the shape selected.

        Raises:
            CheckpointError: an unknown name, impossible slices, float32 asked of an integer tensor, an unreadable file.
        """
        tensor = self._stored(name)
        try:
            box = box_of(slices, tensor.shape)
        except ValueError as error:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} {list(tensor.shape)} has no such slice: {error}"
            ) from None
        if dtype not in (None, "float32", "stored"):
            raise CheckpointError(f"a tensor is read as None, 'float32' or 'stored', found {dtype!r}")
        if dtype == "float32" and not tensor.dtype.is_float:
            raise CheckpointError(f"{self.path}: tensor {name!r} is {tensor.dtype.name}, which is not read as float32")
        as_values = dtype == "float32" or (dtype is None and tensor.dtype.name == "bfloat16")
        if as_values and tensor.dtype.name != "float32":
            return _read_widened(tensor, box)
        return _read_stored(tensor, box)

    def check(self, expected: Mapping[str, Sequence[int]], tied: bool = False) -> tuple[str, ...]:
        """Compare names and shapes with those a network expects.

        Args:
            expected: shape of every parameter, by MindFormers' name.
            tied: the network's output projection is its embedding, so a surplus `lm_head.weight` is no fault.

        Returns:
            Names here that such a network leaves unread: `("lm_head.weight",)` or `()`.

        Raises:
            CheckpointError: one error that lists all missing, surplus and misshapen tensors.
        """
        surplus = [name for name in self if name not in expected]
        unread = tuple(name for name in surplus if tied and name == "lm_head.weight")
        faults = [
            ("missing", [name for name in expected if name not in self]),
            ("surplus", [name for name in surplus if name not in unread]),
            (
                "of another shape",
                [
                    f"{name} (found {list(self.shape(name))}, expected {list(shape)})"
                    for name, shape in expected.items()
                    if name in self and self.shape(name) != tuple(shape)
                ],
            ),
        ]
        if any(names for _, names in faults):
            text = "; ".join(f"{len(names)} {fault}: {', '.join(names)}" for fault, names in faults if names)
            raise CheckpointError(f"{self.path} does not fit the network: {text}")
        return unread

    def _stored(self, name: str) -> StoredTensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.path} has no tensor {name!r} among its {len(self)}") from None


def _read_stored(tensor: StoredTensor, box: Box) -> Array:
    out: Array = np.empty(extent(box), tensor.dtype.storage)
    _fill(out, tensor, box)
    return out


def _fill(out: Array, tensor: StoredTensor, box: Box) -> None:
    """Read a box of a tensor into an array of the box's shape."""
    for piece in tensor.pieces:
        common = intersection(piece.box, box)
        if common is not None:
            local = shifted(common, [start for start, _ in piece.box])
            at = [start - first for (start, _), (first, _) in zip(common, box, strict=True)]
            piece.source.read_into(piece.key, local, out, at)


def _read_widened(tensor: StoredTensor, box: Box) -> Array:
    out: Array = np.empty(extent(box), np.float32)
    if not out.ndim:
        widen_into(out, _read_stored(tensor, box), tensor.dtype)
        return out
    # A few rows at a time: the stored bits never take the memory of the whole tensor beside the result.
    (start, stop), inner = box[0], box[1:]
    row = max(1, out[:1].size * tensor.dtype.storage.itemsize)
    rows = max(1, _SCRATCH // row)
    scratch: Array = np.empty((min(rows, stop - start), *extent(inner)), tensor.dtype.storage)
    for first in range(start, stop, rows):
        last = min(first + rows, stop)
        part = scratch[: last - first]
        _fill(part, tensor, ((first, last), *inner))
        widen_into(out[first - start : last - start], part, tensor.dtype)
    return out
