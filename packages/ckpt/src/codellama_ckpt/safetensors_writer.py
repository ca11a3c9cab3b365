"""Writing one safetensors file tensor by tensor.

The header comes first and needs only names, types and shapes, so no two tensors are ever in memory together.
"""

from __future__ import annotations

import json
import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from codellama_ckpt.boxes import Shape
from codellama_ckpt.dtypes import Array, dtype_named, flat_bytes
from codellama_ckpt.errors import CheckpointError
from codellama_ckpt.files import atomic_file, reported, write_all


class TensorEntry(NamedTuple):
    """One tensor to write.

    Attributes:
        name: in the file.
        dtype: name of the element type, such as "float32" or "bfloat16".
        shape: of the tensor.
        load: called once, when it is this tensor's turn; returns an array of exactly this shape and of the type that
            holds `dtype` (for bfloat16: its bits as uint16, see `to_bfloat16`).
    """

    name: str
    dtype: str
    shape: Shape
    load: Callable[[], Array]


def write_safetensors(
    path: str | os.PathLike[str],
    entries: Iterable[TensorEntry | tuple[str, str, Shape, Callable[[], Array]]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file, one tensor in memory at a time; the file appears whole or not at all.

    Wider element types come first, so that every tensor is aligned; otherwise the order is that of `entries`.

    Args:
        path: of the file; its directory must exist, a file already there is replaced.
        entries: what to write; see `TensorEntry`.
        metadata: free text fields of the header.

    Raises:
        CheckpointError: a name given twice, an array that is not what its entry promised, or a failing write (no
            space). Whatever a `load` raises comes through. In every case `path` is as it was.
    """
    path = Path(path)
    ordered = sorted((TensorEntry(*entry) for entry in entries), key=_by_width)
    header = _header(path, ordered, metadata or {})
    with atomic_file(path) as descriptor:
        with reported(f"write {path}"):
            write_all(descriptor, memoryview(header))
        for entry in ordered:
            array = promised_array(entry, path)
            with reported(f"write {path}"):
                write_all(descriptor, flat_bytes(array))
            del array  # before the next one is loaded


def promised_array(entry: TensorEntry, path: Path) -> Array:
    """What the entry's `load` returns, C-contiguous and little endian; CheckpointError if it was promised otherwise."""
    array = entry.load()
    storage = dtype_named(entry.dtype).storage
    if array.dtype.name != storage.name or array.shape != tuple(entry.shape):
        raise CheckpointError(
            f"{path}: tensor {entry.name!r} was announced as {storage.name} {list(entry.shape)} for {entry.dtype}, "
            f"its load returned {array.dtype.name} {list(array.shape)}"
        )
    return np.asarray(array, dtype=storage, order="C")


def _by_width(entry: TensorEntry) -> int:
    return -dtype_named(entry.dtype).storage.itemsize


def _header(path: Path, entries: list[TensorEntry], metadata: Mapping[str, str]) -> bytes:
    fields: dict[str, object] = {}
    if metadata:
        if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
            raise CheckpointError(
                f"cannot write {path}: metadata must map strings to strings, found {dict(metadata)!r:.200}"
            )
        fields["__metadata__"] = dict(metadata)
    end = 0
    for entry in entries:
        if entry.name in fields or entry.name == "__metadata__":
            raise CheckpointError(f"cannot write {path}: the name {entry.name!r} is taken")
        dtype, shape = dtype_named(entry.dtype), [operator.index(size) for size in entry.shape]
        begin, end = end, end + math.prod(shape) * dtype.storage.itemsize
        fields[entry.name] = {"dtype": dtype.code, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)  # the tensors' bytes start aligned
    return len(text).to_bytes(8, "little") + text
