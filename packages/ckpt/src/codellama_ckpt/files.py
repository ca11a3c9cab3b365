"""Files and directories that appear whole or not at all, and survive a power cut once they are there."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from codellama_ckpt.errors import CheckpointError

_CHUNK = 1 << 26  # bytes a write; one system call takes at most 2 GiB


@contextlib.contextmanager
def reported(doing: str) -> Iterator[None]:
    """Turn an OSError of the operations inside into a CheckpointError: "cannot <doing>: No space left on device"."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot {doing}: {error.strerror or error}") from error


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[int]:
    """A descriptor to write to; what was written becomes `path` (replacing a file there) when the block ends well.

    Raises:
        CheckpointError: the file can not be created, synchronised or put in place. Then, and when the block raises
            whatever it raises, `path` is as it was and nothing is left beside it.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp"
    writing = f"write {path}"
    with reported(writing):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            yield descriptor
            with reported(writing):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        with reported(writing):
            os.replace(temporary, path)  # noqa: PTH105  (looked up when called, on Python 3.10 too)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with reported(writing):
        sync_directory(path.parent)


def write_file(path: Path, content: bytes) -> None:
    """Write a small file atomically."""
    with atomic_file(path) as descriptor, reported(f"write {path}"):
        write_all(descriptor, memoryview(content))


def write_all(descriptor: int, content: memoryview) -> None:
    """Write every byte of a flat view; OSError when the system refuses."""
    while len(content):
        content = content[os.write(descriptor, content[:_CHUNK]) :]


def sync_directory(path: Path) -> None:
    """Make renames and removals within a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
