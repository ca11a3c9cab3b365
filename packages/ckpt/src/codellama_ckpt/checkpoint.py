"""`Checkpoint`: the tensors of any checkpoint by MindFormers' names, wherever their bytes are.

A reader of one kind of checkpoint only says where each tensor's pieces lie; slicing, assembling and widening are here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from codellama_ckpt.boxes import Box, Shape, box_of, extent, intersection, shifted
from codellama_ckpt.dtypes import BY_NAME, Array, DType, cast_into
from codellama_ckpt.errors import CheckpointError

Kind = Literal["hugging_face", "full", "sharded", "meta", "distributed"]
ReadAs = Literal["float32", "float16", "bfloat16", "stored"]

TRAINING = "training/"  # begins the name of an array that is no parameter but a run's state; see `training_name`
_SCRATCH = 1 << 20  # bytes read at a time where elements must be converted


def training_name(kind: str, parameter: str = "") -> str:
    """The name of an array of training state: `training_name("exp_avg", "lm_head.weight")`, `training_name("rng")`."""
    return f"{TRAINING}{kind}/{parameter}" if parameter else f"{TRAINING}{kind}"


class TensorSource(Protocol):
    """What holds tensors; `TensorFile` is one."""

    def read_into(self, key: str, box: Box, out: Array, at: Sequence[int]) -> None:
        """Read the stored bits of a box (not empty) of tensor `key` into the C-contiguous `out`, from index `at` on."""


@dataclass(frozen=True)
class Piece:
    """A box of a tensor that `source` holds under the name `key`; `file` says where that is, for people."""

    box: Box
    source: TensorSource
    key: str
    file: str


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's element type, its whole shape, and the pieces that tile it."""

    dtype: DType
    shape: Shape
    pieces: tuple[Piece, ...]


class Checkpoint(Collection[str]):
    """A collection of tensor names, each of which can be asked for its shape and type and be read, whole or in part.

    Made by `open_checkpoint`. Nothing but headers is read before `read`; no file is kept open.

    The collection holds the network's parameters. A run's arrays (`training_name`) are beside them: `training_names`
    lists them, and `shape`, `dtype` and `read` take their names too.

    Attributes:
        kind: "hugging_face", "full", "sharded", "meta" or "distributed" (MindFormers' `rank_N` directories).
        path: as it was opened.
        metadata: the text fields that the files carry.
        dropped: names, as the files have them, of tensors that are no parameters (rotary tables of old releases).
        state: what else `save_sharded` was given of a run: step, data position, random state, loss scale.
    """

    def __init__(
        self,
        kind: Kind,
        path: Path,
        tensors: Mapping[str, StoredTensor],
        metadata: Mapping[str, str],
        dropped: tuple[str, ...] = (),
        state: Mapping[str, object] | None = None,
    ) -> None:
        self.kind = kind
        self.path = path
        self.metadata = dict(metadata)
        self.dropped = dropped
        self.state = dict(state or {})
        self._tensors = dict(tensors)
        self._parameters = dict.fromkeys(name for name in tensors if not name.startswith(TRAINING))

    def __contains__(self, name: object) -> bool:
        return name in self._parameters

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def __repr__(self) -> str:
        return f"<{self.kind} checkpoint {self.path}: {len(self)} tensors>"

    def names(self) -> tuple[str, ...]:
        """Names, in the order in which their bytes lie in the files (reading in this order is sequential)."""
        return tuple(self._parameters)

    def training_names(self) -> tuple[str, ...]:
        """Names of the arrays of training state."""
        return tuple(name for name in self._tensors if name not in self._parameters)

    def size(self, name: str) -> int:
        """Bytes of the whole tensor as stored."""
        tensor = self._stored(name)
        return math.prod(tensor.shape) * tensor.dtype.storage.itemsize

    def pieces(self, name: str) -> tuple[Piece, ...]:
        """The pieces that make up a tensor, and what holds each."""
        return self._stored(name).pieces

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
                "float32" and "float16" give that type whatever float type is stored, and "bfloat16" gives its bits as
                uint16 (`from_bfloat16` reads them); where the type is narrower, each value is rounded once, to
                nearest, ties to even. "stored" gives the stored bits: as None, but bfloat16 as uint16.

        Returns:
            A C-contiguous array of its own memory, of the shape selected.

        Raises:
            CheckpointError: an unknown name, impossible slices, a float type asked of an integer tensor, an unreadable
                file.
        """
        tensor, box, cast = self._wanted(name, slices, dtype)
        return _read_stored(tensor, box) if cast is None else _read_cast(tensor, box, cast)

    def blocks(self, name: str, slices: Sequence[slice] | None = None, dtype: ReadAs | None = None) -> Iterator[Array]:
        """What `read` returns, some rows at a time: in little memory, whatever the tensor's size.

        Args and raises: as `read`.

        Yields:
            C-contiguous arrays which, joined along the first dimension, are what `read` returns; of a 0-d tensor, just
            that. They are views of one buffer: the next one overwrites the last.
        """
        tensor, box, cast = self._wanted(name, slices, dtype)
        if not box:
            yield self.read(name, slices, dtype)
            return
        buffer: Array = np.empty(0, (cast or tensor.dtype).storage)
        for part, stored in _stored_rows(tensor, box):
            if cast is None:
                yield stored
                continue
            if buffer.size < stored.size:
                buffer = np.empty(stored.size, cast.storage)
            out = buffer[: stored.size].reshape(extent(part))
            cast_into(out, stored, tensor.dtype, cast)
            yield out

    def _wanted(
        self, name: str, slices: Sequence[slice] | None, dtype: ReadAs | None
    ) -> tuple[StoredTensor, Box, DType | None]:
        """A tensor, the box of it that `slices` selects, and what to cast it to (None: nothing to cast)."""
        tensor = self._stored(name)
        try:
            box = box_of(slices, tensor.shape)
        except ValueError as error:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} {list(tensor.shape)} has no such slice: {error}"
            ) from None
        if dtype not in (None, "float32", "float16", "bfloat16", "stored"):
            raise CheckpointError(
                f"a tensor is read as None, 'float32', 'float16', 'bfloat16' or 'stored', found {dtype!r}"
            )
        if dtype is None:
            dtype = "float32" if tensor.dtype.name == "bfloat16" else "stored"
        if dtype in ("stored", tensor.dtype.name):
            return tensor, box, None
        if not tensor.dtype.is_float:
            raise CheckpointError(f"{self.path}: tensor {name!r} is {tensor.dtype.name}, which is not read as {dtype}")
        return tensor, box, BY_NAME[dtype]

    def check(
        self, expected: Mapping[str, Sequence[int]], tied: bool = False, what: str = "the network"
    ) -> tuple[str, ...]:
        """Compare names and shapes with those a network expects.

        Args:
            expected: shape of every parameter, by MindFormers' name.
            tied: the network's output projection is its embedding, so a surplus `lm_head.weight` is no fault.
            what: expects this, for the message.

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
            raise CheckpointError(f"{self.path} does not fit {what}: {text}")
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


def _read_cast(tensor: StoredTensor, box: Box, dtype: DType) -> Array:
    out: Array = np.empty(extent(box), dtype.storage)
    if not out.ndim:
        cast_into(out, _read_stored(tensor, box), tensor.dtype, dtype)
        return out
    first = box[0][0]
    for part, stored in _stored_rows(tensor, box):
        start, stop = part[0]
        cast_into(out[start - first : stop - first], stored, tensor.dtype, dtype)
    return out


def _stored_rows(tensor: StoredTensor, box: Box) -> Iterator[tuple[Box, Array]]:
    """A box with dimensions, some rows at a time: each part's box and its stored bits, in a buffer used again."""
    (start, stop), inner = box[0], box[1:]
    sizes = extent(inner)
    row = max(1, math.prod(sizes) * tensor.dtype.storage.itemsize)
    rows = max(1, _SCRATCH // row)
    scratch: Array = np.empty((min(rows, stop - start), *sizes), tensor.dtype.storage)
    for first in range(start, stop, rows):
        last = min(first + rows, stop)
        part = ((first, last), *inner)
        stored = scratch[: last - first]
        _fill(stored, tensor, part)
        yield part, stored
