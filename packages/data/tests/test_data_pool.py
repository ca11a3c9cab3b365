"""Workers answer in order, pass errors on, and leave with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from codellama_data import DataError
from codellama_data.pool import OrderedPool

WAIT_SECONDS = 20.0  # a worker needs milliseconds to notice; the rest is for a loaded machine


@pytest.fixture
def worker_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "pool_functions.py").write_text(
        "import os, signal, time\n"
        "from codellama_data import DataError\n"
        "class Square:\n"
        "    def __init__(self, slow): self.slow = slow\n"
        "    def __call__(self, x):\n"
        "        if x == self.slow: time.sleep(0.3)\n"
        "        if x == -1: raise DataError('no')\n"
        "        if x == -2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return x * x\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "pool_functions"


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_order(worker_module: str, workers: int) -> None:
    square = __import__(worker_module).Square
    with OrderedPool[int, int](square, (0,), workers) as pool:
        assert list(pool.map(iter(range(50)))) == [x * x for x in range(50)]


def test_tasks_are_taken_only_as_far_ahead_as_results_fit_in_memory(worker_module: str) -> None:
    taken = 0

    def tasks() -> object:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield number

    with OrderedPool[int, int](__import__(worker_module).Square, (0,), 2) as pool:
        results = pool.map(tasks())  # type: ignore[arg-type]
        next(results)
        assert taken < 20


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_of_the_function_are_raised_here(worker_module: str, workers: int) -> None:
    pool = OrderedPool[int, int](__import__(worker_module).Square, (0,), workers)
    with pool, pytest.raises(DataError, match="no"):
        list(pool.map(iter([1, 2, -1, 3])))


def test_a_killed_worker_is_an_error_and_not_a_hang(worker_module: str) -> None:
    pool = OrderedPool[int, int](__import__(worker_module).Square, (0,), 2)
    with pool, pytest.raises(DataError, match="ended by signal 9"):
        list(pool.map(iter([1, 2, -2, 3])))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_leave_when_the_parent_is_killed(
    worker_module: str, environment: dict[str, str], number: signal.Signals
) -> None:
    script = (
        "import itertools, pool_functions\n"
        "from codellama_data.pool import OrderedPool\n"
        "with OrderedPool(pool_functions.Square, (0,), 2) as pool:\n"
        "    results = pool.map(itertools.count(1))\n"
        "    next(results)\n"
        "    print(*[process.pid for process, _ in pool._workers], flush=True)\n"
        "    for _ in results: pass\n"
    )
    environment = dict(environment, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.send_signal(number)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + WAIT_SECONDS
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
