"""Reading one safetensors file: its header checked strictly, any box of any tensor read without touching the rest.

The format is 8 bytes of header length (little endian), a JSON header, and one byte buffer which the tensors fill
without holes (https://github.com/huggingface/safetensors, "Format"). Bytes are read with `preadv` straight into the
caller's array: one copy, exactly the bytes asked for, and no mapping that would crash us when the file is cut short.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from codellama_ckpt import json_text
from codellama_ckpt.boxes import Box, Shape, runs
from codellama_ckpt.dtypes import BY_CODE, Array, DType, flat_bytes
from codellama_ckpt.errors import CheckpointError

MAX_HEADER = 100_000_000  # bytes; the limit of the official library
_LENGTH = 8  # bytes of the header's length
_LFS_POINTER = b"version "  # a Git LFS pointer file starts so; as a length it would be 3e18
_MAX_DIMENSIONS = 32  # NumPy's limit


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of one tensor. `offset` counts from the start of the file, `size` is in bytes."""

    dtype: DType
    shape: Shape
    offset: int
    size: int


class SafetensorsFile:
    """One safetensors file, opened again for each read, so there is nothing to close and threads may share it.

    A file that was replaced or changed since its header was read is refused rather than read with stale offsets.

    Attributes:
        path: of the file.
        metadata: the header's `__metadata__`.
        tensors: by name, in the order of their bytes.

    Raises:
        CheckpointError: the file can not be read, is truncated, or breaks a rule of the format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._opened() as descriptor:
            self._identity = _identity(descriptor)
            size = os.fstat(descriptor).st_size
            header, start = self._header(descriptor, size)
        self.metadata: Mapping[str, str] = {}
        if "__metadata__" in header:
            self.metadata = json_text.as_texts(header.pop("__metadata__"), f"{path}: __metadata__")
        tensors = {name: self._tensor(name, entry, start) for name, entry in header.items()}
        self.tensors: Mapping[str, TensorInfo] = dict(
            sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].size))
        )
        self._check_layout(start, size)

    def read_into(self, key: str, box: Box, out: Array, at: Sequence[int]) -> None:
        """Read the stored bits of a box of tensor `key` into `out`.

        Args:
            key: name in this file.
            box: what to read; not empty.
            out: C-contiguous array of the tensor's storage type and number of dimensions.
            at: index in `out` where the box's first element goes.

        Raises:
            CheckpointError: the file can not be read or has changed since it was opened.
        """
        info = self.tensors[key]
        length, sources, targets = runs(info.shape, box, out.shape, at)
        width = info.dtype.storage.itemsize
        length *= width
        buffer = flat_bytes(out)
        with self._opened() as descriptor:
            if _identity(descriptor) != self._identity:
                raise CheckpointError(f"{self.path} changed while it was being read; open the checkpoint again")
            for source, target in zip(sources, targets, strict=True):
                first = target * width
                self._read_run(descriptor, buffer[first : first + length], info.offset + source * width, key)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                yield descriptor
            finally:
                os.close(descriptor)
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror}") from None

    def _read_run(self, descriptor: int, buffer: memoryview, offset: int, key: str) -> None:
        done = os.preadv(descriptor, [buffer], offset)
        while done < len(buffer):  # one call reads at most 2 GiB
            more = os.preadv(descriptor, [buffer[done:]], offset + done)
            if more == 0:
                raise CheckpointError(f"{self.path} ends within tensor {key!r}, at byte {offset + done:,}")
            done += more

    def _header(self, descriptor: int, size: int) -> tuple[dict[str, object], int]:
        """The header as JSON, and the offset at which the tensors' bytes start."""
        prefix = os.pread(descriptor, _LENGTH, 0)
        if prefix == _LFS_POINTER:
            raise CheckpointError(f"{self.path} is a Git LFS pointer, not the weights; run `git lfs pull` for them")
        if len(prefix) < _LENGTH:
            raise CheckpointError(
                f"{self.path} is truncated or no safetensors file: {size:,} bytes, expected at least 8"
            )
        length = int.from_bytes(prefix, "little")
        if length > MAX_HEADER:
            raise CheckpointError(
                f"{self.path} is no safetensors file: a header of {length:,} bytes, at most {MAX_HEADER:,} are allowed"
            )
        if _LENGTH + length > size:
            raise CheckpointError(
                f"{self.path} is truncated: {size:,} bytes, its header alone takes {_LENGTH + length:,}; "
                "copy or download it again"
            )
        text = os.pread(descriptor, length, _LENGTH)
        if len(text) != length or not text.startswith(b"{"):
            raise CheckpointError(f"{self.path} is no safetensors file: its header does not start with '{{'")
        return json_text.parse(text, f"{self.path}: header"), _LENGTH + length

    def _tensor(self, name: str, entry: object, start: int) -> TensorInfo:
        where = f"{self.path}: tensor {name!r}"
        fields = json_text.as_object(entry, where)
        if fields.keys() != {"dtype", "shape", "data_offsets"}:
            raise CheckpointError(f"{where}: expected dtype, shape and data_offsets, found {', '.join(sorted(fields))}")
        code = json_text.as_text(fields["dtype"], f"{where}: dtype")
        if code not in BY_CODE:
            raise CheckpointError(f"{where}: unknown dtype {code!r}; known are {', '.join(BY_CODE)}")
        dtype = BY_CODE[code]
        shape = json_text.as_counts(fields["shape"], f"{where}: shape")
        if len(shape) > _MAX_DIMENSIONS or math.prod(d for d in shape if d) * dtype.storage.itemsize >= 1 << 63:
            raise CheckpointError(f"{where}: no array has the shape {list(shape)}")
        offsets = json_text.as_counts(fields["data_offsets"], f"{where}: data_offsets")
        if len(offsets) != 2 or offsets[0] > offsets[1]:
            raise CheckpointError(f"{where}: data_offsets must be [begin, end], found {list(offsets)}")
        begin, end = offsets
        needed = math.prod(shape) * dtype.storage.itemsize
        if end - begin != needed:
            raise CheckpointError(
                f"{where}: {end - begin:,} bytes at its data_offsets, "
                f"shape {list(shape)} of {dtype.name} needs {needed:,}"
            )
        return TensorInfo(dtype, shape, start + begin, needed)

    def _check_layout(self, start: int, size: int) -> None:
        """The tensors must fill the rest of the file exactly: no overlap, no hole, nothing beyond."""
        end = start
        for name, info in self.tensors.items():
            if info.offset != end:
                fault = "overlaps the tensor before it" if info.offset < end else "leaves a hole before it"
                raise CheckpointError(
                    f"{self.path}: tensor {name!r} {fault}: it begins at byte {info.offset:,}, expected {end:,}"
                )
            end += info.size
        if size < end:
            raise CheckpointError(
                f"{self.path} is truncated: {size:,} bytes, its header promises {end:,}; copy or download it again"
            )
        if size > end:
            raise CheckpointError(
                f"{self.path} has {size - end:,} bytes too many: {size:,}, its header promises {end:,}"
            )


def _identity(descriptor: int) -> tuple[int, ...]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
