"""Comparing tensors with their checksums, without holding a tensor in memory."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence

from codellama_ckpt.boxes import Box, runs, whole
from codellama_ckpt.dtypes import Array, flat_bytes
from codellama_ckpt.errors import CheckpointError
from codellama_ckpt.tensor_file import TensorFile

_CHUNK = 1 << 20  # bytes read at a time: their checksum is taken while they are in the processor's cache


def checksum_of(file: TensorFile, key: str, into: memoryview | None = None) -> str:
    """crc32 of a tensor's bytes as the file has them now; of all that is left of them where the file ends early.

    Args:
        file: the source of the bytes.
        key: name of the tensor in it.
        into: takes the bytes too, if given; as many as the tensor has.
    """
    crc = 0
    buffer = memoryview(bytearray(min(_CHUNK, file.tensors[key].size))) if into is None else into
    filled = 0  # of `into`
    with file.reading() as descriptor:
        for start, size in file.tensors[key].segments:
            done = 0
            while done < size:
                room = min(_CHUNK, size - done)
                chunk = buffer[:room] if into is None else into[filled : filled + room]
                count = os.preadv(descriptor, [chunk], start + done)
                if not count:
                    break
                crc = zlib.crc32(chunk[:count], crc)
                done += count
                filled += count
    return f"{crc:08x}"


class Verified:
    """A source that compares a tensor with its checksum before the first byte of it is handed out.

    A tensor that is read whole into one stretch of memory is read once, and compared there; else it is read for its
    checksum first.

    Args:
        file: the source of the bytes.
        checksums: expected crc32 by key; a key that is not there has none to compare with.
    """

    def __init__(self, file: TensorFile, checksums: dict[str, str]) -> None:
        self._file = file
        self._pending = checksums

    def read_into(self, key: str, box: Box, out: Array, at: Sequence[int]) -> None:
        if key not in self._pending:
            self._file.read_into(key, box, out, at)
            return
        stretch = self._stretch(key, box, out, at)
        if checksum_of(self._file, key, stretch) != self._pending[key]:
            raise CheckpointError(f"{self._file.path} is damaged: the checksum of tensor {key!r} differs")
        del self._pending[key]
        if stretch is None:
            self._file.read_into(key, box, out, at)

    def _stretch(self, key: str, box: Box, out: Array, at: Sequence[int]) -> memoryview | None:
        """Where in `out` the bytes of the whole tensor go, if all of it is asked for and they go in one run."""
        info = self._file.tensors[key]
        if box != whole(info.shape):
            return None
        length, _, targets = runs(info.shape, box, out.shape, at)
        if len(targets) != 1:
            return None
        first = targets[0] * info.dtype.storage.itemsize
        return flat_bytes(out)[first : first + length * info.dtype.storage.itemsize]
