"""Writing with checksums on the way: every byte, in order, whatever the sizes; and no thread is left."""

from __future__ import annotations

import errno
import os
import threading
import zlib
from pathlib import Path

import pytest
from codellama_ckpt import CheckpointError
from codellama_ckpt.output import Output

MEBIBYTE = 1 << 20
SIZES = [0, 5, MEBIBYTE, 3 * MEBIBYTE + 7, 20 * MEBIBYTE, 70_000, 1]  # without the thread, with it, with write-back


def test_bytes_and_checksums(tmp_path: Path) -> None:
    parts = [bytes([number + 1]) * size for number, size in enumerate(SIZES)]
    buffer = bytearray(max(SIZES))
    with (tmp_path / "x").open("wb", buffering=0) as file, Output(file.fileno(), tmp_path / "x") as output:
        crc = 0
        for part in parts:
            buffer[: len(part)] = part  # one buffer for all, as a reader of blocks has it
            crc = output.write(memoryview(buffer)[: len(part)], crc)
    assert (tmp_path / "x").read_bytes() == b"".join(parts)
    assert crc == zlib.crc32(b"".join(parts))
    assert "checksums" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("call", ["write", "posix_fadvise"])
def test_failing_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """A full disk is told, with the thread gone; write-back that is refused is only an advice that was not taken."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    content = memoryview(bytes(20 * MEBIBYTE))
    monkeypatch.setattr(os, call, fail)
    with (tmp_path / "x").open("wb", buffering=0) as file:
        if call == "write":
            with (
                pytest.raises(CheckpointError, match=r"cannot write .*x: No space left on device"),
                Output(file.fileno(), tmp_path / "x") as output,
            ):
                output.write(content)
        else:
            with Output(file.fileno(), tmp_path / "x") as output:
                assert output.write(content) == zlib.crc32(content)
            assert (tmp_path / "x").read_bytes() == content
    assert "checksums" not in {thread.name for thread in threading.enumerate()}
