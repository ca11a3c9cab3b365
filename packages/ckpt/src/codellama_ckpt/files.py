"""Files and directories that appear whole or not at all, and survive a power cut once they are there."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from codellama_ckpt.errors import CheckpointError

_CHUNK = 1 << 26  # bytes a write; one system call takes at most 2 GiB
# Of renameat2(2): paths are relative to the working directory; swap the two names.
_AT_CWD = -100
_RENAME_EXCHANGE = 2


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


@contextlib.contextmanager
def atomic_directory(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """A directory to fill with synchronised files; it becomes `path` when the block ends well.

    Raises:
        CheckpointError: `path` exists, is not an empty directory and is not to be overwritten, or a system call fails.
            Then, and when the block raises whatever it raises, `path` is as it was and nothing is left beside it.
    """
    if os.path.lexists(path) and not (
        path.is_dir() and not path.is_symlink() and (overwrite or not any(path.iterdir()))
    ):
        raise CheckpointError(f"{path} exists and is not an empty directory; move it away, or ask for --overwrite")
    token = secrets.token_hex(8)
    temporary = path.parent / f".{path.name}.{token}.tmp"
    with reported(f"write {path}"):
        temporary.mkdir()
    try:
        yield temporary
        with reported(f"write {path}"):
            for folder in temporary.rglob("*"):
                if folder.is_dir():
                    sync_directory(folder)
            sync_directory(temporary)
        put_in_place(temporary, path, token)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def put_in_place(temporary: Path, directory: Path, token: str) -> None:
    """Rename a finished directory to its place; a directory that is there goes away, or comes back if that fails."""
    retired = directory.parent / f".{directory.name}.{token}.old.tmp"
    with reported(f"put {directory} in place"):
        replaced = directory.is_dir() and any(directory.iterdir())
        if not replaced:
            os.rename(temporary, directory)  # noqa: PTH104
        elif exchange(temporary, directory):
            retired = temporary
        else:
            os.rename(directory, retired)  # noqa: PTH104
            try:
                os.rename(temporary, directory)  # noqa: PTH104
            except OSError:
                os.rename(retired, directory)  # noqa: PTH104
                raise
        sync_directory(directory.parent)
    if replaced:
        with reported(f"remove what {directory} replaced"):
            shutil.rmtree(retired)


def exchange(first: Path, second: Path) -> bool:
    """Swap the names of two directories in one step, so that neither is ever missing; False where that can not be done.

    It takes Linux, a C library and a file system that know `renameat2`.
    """
    try:
        done = ctypes.CDLL(None, use_errno=True).renameat2(
            _AT_CWD, os.fsencode(first), _AT_CWD, os.fsencode(second), _RENAME_EXCHANGE
        )
    except (AttributeError, OSError):
        return False
    return int(done) == 0


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
