"""Output files that appear whole or not at all: checks before, a hidden work folder meanwhile, moves at the end.

A MindRecord file and its `.db` hold their own base name, so they can be moved but not renamed: everything is
written under its final name in `.NAME.partial/` beside the output and moved into place when it is complete.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from codellama_data.errors import DataError

_FORBIDDEN = frozenset("\\:*?\"<>|`&';")  # in mindspore.mindrecord.core.shardutils.check_filename
MEBIBYTE = 1 << 20


def partition_paths(output: Path, file_partition: int) -> list[Path]:
    """OUT, or OUT0..OUTN-1; the numbers are padded with zeros to one width, as MindSpore pads them."""
    if file_partition == 1:
        return [output]
    width = len(str(file_partition - 1))
    return [output.with_name(f"{output.name}{index:0{width}d}") for index in range(file_partition)]


def database_path(path: Path) -> Path:
    """The index file that belongs to a MindRecord file."""
    return path.with_name(path.name + ".db")


def check_name(path: Path) -> None:
    """Refuse what MindSpore would refuse after all the work was done."""
    forbidden = sorted(set(path.name) & _FORBIDDEN)
    if forbidden:
        raise DataError(f"{path}: MindSpore allows no {' '.join(forbidden)} in the name of a MindRecord file")


def check_output(paths: Iterable[Path], overwrite: bool) -> None:
    """Refuse a missing folder, a folder in place of a file, and an existing output unless `overwrite`."""
    for path in paths:
        folder = path.parent
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder, create it first (output {path.name})")
        if not os.access(folder, os.W_OK):
            raise DataError(f"{folder}: no permission to write there (output {path.name})")
        if path.is_dir():
            raise DataError(f"{path}: is a folder, expected the name of a file to write")
        if path.exists() and not overwrite:
            raise DataError(f"{path}: exists already, give --overwrite to replace it")


def check_space(folder: Path, needed: int) -> None:
    """Refuse to start what can not fit: `needed` bytes in `folder`."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        wanted = -(-needed // MEBIBYTE)
        raise DataError(f"{folder}: no space left on the device, {wanted:,} MiB needed, {free // MEBIBYTE:,} MiB free")


class WorkFolder:
    """`.NAME.partial/` beside an output, locked while in use and removed at the end.

    Two runs for one output at the same time are refused. A run that was killed leaves the folder; the next one takes it
    over.

    Args:
        output: the file that will appear.
        keep: what an earlier run left stays (to resume from it); otherwise it is removed first.
    """

    def __init__(self, output: Path, keep: bool = False) -> None:
        self.path = output.with_name(f".{output.name}.partial")
        self._keep = keep
        self._lock = -1

    def __enter__(self) -> WorkFolder:
        try:
            self.path.mkdir(exist_ok=True)
            self._lock = os.open(self.path, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise DataError(f"{self.path}: in use, another run is writing the same output") from None
        except OSError as error:
            raise DataError(f"{self.path}: can not be created ({error.strerror})") from error
        if not self._keep:
            for entry in self.path.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        # After Ctrl-C the folder stays, for --resume; so it does when a resumed run fails, perhaps over a mistyped
        # option. After success, or an error in the input, nothing is worth keeping.
        if kind is None or (issubclass(kind, Exception) and not self._keep):
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def publish(folder: Path, destinations: list[Path]) -> None:
    """Move finished MindRecord files, with their `.db`, out of `folder` into place.

    A MindRecord file does not open without its `.db` and the first partition is what people open, so old data files go
    first, then the `.db` files arrive, then the data files, the first partition last: at no moment does an incomplete
    set open.
    """
    for path in destinations:
        _sync(folder / path.name)
        _sync(folder / database_path(path).name)
    for path in destinations:
        path.unlink(missing_ok=True)
    for path in destinations:
        (folder / database_path(path).name).replace(database_path(path))
    for path in reversed(destinations):
        (folder / path.name).replace(path)
    _sync(destinations[0].parent)


def write_text(path: Path, text: str) -> None:
    """Write a small text file so that it appears whole or not at all."""
    beside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
    except OSError as error:
        raise DataError(f"{path}: can not be written ({error.strerror})") from error
    finally:
        beside.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
