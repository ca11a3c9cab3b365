"""Worker processes that map a function over tasks: results in order, bounded memory, nobody left behind.

Each worker is a fresh interpreter connected by one socket whose other end only this process holds. When this process
ends for whatever reason, `kill -9` included, the worker reads end-of-file and exits by itself. Workers do not import
the caller's main module, so no `if __name__ == "__main__"` is asked of anyone.

Why not `concurrent.futures.ProcessPoolExecutor` with spawn: its workers hold both ends of their queue, so they outlive
a parent that was killed, and they import the caller's main module. Before Python 3.14 its `map` takes all tasks at
once.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, Pipe, wait
from typing import Generic, TypeVar

from codellama_data.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")

_SERVE = "import sys; from codellama_data.pool import serve; serve(int(sys.argv[1]))"
_RESULTS_WAITING_PER_WORKER = 4  # how far a fast worker may run ahead of a slow one; bounds the memory


def available_cpus() -> int:
    """Processors that this process may use (containers and `taskset` respected)."""
    return len(os.sched_getaffinity(0))


def launch_worker() -> tuple[subprocess.Popen[bytes], Connection]:
    """Start one worker interpreter; it waits for the name of a function, its arguments, and tasks."""
    ours, theirs = Pipe()
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path or str(os.getcwd()) for path in sys.path))  # noqa: PTH109
    fd = theirs.fileno()
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(fd)], pass_fds=[fd], env=environment, stdin=subprocess.DEVNULL
    )
    theirs.close()
    return process, ours


class OrderedPool(Generic[Task, Result]):
    """Apply one function to a stream of tasks in several processes.

    Args:
        make: a module-level callable; `make(*arguments)` gives each worker its function (a class is fine).
        arguments: picklable arguments of `make`.
        num_workers: processes; a single worker works inside this one.

    Use it as a context manager: leaving it ends the workers.
    """

    def __init__(
        self,
        make: Callable[..., Callable[[Task], Result]],
        arguments: tuple[object, ...],
        num_workers: int,
    ) -> None:
        if num_workers < 1:
            raise DataError(f"num_workers must be at least 1, found {num_workers}")
        self._make, self._arguments, self._num_workers = make, arguments, num_workers
        self._workers: list[tuple[subprocess.Popen[bytes], Connection]] = []

    def __enter__(self) -> OrderedPool[Task, Result]:
        if self._num_workers > 1:
            self._workers = [launch_worker() for _ in range(self._num_workers)]
            for process, connection in self._workers:
                _send(process, connection, (self._make.__module__, self._make.__qualname__, self._arguments))
        return self

    def __exit__(self, *exception: object) -> None:
        for _, link in self._workers:
            link.close()
        for worker, _ in self._workers:
            worker.terminate()
            worker.wait()
        self._workers = []

    def map(self, tasks: Iterator[Task]) -> Iterator[Result]:
        """Results in the order of the tasks; tasks are taken from the iterator only as workers become free.

        Raises:
            DataError: the function raised one, or a worker died.
        """
        if not self._workers:
            function = self._make(*self._arguments)
            yield from map(function, tasks)
            return
        window = _RESULTS_WAITING_PER_WORKER * self._num_workers
        processes = {connection: process for process, connection in self._workers}
        idle = [connection for _, connection in self._workers]
        busy: dict[Connection, int] = {}
        waiting: dict[int, Result] = {}
        given = taken = 0
        exhausted = False
        while True:
            # One task at a time and only to an idle worker: two blocked senders facing each other would never end.
            while idle and not exhausted and given - taken < window:
                try:
                    task = next(tasks)
                except StopIteration:
                    exhausted = True
                    break
                connection = idle.pop()
                _send(processes[connection], connection, task)
                busy[connection] = given
                given += 1
            if taken in waiting:
                yield waiting.pop(taken)
                taken += 1
                continue
            if not busy:
                return
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                waiting[busy.pop(ready)] = _receive(processes[ready], ready)
                idle.append(ready)


def _send(process: subprocess.Popen[bytes], connection: Connection, message: object) -> None:
    try:
        connection.send(message)
    except OSError:
        raise _death(process) from None


def _receive(process: subprocess.Popen[bytes], connection: Connection) -> Result:  # type: ignore[type-var]
    try:
        error, result = connection.recv()
    except (EOFError, OSError):
        raise _death(process) from None
    if error is not None:
        raise error
    return result


def _death(process: subprocess.Popen[bytes]) -> DataError:
    code = process.wait()
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return DataError(f"a worker process {how}: is there enough memory, and space on the disk?")


def serve(fd: int) -> None:
    """The life of a worker: build the function, answer tasks until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent closes the connection
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError), Connection(fd) as connection:
        module, name, arguments = connection.recv()
        function: Callable[[object], object] | None = None
        failure: Exception | None = None
        try:  # before the first task comes: what it imports loads while the parent does something else
            function = getattr(importlib.import_module(module), name)(*arguments)
        except Exception as error:  # the answer to every task; the parent raises it
            failure = error
        while True:
            task = connection.recv()
            result = None
            if function is not None:
                try:
                    result, failure = function(task), None
                except Exception as error:
                    failure = error
            connection.send((failure, result))
