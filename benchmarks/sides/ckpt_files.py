"""What both sides of the checkpoint benchmark need: files out of the page cache, files on the disk, time and memory."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

SOURCE, SHARDS, SAVED = "source", "shards", "saved"  # in the benchmark's folder


def files_of(path: Path) -> list[Path]:
    """A file, or the files of a directory."""
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def on_disk(path: Path) -> None:
    """Waits until what was written is on the disk."""
    for file in files_of(path):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def forget(path: Path) -> None:
    """Reads files once, then takes them out of the page cache: a disk's own cache is then alike for all."""
    on_disk(path)
    buffer = bytearray(1 << 20)
    for file in files_of(path):
        descriptor = os.open(file, os.O_RDONLY)
        while os.readv(descriptor, [buffer]):
            pass
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


@contextlib.contextmanager
def measured(size: int, folder: Path) -> Iterator[None]:
    """Prints the seconds of the block, the bytes of the work, and the peak of resident memory of the process so far.

    What was written in the benchmark's folder before is on the disk when the time begins.
    """
    on_disk(folder)
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"seconds": seconds, "bytes": size, "peak_bytes": peak * 1024}))
