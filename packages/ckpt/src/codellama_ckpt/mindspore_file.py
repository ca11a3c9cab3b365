"""MindSpore's `.ckpt` files, read and written without MindSpore.

Such a file is one Protocol Buffers message (MindSpore's `checkpoint.proto`), which may be read and written piece by
piece: `Checkpoint{repeated Value value = 1}`, `Value{string tag = 1; TensorProto tensor = 2}`, `TensorProto{repeated
int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3}`. A tensor of more than 512 MiB is several values of
one tag in a row, each with the dims of the whole. At the end may stand `crc_num` and ten bytes, big endian: the crc32
of all before it.

Text fields of ours (the network's configuration) stand first, in a field that MindSpore's message does not have.
Readers of Protocol Buffers pass over such fields, so `mindspore.load_checkpoint` loads the file as any other. A file
that begins so has a checksum at its end: without it, a file cut off between two tensors would look whole.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from codellama_ckpt import json_text, protobuf
from codellama_ckpt.dtypes import BY_NAME, DType, dtype_named
from codellama_ckpt.errors import CheckpointError
from codellama_ckpt.files import atomic_file, reported
from codellama_ckpt.output import Output
from codellama_ckpt.safetensors_writer import TensorEntry, promised_content
from codellama_ckpt.tensor_file import MAX_DIMENSIONS, TensorFile, TensorInfo

_VALUE = 1
_TAG, _TENSOR = 1, 2
_DIMS, _TYPE, _CONTENT = 1, 2, 3
_METADATA = 1000  # of Checkpoint: a JSON object of texts
_LARGEST_VALUE = 512 << 20  # bytes of a tensor in one value
_CRC_MARK = b"crc_num"
_TRAILER = len(_CRC_MARK) + 10
_MAX_TEXT = 1 << 20  # bytes of a tag or of the metadata

_TYPES = {
    "float64": "Float64",
    "float32": "Float32",
    "float16": "Float16",
    "bfloat16": "BFloat16",
    "int64": "Int64",
    "int32": "Int32",
    "int16": "Int16",
    "int8": "Int8",
    "uint64": "UInt64",
    "uint32": "UInt32",
    "uint16": "UInt16",
    "uint8": "UInt8",
    "bool": "Bool",
}
_NAMES = {theirs: ours for ours, theirs in _TYPES.items()}


class MindSporeFile(TensorFile):
    """A `.ckpt` file; CheckpointError when it can not be read, is truncated or encrypted, or is none.

    Attributes:
        texts: tags of values that are texts and no tensors (`append_dict` of `save_checkpoint`).
        has_checksum: whether the file ends in the checksum of itself.
    """

    texts: tuple[str, ...]
    has_checksum: bool

    def _read_contents(self, descriptor: int, size: int) -> None:
        def read(offset: int, length: int) -> bytes:
            return os.pread(descriptor, length, offset)

        self.texts = ()
        self.has_checksum = size >= _TRAILER and read(size - _TRAILER, len(_CRC_MARK)) == _CRC_MARK
        tensors: dict[str, TensorInfo] = {}
        last = ""
        try:
            for field in protobuf.fields(read, 0, size - _TRAILER if self.has_checksum else size):
                if field.number == _METADATA:
                    text = self._text(read(field.start, self._short(field)), "metadata")
                    self.metadata = json_text.as_texts(
                        json_text.parse(text.encode(), f"{self.path}: metadata"), f"{self.path}: metadata"
                    )
                    if not self.has_checksum:
                        raise CheckpointError(f"{self.path} is truncated: its checksum is missing; copy it again")
                elif field.number == _VALUE and field.kind == protobuf.BYTES:
                    tag, info = self._value(read, field)
                    if info is None:
                        self.texts += (tag,)
                    elif tag in tensors and tag == last:
                        tensors[tag] = self._continued(tag, tensors[tag], info)
                    elif tag in tensors:
                        raise CheckpointError(f"{self.path}: tensor {tag!r} is there twice")
                    else:
                        tensors[tag] = info
                    last = tag
                else:
                    raise protobuf.WireError(f"field {field.number}, which no checkpoint has")
        except protobuf.WireError as error:
            raise CheckpointError(f"{self.path} is damaged, encrypted or no .ckpt file of MindSpore: {error}") from None
        for tag, info in tensors.items():
            self._check_size(tag, info)
        if not tensors:
            raise CheckpointError(f"{self.path} holds no tensors; is it a .ckpt file of MindSpore?")
        self.tensors = tensors

    def _value(self, read: protobuf.Read, field: protobuf.Field) -> tuple[str, TensorInfo | None]:
        """One value: its tag, and the piece of a tensor that it holds (None for a text)."""
        tag = tensor = None
        for part in protobuf.fields(read, field.start, field.end):
            if part.number == _TAG and part.kind == protobuf.BYTES:
                tag = self._text(read(part.start, self._short(part)), "a tag")
            elif part.number == _TENSOR and part.kind == protobuf.BYTES:
                tensor = part
            else:
                raise CheckpointError(f"{self.path}: {tag!r} is a kind of value that is not read here")
        if tag is None or tensor is None:
            raise protobuf.WireError("a value without a tag or a tensor")
        dims: list[int] = []
        kind = content = None
        for part in protobuf.fields(read, tensor.start, tensor.end):
            if part.number == _DIMS and part.kind == protobuf.VARINT:
                dims.append(part.value)
            elif part.number == _TYPE and part.kind == protobuf.BYTES:
                kind = self._text(read(part.start, self._short(part)), f"the type of {tag!r}")
            elif part.number == _CONTENT and part.kind == protobuf.BYTES:
                content = part
            if len(dims) > MAX_DIMENSIONS:
                break
        if kind is None or content is None:
            raise protobuf.WireError(f"{tag!r} without a type or content")
        if kind == "str":
            return tag, None
        if kind not in _NAMES:
            raise CheckpointError(f"{self.path}: tensor {tag!r}: unknown type {kind!r}; known are {', '.join(_NAMES)}")
        dtype = BY_NAME[_NAMES[kind]]
        if len(dims) > MAX_DIMENSIONS or math.prod(d for d in dims if d) * dtype.storage.itemsize >= 1 << 63:
            raise CheckpointError(f"{self.path}: tensor {tag!r}: no array has the shape {dims}")
        size = content.end - content.start
        shape = () if dims == [0] and size else tuple(dims)  # old releases write the shape of a 0-d tensor as [0]
        return tag, TensorInfo(dtype, shape, ((content.start, size),))

    def _continued(self, tag: str, first: TensorInfo, more: TensorInfo) -> TensorInfo:
        if (first.dtype, first.shape) != (more.dtype, more.shape):
            raise CheckpointError(f"{self.path}: tensor {tag!r} is there twice, as two different ones")
        if first.size >= _bytes(first.dtype, first.shape):
            raise CheckpointError(f"{self.path}: tensor {tag!r} is there twice")
        return TensorInfo(first.dtype, first.shape, first.segments + more.segments)

    def _check_size(self, tag: str, info: TensorInfo) -> None:
        needed = _bytes(info.dtype, info.shape)
        if info.size != needed:
            raise CheckpointError(
                f"{self.path}: tensor {tag!r}: {info.size:,} bytes, "
                f"shape {list(info.shape)} of {info.dtype.name} needs {needed:,}"
            )

    def _short(self, field: protobuf.Field) -> int:
        length = field.end - field.start
        if length > _MAX_TEXT:
            raise protobuf.WireError(f"a text of {length:,} bytes")
        return length

    def _text(self, content: bytes, what: str) -> str:
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            raise protobuf.WireError(f"{what} that is no text") from None


def write_mindspore(
    path: str | os.PathLike[str], entries: Iterable[TensorEntry], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a `.ckpt` file, one tensor in memory at a time; the file appears whole or not at all.

    Args:
        path: of the file; its directory must exist, a file already there is replaced.
        entries: what to write, in this order; see `TensorEntry`.
        metadata: free text fields, which only this package sees.

    Raises:
        CheckpointError: a name given twice, an array that is not what its entry promised, or a failing write (no
            space). Whatever a `load` raises comes through. In every case `path` is as it was.
    """
    path = Path(path)
    seen: set[str] = set()
    with atomic_file(path) as descriptor, Output(descriptor, path) as output:
        text = json.dumps(dict(metadata or {}), ensure_ascii=False).encode()
        start = protobuf.encode_bytes(_METADATA, text) if metadata else b""
        crc = output.write(memoryview(start))
        for entry in entries:
            if entry.name in seen:
                raise CheckpointError(f"cannot write {path}: the name {entry.name!r} is taken")
            seen.add(entry.name)
            crc = _write_tensor(output, entry, path, crc)
        output.write(memoryview(_CRC_MARK + crc.to_bytes(_TRAILER - len(_CRC_MARK), "big")))


def _write_tensor(output: Output, entry: TensorEntry, path: Path, crc: int) -> int:
    """Write one tensor as values; the checksum goes on. What was loaded is let go on return, before the next one is."""
    for chunk in _values(entry, path):
        crc = output.write(chunk, crc)
    return crc


def _values(entry: TensorEntry, path: Path) -> Iterator[memoryview]:
    """The bytes of the values of one tensor."""
    left = _bytes(dtype_named(entry.dtype), tuple(entry.shape))
    room = min(left, _LARGEST_VALUE)  # in the value that was begun
    yield memoryview(_before_content(entry, room))
    for content in promised_content(entry, path):
        done = 0
        while done < len(content):
            if not room:
                room = min(left, _LARGEST_VALUE)
                yield memoryview(_before_content(entry, room))
            part = content[done : done + room]
            yield part
            done += len(part)
            room -= len(part)
            left -= len(part)


def checksum_fault(path: Path) -> str | None:
    """Why the file's contents are not those that its own checksum was made of; None when they are.

    For files whose `has_checksum` is true.
    """
    crc, left = 0, path.stat().st_size - _TRAILER
    with reported(f"read {path}"), path.open("rb") as file:
        while left and (content := file.read(min(left, 1 << 22))):
            crc = zlib.crc32(content, crc)
            left -= len(content)
        stated = int.from_bytes(file.read(_TRAILER)[len(_CRC_MARK) :], "big")
    return None if crc == stated else f"{path} is damaged: its checksum differs"


def _before_content(entry: TensorEntry, size: int) -> bytes:
    """The bytes of one value up to the tensor's own, of which `size` follow."""
    kind = _TYPES[dtype_named(entry.dtype).name]
    description = protobuf.encode_numbers(_DIMS, entry.shape) + protobuf.encode_bytes(_TYPE, kind.encode())
    tensor = description + protobuf.encode_head(_CONTENT, size)
    value = (
        protobuf.encode_bytes(_TAG, entry.name.encode()) + protobuf.encode_head(_TENSOR, len(tensor) + size) + tensor
    )
    return protobuf.encode_head(_VALUE, len(value) + size) + value


def _bytes(dtype: DType, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * dtype.storage.itemsize
