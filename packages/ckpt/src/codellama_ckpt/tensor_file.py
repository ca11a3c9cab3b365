"""Tensors that lie in a file as plain row-major bytes: any box of any of them read without touching the rest.

Bytes are read with `preadv` straight into the caller's array: one copy, exactly the bytes asked for, and no mapping
that would crash us when the file is cut short. What a format adds is only where its tensors lie.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from codellama_ckpt.boxes import Box, Shape, runs
from codellama_ckpt.dtypes import Array, DType, flat_bytes
from codellama_ckpt.errors import CheckpointError

MAX_DIMENSIONS = 32  # NumPy's limit


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file.

    Attributes:
        dtype: element type.
        shape: of the tensor.
        segments: (offset from the start of the file, bytes) of the stretches that hold it, one after the other.
    """

    dtype: DType
    shape: Shape
    segments: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        return sum(size for _, size in self.segments)


class TensorFile:
    """A file opened again for each read, so there is nothing to close and threads may share it.

    A file that was replaced or changed since it was opened is refused rather than read with stale offsets.

    Attributes:
        path: of the file.
        metadata: free text fields that the file carries.
        tensors: by name, in the order of their bytes.
        checksums: crc32 of each tensor's bytes, as eight hexadecimal digits, where the file carries them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: Mapping[str, str] = {}
        self.tensors: Mapping[str, TensorInfo] = {}
        self.checksums: Mapping[str, str] = {}
        with self._opened() as descriptor:
            self._identity = _identity(descriptor)
            self._read_contents(descriptor, os.fstat(descriptor).st_size)

    def _read_contents(self, descriptor: int, size: int) -> None:
        """Fill `metadata`, `tensors` and `checksums` from an open file of `size` bytes."""
        raise NotImplementedError

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
        with self.reading() as descriptor:
            for source, target in zip(sources, targets, strict=True):
                first = target * width
                for offset, begin, end in _stretches(info.segments, source * width, length):
                    self._read_run(descriptor, buffer[first + begin : first + end], offset, key)

    @contextlib.contextmanager
    def reading(self) -> Iterator[int]:
        """A descriptor of the very file that was opened; CheckpointError where another one took its place."""
        with self._opened() as descriptor:
            if _identity(descriptor) != self._identity:
                raise CheckpointError(f"{self.path} changed while it was being read; open the checkpoint again")
            yield descriptor

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


def _stretches(segments: tuple[tuple[int, int], ...], first: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Where `length` bytes of a tensor, from its byte `first` on, lie: (offset in the file, begin, end of the run)."""
    begin = 0
    for offset, size in segments:
        if first >= size:
            first -= size
            continue
        end = min(length, begin + size - first)
        yield offset + first, begin, end
        if end == length:
            return
        begin, first = end, 0


def _identity(descriptor: int) -> tuple[int, ...]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
