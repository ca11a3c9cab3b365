"""One safetensors file: its header checked strictly, its tensors read as `TensorFile` reads them.

The format is 8 bytes of header length (little endian), a JSON header, and one byte buffer which the tensors fill
without holes (https://github.com/huggingface/safetensors, "Format").

Files written here carry checksums in the header's metadata, under `crc32`: eight hexadecimal digits for the header
(taken while these digits are zeros), then eight for each tensor in the order of the bytes, separated by spaces. That
they are there stands in a second key: with one alone, a bit flipped in it would make a file that never had checksums.
"""

from __future__ import annotations

import math
import os
import re
import zlib

from codellama_ckpt import json_text
from codellama_ckpt.dtypes import BY_CODE
from codellama_ckpt.errors import CheckpointError
from codellama_ckpt.tensor_file import MAX_DIMENSIONS, TensorFile, TensorInfo

MAX_HEADER = 100_000_000  # bytes; the limit of the official library
CHECKSUMS = "crc32"  # of the metadata
CHECKSUMS_OF = ("crc32_of", "header, tensors")  # the second key, and its value
NO_CHECKSUM = "0" * 8
_LENGTH = 8  # bytes of the header's length
_LFS_POINTER = b"version "  # a Git LFS pointer file starts so; as a length it would be 3e18
_CHECKSUMS = re.compile(r"[0-9a-f]{8}( [0-9a-f]{8})*")


class SafetensorsFile(TensorFile):
    """A safetensors file; CheckpointError when it can not be read, is truncated, or breaks a rule of the format."""

    def _read_contents(self, descriptor: int, size: int) -> None:
        text, start = self._header(descriptor, size)
        header = json_text.parse(text, f"{self.path}: header")
        metadata: dict[str, str] = {}
        if "__metadata__" in header:
            metadata = json_text.as_texts(header.pop("__metadata__"), f"{self.path}: __metadata__")
        checksums, marked = metadata.pop(CHECKSUMS, None), metadata.pop(CHECKSUMS_OF[0], None)
        tensors = {name: self._tensor(name, entry, start) for name, entry in header.items()}
        self.metadata = metadata
        self.tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].segments[0][0], item[1].size)))
        self._check_layout(start, size)
        if checksums is not None or marked is not None:
            self._take_checksums(checksums or "", text)

    def _header(self, descriptor: int, size: int) -> tuple[bytes, int]:
        """The header's text, and the offset at which the tensors' bytes start."""
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
        return text, _LENGTH + length

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
        if len(shape) > MAX_DIMENSIONS or math.prod(d for d in shape if d) * dtype.storage.itemsize >= 1 << 63:
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
        return TensorInfo(dtype, shape, ((start + begin, needed),))

    def _check_layout(self, start: int, size: int) -> None:
        """The tensors must fill the rest of the file exactly: no overlap, no hole, nothing beyond."""
        end = start
        for name, info in self.tensors.items():
            ((offset, length),) = info.segments
            if offset != end:
                fault = "overlaps the tensor before it" if offset < end else "leaves a hole before it"
                raise CheckpointError(
                    f"{self.path}: tensor {name!r} {fault}: it begins at byte {offset:,}, expected {end:,}"
                )
            end += length
        if size < end:
            raise CheckpointError(
                f"{self.path} is truncated: {size:,} bytes, its header promises {end:,}; copy or download it again"
            )
        if size > end:
            raise CheckpointError(
                f"{self.path} has {size - end:,} bytes too many: {size:,}, its header promises {end:,}"
            )

    def _take_checksums(self, sums: str, text: bytes) -> None:
        first, *others = sums.split(" ")
        unsigned = text.replace(sums.encode(), " ".join((NO_CHECKSUM, *others)).encode(), 1)
        if not _CHECKSUMS.fullmatch(sums) or len(others) != len(self.tensors) or checksum(unsigned) != first:
            raise CheckpointError(f"{self.path} is damaged: its header's checksum differs")
        self.checksums = dict(zip(self.tensors, others, strict=True))


def checksum(content: bytes | memoryview, start: int = 0) -> str:
    """crc32 as eight hexadecimal digits."""
    return f"{zlib.crc32(content, start):08x}"
