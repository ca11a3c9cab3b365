"""A file on its way to the disk: while a chunk is handed to the system, a second thread takes its checksum.

Both calls release the interpreter's lock, so a checksum costs time only where it is slower than the copy. The second
thread also asks for early write-back: the disk works while the rest is made, and the fsync at the end finds little.
"""

from __future__ import annotations

import contextlib
import os
import threading
import zlib
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

from codellama_ckpt.files import reported, write_all

_CHUNK = 1 << 20  # bytes: both threads go over a chunk while it is in the processor's cache
_SMALL = 1 << 16  # bytes for which another thread is not worth asking
_WRITE_BACK = 1 << 24  # bytes asked to be written back at a time


class Output:
    """Writes to a descriptor, from its start on. A context manager: on leaving, nothing uses what was written any more.

    Args:
        descriptor: open for writing, at offset 0. It is neither synchronised nor closed here.
        path: to name in errors.
    """

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self._path = path
        self._written = 0
        self._asked = 0  # bytes from the start whose write-back was asked for
        self._chunks: SimpleQueue[tuple[memoryview, int, int] | None] = SimpleQueue()
        self._sums: SimpleQueue[int] = SimpleQueue()
        self._helper: threading.Thread | None = None

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._helper is not None:
            self._chunks.put(None)
            self._helper.join()

    def write(self, content: memoryview, crc: int = 0) -> int:
        """Write every byte of a flat view, which the caller may overwrite afterwards.

        Args:
            content: bytes.
            crc: crc32 of what comes before them.

        Returns:
            crc32 of all up to their end.

        Raises:
            CheckpointError: the system refuses (no space).
        """
        with reported(f"write {self._path}"):
            for first in range(0, len(content), _CHUNK):
                crc = self._write_chunk(content[first : first + _CHUNK], crc)
        return crc

    def _write_chunk(self, chunk: memoryview, crc: int) -> int:
        if len(chunk) < _SMALL:
            write_all(self._descriptor, chunk)
            self._written += len(chunk)
            return zlib.crc32(chunk, crc)
        if self._helper is None:
            self._helper = threading.Thread(target=self._help, name="checksums", daemon=True)
            self._helper.start()
        self._chunks.put((chunk, crc, self._written))
        write_all(self._descriptor, chunk)
        self._written += len(chunk)
        return self._sums.get()

    def _help(self) -> None:
        while (task := self._chunks.get()) is not None:
            chunk, crc, written = task
            crc = zlib.crc32(chunk, crc)
            del task, chunk  # before the writer goes on: the next tensor must find this one's memory free
            self._sums.put(crc)
            if written - self._asked >= _WRITE_BACK:
                # On Linux this starts the write-back of these pages, and does not wait for it (mm/fadvise.c). Nothing
                # depends on it: a system that has no such call, or refuses, writes them at the fsync.
                with contextlib.suppress(OSError, AttributeError):
                    os.posix_fadvise(self._descriptor, self._asked, written - self._asked, os.POSIX_FADV_DONTNEED)
                self._asked = written
