"""The program of a pre-forked parent: isolates itself, then forks a process for each request and says how it ended.

It never reads a program or a test: those go from the scorer's side straight to the forked process, over descriptors
that come with the request. So the memory that a sample starts with holds nothing of others, and no tests.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import math
import os
import select
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass
from typing import NoReturn

from codellama_eval.sandbox import isolation, roles

REQUEST = struct.Struct("<QBdd")  # number, role, seconds of processor time, seconds
REPLY = struct.Struct("<QBiBdd")  # number, role, wait status, which limit, seconds of processor time, seconds
ROLES = ("together", "candidate", "checker")
NO_LIMIT, PROCESSOR_LIMIT, WALL_LIMIT = range(3)
# Imported before the fork, so that programs need not load them: what solutions import.
_PRELOADED = (
    "bisect collections.abc copy datetime decimal fractions functools hashlib heapq itertools math operator random re"
    " statistics string typing"
)
_FINEST_WAIT = 0.01  # seconds between looks at a process's clock


@dataclass
class _Running:
    number: int
    role: int
    cpu_limit: float
    wall_limit: float
    started: float
    next_look: float
    limit: int = NO_LIMIT


def main() -> NoReturn:
    """Runs on descriptor 0, the connection; one JSON line with settings comes first."""
    control = socket.socket(fileno=os.dup(0))
    isolation.silence()
    lines = control.makefile("rb")
    settings = json.loads(lines.readline())

    def say(message: object) -> None:
        control.sendall(json.dumps(message).encode() + b"\n")

    def map_users() -> bool:
        say({"map": os.getpid()})
        return bool(json.loads(lines.readline()))

    children = _open_children()  # now: Landlock and a private root leave no /proc
    try:
        for name in _PRELOADED.split():
            importlib.import_module(name)
        sys.path[:] = [path for path in sys.path if path not in settings["hidden_paths"]] + settings["package_paths"]
        layers = isolation.isolate(
            frozenset(settings["without"]), settings["packages"], settings["memory_bytes"], map_users
        )
        layers["seccomp"], install_filter = _seccomp(settings)
    except isolation.LayerError as error:
        say({"without": error.layer, "reason": error.reason})
        sys.exit(1)
    say({"layers": layers})
    if layers["pid"] is None and children is not None:
        os.close(children)  # of another process than this one
        children = None
    forks, first_process = layers["seccomp"] is not None, layers["pid"] is None
    _Zygote(control, install_filter, forks=forks, first_process=first_process, children=children).serve()


def _open_children() -> int | None:
    """The kernel's list of this process's children, orphans that it adopts among them."""
    with contextlib.suppress(OSError):
        return os.open(f"/proc/{os.getpid()}/task/{os.getpid()}/children", os.O_RDONLY)
    return None


def _seccomp(settings: dict[str, str]) -> tuple[str | None, object]:
    """Why there is no filter, or the filter, tried out in a process of its own."""
    if "seccomp" in settings["without"]:
        return "left out", None
    if not settings["filter"]:
        return settings["no_filter"], None
    from codellama_eval.sandbox import linux  # noqa: PLC0415

    program = linux.SeccompFilter(bytes.fromhex(settings["filter"]))
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(OSError):
            program.install()
            os._exit(0)
        os._exit(1)
    if os.waitpid(pid, 0)[1] != 0:
        return "the kernel refuses the filter", None
    return None, program


class _Zygote:
    def __init__(
        self,
        control: socket.socket,
        install_filter: object,
        *,
        forks: bool,
        first_process: bool,
        children: int | None,
    ) -> None:
        self._control = control
        self._filter = install_filter
        self._forks = forks  # whether programs can start processes, which are then to be found and ended
        self._first_process = first_process
        self._running: dict[int, _Running] = {}
        self._wake, wake = os.pipe()
        for fd in (self._wake, wake):
            os.set_blocking(fd, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a handler would let programs reach process 1 of the namespace
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._children = children
        self._own_fds = [control.fileno(), self._wake, wake, *([] if children is None else [children])]
        gc.collect()
        gc.freeze()  # else the first collection in a child touches, and so copies, every page

    def serve(self) -> NoReturn:
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        poller.register(self._wake, select.POLLIN)
        while True:
            now = time.monotonic()
            looks = [one.next_look for one in self._running.values() if one.limit == NO_LIMIT]
            events = poller.poll(max(0, math.ceil(1000 * (min(looks) - now))) if looks else None)
            for fd, _ in events:
                if fd == self._wake:
                    os.read(self._wake, 4096)
                else:
                    self._accept()
            self._reap()
            self._look()

    def _accept(self) -> None:
        message, fds, _, _ = socket.recv_fds(self._control, REQUEST.size, 2)
        if len(message) != REQUEST.size:
            self._end_all()
            os._exit(0)
        number, role, cpu_limit, wall_limit = REQUEST.unpack(message)
        pid = os.fork()
        if pid == 0:
            self._become(ROLES[role], fds, cpu_limit)
        for fd in fds:
            os.close(fd)
        now = time.monotonic()
        self._running[pid] = _Running(number, role, cpu_limit, wall_limit, now, now + min(cpu_limit, wall_limit))

    def _become(self, role: str, fds: list[int], cpu_limit: float) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            for fd in self._own_fds:
                os.close(fd)
            self._control.detach()
            if self._forks:
                os.setsid()  # to find what it starts
            if not self._first_process:
                isolation.end_with_parent()
            isolation.limit_child(math.ceil(cpu_limit) + 1)
            if self._filter is not None:
                self._filter.install()  # type: ignore[attr-defined]
            roles.run(fds, role)
        finally:
            os._exit(1)

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            ended = self._running.pop(pid, None)
            if ended is None:
                continue  # something that a program left behind
            if self._forks and not self._running:
                self._sweep(pid)
            cpu = usage.ru_utime + usage.ru_stime
            limit = ended.limit
            if cpu > ended.cpu_limit:
                limit = PROCESSOR_LIMIT
            if ROLES[ended.role] == "checker":  # its verdict is there; nobody waits for the program any more
                for other, one in self._running.items():
                    if one.number == ended.number:
                        os.kill(other, signal.SIGKILL)
            reply = REPLY.pack(ended.number, ended.role, status, limit, cpu, time.monotonic() - ended.started)
            self._control.sendall(reply)

    def _look(self) -> None:
        """Ends what has used up its time."""
        now = time.monotonic()
        for pid, one in self._running.items():
            if one.limit != NO_LIMIT or now < one.next_look:
                continue
            wall_left = one.started + one.wall_limit - now
            cpu_left = one.cpu_limit - _cpu_seconds(pid)
            if cpu_left <= 0:
                one.limit = PROCESSOR_LIMIT
            elif wall_left <= 0:
                one.limit = WALL_LIMIT
            if one.limit != NO_LIMIT:
                os.kill(pid, signal.SIGKILL)
            else:
                one.next_look = now + max(_FINEST_WAIT, min(cpu_left, wall_left))

    def _sweep(self, session: int) -> None:
        """Ends processes that a program left behind, where no filter kept it from starting any."""
        with contextlib.suppress(OSError):
            os.killpg(session, signal.SIGKILL)
        if self._first_process:
            with contextlib.suppress(OSError):
                os.kill(-1, signal.SIGKILL)
        while self._first_process or (orphans := self._orphans()):
            if not self._first_process:
                for pid in orphans:
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGKILL)
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                return

    def _orphans(self) -> list[int]:
        return [] if self._children is None else [int(pid) for pid in os.pread(self._children, 1 << 16, 0).split()]

    def _end_all(self) -> None:
        for pid in self._running:
            os.kill(pid, signal.SIGKILL)
        for pid in list(self._running):
            os.waitpid(pid, 0)
            if self._forks:
                self._sweep(pid)


def _cpu_seconds(pid: int) -> float:
    if sys.platform != "linux":
        return 0.0  # the kernel's own limit remains
    with contextlib.suppress(OSError):
        return time.clock_gettime(((~pid) << 3) | 2)  # clock_getcpuclockid(3)
    return 0.0
