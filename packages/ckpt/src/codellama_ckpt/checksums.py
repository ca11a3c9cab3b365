"""Comparing tensors with their checksums, without holding a tensor in memory."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence

from codellama_ckpt.boxes import Box
from codellama_ckpt.dtypes import Array
from codellama_ckpt.errors import CheckpointError
from codellama_ckpt.tensor_file import TensorFile

_CHUNK = 1 << 22  # bytes read at a time


def checksum_of(file: TensorFile, key: str) -> str:
    """crc32 of a tensor's bytes as the file has them now; of all that is left of them where the file ends early."""
    crc = 0
    with file.reading() as descriptor:
        for start, size in file.tensors[key].segments:
            done = 0
            while done < size and (content := os.pread(descriptor, min(_CHUNK, size - done), start + done)):
                crc = zlib.crc32(content, crc)
                done += len(content)
    return f"{crc:08x}"


class Verified:
    """A source that compares a tensor with its checksum before the first byte of it is handed out.

    Args:
        file: the source of the bytes.
        checksums: expected crc32 by key; a key that is not there has none to compare with.
    """

    def __init__(self, file: TensorFile, checksums: dict[str, str]) -> None:
        self._file = file
        self._pending = checksums

    def read_into(self, key: str, box: Box, out: Array, at: Sequence[int]) -> None:
        if key in self._pending:
            if checksum_of(self._file, key) != self._pending[key]:
                raise CheckpointError(f"{self._file.path} is damaged: the checksum of tensor {key!r} differs")
            del self._pending[key]
        self._file.read_into(key, box, out, at)
