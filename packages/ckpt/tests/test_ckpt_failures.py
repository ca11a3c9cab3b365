"""A save that fails, wherever and however, leaves nothing that opens and harms nothing that was there."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from codellama_ckpt import (
    CheckpointError,
    LazyTensor,
    TensorEntry,
    files,
    finalize,
    is_complete,
    latest,
    open_checkpoint,
    prune,
    save_sharded,
    verify_sharded,
    write_safetensors,
)
from codellama_ckpt.dtypes import Array

OLD = {"w": np.zeros(1000, np.float32)}
NEW = {"w": np.ones(1000, np.float32), "v": np.ones(10, np.float32)}


def fail_at(number: int, error: OSError) -> Callable[..., int]:
    """An `os.write` that works `number` times and then raises."""
    real, calls = os.write, [0]

    def write(descriptor: int, content: bytes) -> int:
        calls[0] += 1
        if calls[0] > number:
            raise error
        return real(descriptor, content)

    return write


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("number", range(6))  # header, two tensors, the part's index, index.json, COMPLETE
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, overwrite: bool) -> None:
    directory = tmp_path / "c"
    if overwrite:
        save_sharded(OLD, directory)
    monkeypatch.setattr(os, "write", fail_at(number, FULL))
    with pytest.raises(CheckpointError, match=r"cannot write .*: No space left on device"):
        save_sharded(NEW, directory, overwrite=overwrite)
    monkeypatch.undo()
    if overwrite:
        assert list(tmp_path.iterdir()) == [directory]
        assert np.array_equal(open_checkpoint(directory).read("w"), OLD["w"])
        assert verify_sharded(directory) == 4000
    else:
        assert list(tmp_path.iterdir()) == []


def test_six_writes_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the numbers above are all there are."""
    monkeypatch.setattr(os, "write", fail_at(6, FULL))
    save_sharded(NEW, tmp_path / "c")


@pytest.mark.parametrize("number", range(3))
def test_full_disk_while_writing_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "write", fail_at(number, FULL))
    with pytest.raises(CheckpointError, match=r"cannot write .*x\.safetensors: No space left on device"):
        write_safetensors(path, [TensorEntry(name, "float32", a.shape, a.copy) for name, a in NEW.items()])
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "rename", "replace"])
def test_failing_system_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    directory = tmp_path / "c"
    save_sharded(OLD, directory)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, call, fail)
    monkeypatch.setattr(files, "exchange", lambda *_: False)  # as on a file system that can not: two renames
    with pytest.raises(CheckpointError, match="Input/output error"):
        save_sharded(NEW, directory, overwrite=True)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == [directory]
    assert np.array_equal(open_checkpoint(directory).read("w"), OLD["w"])


def test_second_rename_failing_puts_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a file system can not exchange two names in one step."""
    directory = tmp_path / "c"
    save_sharded(OLD, directory)
    monkeypatch.setattr(files, "exchange", lambda *_: False)
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if not str(source).endswith(".old.tmp") and str(target).endswith("/c"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(CheckpointError, match=r"cannot put .*c in place"):
        save_sharded(NEW, directory, overwrite=True)
    assert list(tmp_path.iterdir()) == [directory]
    assert np.array_equal(open_checkpoint(directory).read("w"), OLD["w"])


def test_everything_is_on_disk_before_it_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "c"
    fsync, rename, replace = os.fsync, os.rename, os.replace
    synced: list[int] = []
    order: list[str] = []

    def watched_fsync(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(os.fstat(descriptor).st_ino)

    def watched_replace(source: Path, target: Path) -> None:
        replace(source, target)
        order.append(Path(target).name)

    def watched_rename(source: Path, target: Path) -> None:
        assert target == directory
        unsynced = [path.name for path in [source, *source.iterdir()] if path.stat().st_ino not in synced]
        assert unsynced == []
        synced.clear()
        rename(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    monkeypatch.setattr(os, "rename", watched_rename)
    save_sharded(NEW, directory)
    assert order[-2:] == ["index.json", "COMPLETE"]
    assert synced == [tmp_path.stat().st_ino]  # the rename itself


class Interruption(BaseException):
    pass


@pytest.mark.parametrize("exception", [ValueError("no such device"), Interruption()])
def test_exception_of_a_tensor_comes_through(tmp_path: Path, exception: BaseException) -> None:
    def load() -> Array:
        raise exception

    save_sharded(OLD, tmp_path / "c")
    tree: dict[str, Array | LazyTensor] = {**NEW, "bad": LazyTensor("uint8", (1,), load)}
    with pytest.raises(type(exception)):
        save_sharded(tree, tmp_path / "c", overwrite=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "c"]
    assert np.array_equal(open_checkpoint(tmp_path / "c").read("w"), OLD["w"])


def test_one_of_several_writers_failing_leaves_the_others_alone(tmp_path: Path) -> None:
    def load() -> Array:
        raise ValueError

    save_sharded(NEW, tmp_path / "c", writer=0, writers=2, token="t")
    with pytest.raises(ValueError):
        save_sharded({"bad": LazyTensor("uint8", (1,), load)}, tmp_path / "c", writer=1, writers=2, token="t")
    (temporary,) = tmp_path.iterdir()
    assert len(list(temporary.iterdir())) == 2  # writer 0's part and its index
    save_sharded({}, tmp_path / "c", writer=1, writers=2, token="t")  # it may try again
    finalize(tmp_path / "c", 2, token="t")
    assert set(open_checkpoint(tmp_path / "c")) == set(NEW)


SAVER = """
import sys, time
import numpy as np
from codellama_ckpt import LazyTensor, save_sharded

def slowly(value):
    def load():
        print(value, flush=True)
        time.sleep(0.01)
        return np.full(1000, value, np.float32)
    return load

tree = {f"t{i}": LazyTensor("float32", (1000,), slowly(i)) for i in range(20)}
save_sharded(tree, sys.argv[1], overwrite=True)
print("saved", flush=True)
"""


@pytest.mark.parametrize("tensors", [0, 7, 19])
def test_killed_save_leaves_nothing_that_opens(tmp_path: Path, tensors: int) -> None:
    old, new = tmp_path / "step_000001", tmp_path / "step_000002"
    save_sharded(OLD, old)
    for directory in (old, new):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(directory)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},  # the package under test, however it was found
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        with process.stdout as lines:
            while next(lines).strip() != str(tensors):
                pass
            time.sleep(0.002 * tensors / 19)
            process.send_signal(signal.SIGKILL)
            assert "saved" not in lines.read()
        process.wait()
    assert not new.exists()
    assert not is_complete(new)
    assert latest(tmp_path) == old
    assert np.array_equal(open_checkpoint(old).read("w"), OLD["w"])
    leftovers = [path for path in tmp_path.iterdir() if path != old]
    assert len(leftovers) == 2
    for leftover in leftovers:
        assert not is_complete(leftover)
        with pytest.raises(CheckpointError):
            open_checkpoint(leftover)
    assert prune(tmp_path, 1) == ()
    assert list(tmp_path.iterdir()) == [old]


KILLED_AT_RANDOM = """
import json, os, random, signal, sys, time
from pathlib import Path
import numpy as np
from codellama_ckpt import CheckpointError, is_complete, latest, open_checkpoint, save_sharded, verify_sharded

parent, moments = Path(sys.argv[1]), int(sys.argv[2])
random.seed(0)

def save(directory, value, overwrite=False):
    tree = {f"t{i}": np.full((64, 1024), value, np.float32) for i in range(16)}
    save_sharded(tree, directory, state={"value": value}, overwrite=overwrite)

def good(directory):  # the value that all of it holds
    verify_sharded(directory)
    checkpoint = open_checkpoint(directory, verify=True)
    value = checkpoint.state["value"]
    assert len(checkpoint) == 16 and all((checkpoint.read(name) == value).all() for name in checkpoint)
    return value

start = time.monotonic()
save(parent / "step_000001", 1)
longest = time.monotonic() - start
killed = finished = 0
for attempt in range(20 * moments):
    replacing = attempt % 2 == 0  # else a new step
    step = 1 if replacing else attempt + 2
    value = attempt + 2
    before = good(parent / "step_000001")
    child = os.fork()
    if not child:
        try:
            save(parent / f"step_{step:06d}", value, overwrite=replacing)
        finally:
            os._exit(0)
    time.sleep(random.uniform(0, longest))
    os.kill(child, signal.SIGKILL)
    on_the_way = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    # What a save takes changes with the disk's mood: the moments follow it, until enough of them were within a save.
    longest *= 1.05 if on_the_way else 0.8
    killed += on_the_way
    assert good(parent / "step_000001") in ({before, value} if replacing else {before})
    new = parent / f"step_{step:06d}"
    if not replacing and new.exists():
        assert good(new) == value  # there, so whole
        finished += 1
    elif not replacing:
        assert latest(parent) != new and not is_complete(new)
    assert good(latest(parent)) > 0
    for left in parent.glob("step_*"):
        good(left)
    if killed == moments:
        break
print(json.dumps({"killed": killed, "finished": finished, "leftovers": len(list(parent.glob(".*")))}))
"""


def test_killed_at_thirty_random_moments(tmp_path: Path) -> None:
    """Saves of a new step, and saves that replace a checkpoint: the previous one still loads, a broken one never."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_RANDOM, str(tmp_path), "30"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout)
    assert counted["killed"] == 30
    assert counted["leftovers"] > 0  # some were killed in the middle of writing
    for left in tmp_path.glob(".*"):
        assert latest(tmp_path) != left
