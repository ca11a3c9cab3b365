"""`index.json` of a sharded checkpoint: every tensor's type, whole shape and slices, and which file holds each.

```json
{"format": "codellama-sharded", "version": 1, "save": "step_000030.7f3a", "metadata": {"step": "30"},
 "state": {"step": 30, "loss_scale": 65536.0},
 "files": {"part_00000_of_00002.safetensors": 4312, "part_00001_of_00002.safetensors": 4312},
 "tensors": {"lm_head.weight": {"dtype": "float32", "shape": [32, 8], "slices": [
   {"file": "part_00000_of_00002.safetensors", "box": [[0, 16], [0, 8]], "bytes": 512, "crc32": "1c291ca3"}, ...]}}}
```

A file's number is its size in bytes; `box` is `[start, stop]` in each dimension; `crc32` is of the slice's bytes,
row-major and little endian. `state` is any JSON object: what a run needs to go on. `save` names the act of saving and
stands in the header of every file, so that files of two saves are never taken for one checkpoint.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from codellama_ckpt import json_text
from codellama_ckpt.boxes import Box, Shape, extent, tiling_fault
from codellama_ckpt.dtypes import dtype_named
from codellama_ckpt.errors import CheckpointError

FORMAT = "codellama-sharded"
VERSION = 1
INDEX = "index.json"
COMPLETE = "COMPLETE"  # holds the crc32 of the index

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class SliceRecord:
    """One slice of a tensor: the file that holds it (under the tensor's name), its box, its size and its checksum."""

    file: str
    box: Box
    bytes: int
    crc32: str


@dataclass(frozen=True)
class TensorRecord:
    """One tensor: its element type's name, its whole shape, and the slices that tile it."""

    dtype: str
    shape: Shape
    slices: tuple[SliceRecord, ...]


@dataclass(frozen=True)
class Index:
    """The index of a sharded checkpoint, or of one writer's part of it."""

    save: str
    metadata: dict[str, str]
    state: dict[str, object]
    files: dict[str, int]
    tensors: dict[str, TensorRecord]

    def to_json(self) -> bytes:
        """The index as the file has it."""
        tensors = {
            name: {
                "dtype": tensor.dtype,
                "shape": tensor.shape,
                "slices": [
                    {"file": piece.file, "box": piece.box, "bytes": piece.bytes, "crc32": piece.crc32}
                    for piece in tensor.slices
                ],
            }
            for name, tensor in self.tensors.items()
        }
        content = {
            "format": FORMAT,
            "version": VERSION,
            "save": self.save,
            "metadata": self.metadata,
            "state": self.state,
            "files": self.files,
            "tensors": tensors,
        }
        text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
        return text.encode("utf-8")

    def check_tiling(self, where: Path) -> None:
        """CheckpointError unless every tensor's slices cover it exactly once."""
        for name, tensor in self.tensors.items():
            if fault := tiling_fault([piece.box for piece in tensor.slices], tensor.shape):
                raise CheckpointError(f"{where}: tensor {name!r}: {fault}")


def read_index(path: Path) -> Index:
    """Read an index; CheckpointError for anything that `Index.to_json` would not have written."""
    content = json_text.read(path)
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        found = f"format {content.get('format')!r}, version {content.get('version')!r}"
        raise CheckpointError(f"{path}: expected format {FORMAT!r}, version {VERSION}, found {found:.200}")
    files = {
        _plain_name(file, path): json_text.as_count(size, f"{path}: size of {file!r}")
        for file, size in json_text.as_object(content.get("files"), f"{path}: files").items()
    }
    tensors = json_text.as_object(content.get("tensors"), f"{path}: tensors")
    return Index(
        json_text.as_text(content.get("save"), f"{path}: save"),
        json_text.as_texts(content.get("metadata"), f"{path}: metadata"),
        json_text.as_object(content.get("state", {}), f"{path}: state"),  # directories of release 0.1 have none
        files,
        {name: _tensor(entry, f"{path}: tensor {name!r}", files) for name, entry in tensors.items()},
    )


def merge(parts: Sequence[Index], where: Path) -> Index:
    """All parts of one save as one index; CheckpointError where they contradict each other or leave a gap."""
    metadata: dict[str, str] = {}
    state: dict[str, object] = {}
    files: dict[str, int] = {}
    tensors: dict[str, TensorRecord] = {}
    for part in parts:
        _unite(metadata, part.metadata, "metadata", where)
        _unite(state, part.state, "state", where)
        files.update(part.files)
        for name, tensor in part.tensors.items():
            known = tensors.get(name, TensorRecord(tensor.dtype, tensor.shape, ()))
            if (known.dtype, known.shape) != (tensor.dtype, tensor.shape):
                raise CheckpointError(
                    f"{where}: writers disagree on tensor {name!r}: {known.dtype} {list(known.shape)} "
                    f"and {tensor.dtype} {list(tensor.shape)}"
                )
            tensors[name] = TensorRecord(tensor.dtype, tensor.shape, known.slices + tensor.slices)
    index = Index(parts[0].save, metadata, state, files, tensors)
    index.check_tiling(where)
    return index


def _unite(known: dict[str, _Value], more: dict[str, _Value], what: str, where: Path) -> None:
    for key, value in more.items():
        if known.setdefault(key, value) != value:
            raise CheckpointError(f"{where}: writers disagree on {what} {key!r}: {known[key]!r:.80} and {value!r:.80}")


def _tensor(entry: object, where: str, files: dict[str, int]) -> TensorRecord:
    fields = json_text.as_object(entry, where)
    dtype = dtype_named(json_text.as_text(fields.get("dtype"), f"{where}: dtype"))
    shape = json_text.as_counts(fields.get("shape"), f"{where}: shape")
    slices = []
    for item in json_text.as_list(fields.get("slices"), f"{where}: slices"):
        piece = json_text.as_object(item, f"{where}: slices")
        box = json_text.as_box(piece.get("box"), f"{where}: box", len(shape))
        record = SliceRecord(
            json_text.as_text(piece.get("file"), f"{where}: file"),
            box,
            json_text.as_count(piece.get("bytes"), f"{where}: bytes"),
            json_text.as_text(piece.get("crc32"), f"{where}: crc32"),
        )
        if record.file not in files:
            raise CheckpointError(f"{where}: file {record.file!r} is not among the index's files")
        if record.bytes != math.prod(extent(box)) * dtype.storage.itemsize:
            raise CheckpointError(f"{where}: {record.bytes:,} bytes do not make {list(extent(box))} of {dtype.name}")
        slices.append(record)
    return TensorRecord(dtype.name, shape, tuple(slices))


def _plain_name(file: str, path: Path) -> str:
    if file in ("", ".", "..") or "/" in file or "\0" in file:
        raise CheckpointError(f"{path}: {file!r} is not the name of a file beside it")
    return file
