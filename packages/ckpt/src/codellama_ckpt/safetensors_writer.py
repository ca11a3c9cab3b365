"""Writing one safetensors file tensor by tensor.

The header comes first and needs only names, types and shapes, so no two tensors are ever in memory together. The
checksums in it have a fixed width and are filled in last.
"""

from __future__ import annotations

import json
import math
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from codellama_ckpt.boxes import Shape
from codellama_ckpt.dtypes import Array, dtype_named, flat_bytes
from codellama_ckpt.errors import CheckpointError
from codellama_ckpt.files import atomic_file, reported
from codellama_ckpt.output import Output
from codellama_ckpt.safetensors_file import CHECKSUMS, CHECKSUMS_OF, NO_CHECKSUM, checksum

_LENGTH = 8  # bytes of the header's length


class TensorEntry(NamedTuple):
    """One tensor to write.

    Attributes:
        name: in the file.
        dtype: name of the element type, such as "float32" or "bfloat16".
        shape: of the tensor.
        load: called once, when it is this tensor's turn; returns an array of exactly this shape and of the type that
            holds `dtype` (for bfloat16: its bits as uint16, see `to_bfloat16`), or an iterator of arrays that make it
            up, joined along the first dimension. Each is written before the next is asked for.
    """

    name: str
    dtype: str
    shape: Shape
    load: Callable[[], Array | Iterator[Array]]


def write_safetensors(
    path: str | os.PathLike[str],
    entries: Iterable[TensorEntry | tuple[str, str, Shape, Callable[[], Array]]],
    metadata: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Write a safetensors file, one tensor in memory at a time; the file appears whole or not at all.

    Wider element types come first, so that every tensor is aligned; otherwise the order is that of `entries`.

    Args:
        path: of the file; its directory must exist, a file already there is replaced.
        entries: what to write; see `TensorEntry`.
        metadata: free text fields of the header.

    Returns:
        The crc32 of every tensor's bytes, by name. The file carries them too.

    Raises:
        CheckpointError: a name given twice, an array that is not what its entry promised, or a failing write (no
            space). Whatever a `load` raises comes through. In every case `path` is as it was.
    """
    path = Path(path)
    ordered = sorted((TensorEntry(*entry) for entry in entries), key=_by_width)
    sums = dict.fromkeys((entry.name for entry in ordered), NO_CHECKSUM)
    header = _header(path, ordered, metadata or {}, sums)
    with atomic_file(path) as descriptor:
        with Output(descriptor, path) as output:
            output.write(memoryview(header))
            for entry in ordered:
                sums[entry.name] = _write_tensor(output, entry, path)
        header = _header(path, ordered, metadata or {}, sums)
        with reported(f"write {path}"):
            os.pwrite(descriptor, _header(path, ordered, metadata or {}, sums, checksum(header[_LENGTH:])), 0)
    return sums


def promised_content(entry: TensorEntry, path: Path) -> Iterator[memoryview]:
    """The bytes of what the entry's `load` returns, little endian; CheckpointError if it was promised otherwise."""
    storage, shape = dtype_named(entry.dtype).storage, tuple(entry.shape)
    promised = shape[0] if shape else 1
    found, rows = "nothing", 0
    loaded = entry.load()
    for array in loaded if isinstance(loaded, Iterator) else (np.asarray(loaded),):
        rows += len(array) if array.ndim else 1
        found = f"{array.dtype.name} {[rows, *array.shape[1:]] if array.ndim else []}"
        alike = array.dtype.name == storage.name and array.ndim == len(shape) and array.shape[1:] == shape[1:]
        if not alike or rows > promised:
            break
        yield flat_bytes(np.asarray(array, dtype=storage, order="C"))
    else:
        if rows == promised:
            return
    raise CheckpointError(
        f"{path}: tensor {entry.name!r} was announced as {storage.name} {list(shape)} for {entry.dtype}, "
        f"its load returned {found}"
    )


def _write_tensor(output: Output, entry: TensorEntry, path: Path) -> str:
    """Write one tensor's bytes; their checksum. What was loaded is let go on return, before the next one is."""
    crc = 0
    for content in promised_content(entry, path):
        crc = output.write(content, crc)
    return f"{crc:08x}"


def _by_width(entry: TensorEntry) -> int:
    return -dtype_named(entry.dtype).storage.itemsize


def _header(
    path: Path,
    entries: list[TensorEntry],
    metadata: Mapping[str, str],
    sums: Mapping[str, str],
    own: str = NO_CHECKSUM,
) -> bytes:
    """Length and text of the header, with the checksums of the tensors and of the header itself in its metadata."""
    if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
        raise CheckpointError(
            f"cannot write {path}: metadata must map strings to strings, found {dict(metadata)!r:.200}"
        )
    checksums = {CHECKSUMS: " ".join((own, *sums.values())), CHECKSUMS_OF[0]: CHECKSUMS_OF[1]}
    fields: dict[str, object] = {"__metadata__": {**metadata, **checksums}}
    end = 0
    for entry in entries:
        if entry.name in fields:
            raise CheckpointError(f"cannot write {path}: the name {entry.name!r} is taken")
        dtype, shape = dtype_named(entry.dtype), [operator.index(size) for size in entry.shape]
        begin, end = end, end + math.prod(shape) * dtype.storage.itemsize
        fields[entry.name] = {"dtype": dtype.code, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)  # the tensors' bytes start aligned
    return len(text).to_bytes(_LENGTH, "little") + text
