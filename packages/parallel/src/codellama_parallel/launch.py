"""Starts a program as the ranks of a job with MindSpore's `msrun`, watches them, and leaves none behind. Plain Python.

Each rank writes one log, `LOG_DIR/rank_N.log`; what rank 0 writes also goes to the console. When a rank ends with an
error, or is killed, the others are stopped, and the console shows which it was and its last lines. A mistake of the
user's is shown as one process shows it, by its one line: a rank that finds one hands it over (`tell_launcher`) in
`LOG_DIR/rank_N.error`.

On a job of several machines this runs once on each, with a `node_rank` of its own. Where a rank of another machine
has died, MindSpore's scheduler, on the first machine, misses its heartbeats and gives up half a minute later. The ranks
that are left would wait on, and msrun with them: a machine without a scheduler stops its ranks.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

import psutil
from codellama_model.config import ConfigError

RANK_VARIABLE = "RANK_ID"  # set by msrun in every rank that it starts
THREAD_VARIABLES = ("CODELLAMA_NUM_THREADS", "OMP_NUM_THREADS")
# How long a CPU rank waits in a collective for another, who may be compiling a larger graph; MindSpore's own 30 seconds
# are too few. Who is dead is found by the watcher and by MindSpore's heartbeats, long before.
WAIT_VARIABLE, _WAIT_SECONDS = "MS_CPU_COMM_OP_TIMEOUT", "1800"
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 10  # from a polite signal to a kill
# How long ranks may go on without the scheduler: here it ends with a job, a little before they do. On another machine
# it is asked for a connection now and then, and as patiently as MindSpore waits for heartbeats.
_ALONE_SECONDS, _ALONE_SECONDS_AFAR = 10, 30
_PROBE_SECONDS = 3
_LAST_LINES = 15
_MSRUN_WITHOUT_SCHEDULER = "codellama_parallel.msrun_without_scheduler"
_ERRORS_VARIABLE = "CODELLAMA_ERRORS"  # the folder of `tell_launcher`, set for the ranks
_FAILED = re.compile(r"Worker process (\d+) exit with exception\. Error code: (-?\d+)")
_NOISE = re.compile(r"\[(?:WARNING|INFO)\] [A-Z_]+\(.*")  # MindSpore's own, from anywhere in a line to its end


@dataclass(frozen=True)
class Launch:
    """How many ranks, and where. Names are msrun's.

    Args:
        worker_num: ranks of the whole job.
        local_worker_num: ranks on this machine; None means all.
        master_addr, master_port: where the ranks find each other.
        node_rank: number of this machine, from 0.
        log_dir: folder of the logs; is made.

    Raises:
        ConfigError: impossible numbers.
    """

    worker_num: int
    local_worker_num: int | None = None
    master_addr: str = "127.0.0.1"
    master_port: int = 8118
    node_rank: int = 0
    log_dir: Path = Path("log")

    def __post_init__(self) -> None:
        if self.worker_num < 1:
            raise ConfigError(f"worker_num must be 1 or more, found {self.worker_num}")
        if not 1 <= self.local <= self.worker_num:
            raise ConfigError(f"local_worker_num must be 1 to worker_num {self.worker_num}, found {self.local}")
        if not 0 <= self.node_rank * self.local <= self.worker_num - self.local:
            raise ConfigError(
                f"node_rank {self.node_rank}: {self.local} ranks here do not fit among the {self.worker_num} of the job"
            )
        if not 1024 <= self.master_port <= 65535:
            raise ConfigError(f"master_port must be 1024 to 65535, found {self.master_port}")

    @property
    def local(self) -> int:
        """Ranks on this machine."""
        return self.worker_num if self.local_worker_num is None else self.local_worker_num

    @property
    def ranks(self) -> range:
        """The numbers of this machine's ranks."""
        return range(self.node_rank * self.local, (self.node_rank + 1) * self.local)


def launched() -> bool:
    """Whether this process is a rank (or the scheduler) that msrun has started."""
    return os.environ.get("MS_ROLE", "") != ""


def tell_launcher(line: str) -> bool:
    """Hands a rank's one-line error over to `launch`, which shows it, and nothing else, when the rank has ended.

    Returns:
        False where this is no rank that `launch` has started: then nobody shows it.
    """
    folder = os.environ.get(_ERRORS_VARIABLE)
    if folder is None or os.environ.get("MS_ROLE") != "MS_WORKER":
        return False
    path = Path(folder) / f"rank_{os.environ[RANK_VARIABLE]}.error"
    beside = path.with_suffix(".error.part")
    try:
        beside.write_text(f"{line}\n", encoding="utf-8")
        beside.replace(path)
    except OSError:  # no room: the log may have some
        return False
    return True


def log_only(line: str) -> str:
    """A line that stays in a rank's log, in the form of MindSpore's own notes; the console shows all others."""
    return f"[INFO] CODELLAMA({os.getpid()}) {line}"


def threads_per_rank(local_ranks: int) -> int:
    """Cores of this machine that this process may use, shared out among its ranks; at least 1."""
    return max(1, len(os.sched_getaffinity(0)) // local_ranks)


def launch(job: Launch, command: Sequence[str], time_limit: float | None = None) -> int:
    """Runs `command` (a Python script or `-m` module with its arguments, without the interpreter) as the job's ranks.

    Ctrl-C and SIGTERM are passed on to the ranks, so that they can save what they have.

    Args:
        job: how many ranks, and where.
        command: see above.
        time_limit: seconds after which the job is stopped and has failed; None for no limit.

    Returns:
        0 when all ranks here have ended well; otherwise the exit code for this process.

    Raises:
        ConfigError: the port is taken, or the log folder can not be made.
    """
    if job.node_rank == 0:
        _require_free(job)
    _prepare_logs(job)
    watcher = _Watcher(job, _start(job, command), time_limit)
    previous = {number: signal.signal(number, watcher.pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return watcher.watch()
    finally:
        watcher.stop()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _require_free(job: Launch) -> None:
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((job.master_addr, job.master_port))
        except OSError as error:
            raise ConfigError(
                f"can not listen on {job.master_addr}:{job.master_port}: {error.strerror}; give another --master_port"
            ) from None


def _prepare_logs(job: Launch) -> None:
    try:
        job.log_dir.mkdir(parents=True, exist_ok=True)
        for rank in job.ranks:  # of an earlier job
            for kind in ("log", "error"):
                (job.log_dir / f"rank_{rank}.{kind}").unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"can not write logs into {job.log_dir}: {error.strerror}") from None


def _start(job: Launch, command: Sequence[str]) -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    for variable in THREAD_VARIABLES:
        environment.setdefault(variable, str(threads_per_rank(job.local)))
    environment.setdefault(WAIT_VARIABLE, _WAIT_SECONDS)
    environment.setdefault("GLOG_v", "3")  # MindSpore's errors only
    environment[_ERRORS_VARIABLE] = str(job.log_dir.resolve())
    # msrun starts "python": this very interpreter must be the first of that name
    environment["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), environment.get("PATH", "")))
    msrun = shutil.which("msrun", path=environment["PATH"])
    if msrun is None:
        raise ConfigError("msrun is not installed beside this Python; it comes with mindspore")
    words: list[object] = [msrun] if job.node_rank == 0 else [sys.executable, "-m", _MSRUN_WITHOUT_SCHEDULER]
    words += ["--worker_num", job.worker_num, "--local_worker_num", job.local]
    words += ["--master_addr", job.master_addr, "--master_port", job.master_port, "--node_rank", job.node_rank]
    words += ["--log_dir", job.log_dir, "--worker_log_name", "rank", "--tail_worker_log", "-1", "--join", "True"]
    words += ["python", *command]
    with (job.log_dir / f"msrun_{job.node_rank}.log").open("wb") as log:
        return subprocess.Popen(
            [str(word) for word in words],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


class _Watcher:
    """Follows one msrun and the processes that it has started."""

    def __init__(self, job: Launch, msrun: subprocess.Popen[bytes], time_limit: float | None = None) -> None:
        self.job, self.msrun = job, msrun
        self.time_limit = time_limit
        self.deadline = math.inf if time_limit is None else time.monotonic() + time_limit
        self.started: dict[int, psutil.Process] = {}
        self.rank_of: dict[int, int] = {}
        self.scheduler: psutil.Process | None = None
        self.scheduler_seen: float | None = None  # when it lived
        self.next_probe = 0.0
        self.requested: int | None = None  # the signal that asked for an end

    def pass_on(self, number: int, _: FrameType | None) -> None:
        """Hands a signal to every rank; a second one is for those that do not heed it, and stops them."""
        if self.requested is not None:
            self.deadline = -math.inf
        self.requested = number
        for process in self.rank_of:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.started[process].send_signal(number)

    def watch(self) -> int:
        """Waits for the ranks; shows rank 0's log meanwhile. Returns the exit code."""
        console = _Follower(self.job.log_dir / "rank_0.log") if 0 in self.job.ranks else None
        failure, late = None, False
        while not (failure or late or self.deserted) and self.msrun.poll() is None:
            time.sleep(_POLL_SECONDS)
            self._find_processes()
            self._look_for_scheduler()
            failure = self._failure()
            late = time.monotonic() > self.deadline
            if console:
                console.show()
        if console:
            console.show()
        failure = failure or self._failure()
        if failure is None and self.msrun.returncode == 0 and self.requested is None:
            return 0
        if error := self._error():
            print(error, file=sys.stderr)
        elif self.requested is None:
            self._explain(failure, late)
        return 1 if self.requested is None else 128 + self.requested

    def stop(self) -> None:
        """Ends whatever is left: politely, then not."""
        self._find_processes()
        left = list(self.started.values())
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        # ranks that wait for one that is gone heed nothing
        _, left = psutil.wait_procs(left, timeout=0 if self.deserted else _GRACE_SECONDS)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=_GRACE_SECONDS)
        self.msrun.wait()

    def _find_processes(self) -> None:
        """Learns of msrun's children, and which of them is which rank, while they live."""
        with contextlib.suppress(psutil.NoSuchProcess):
            msrun = psutil.Process(self.msrun.pid)
            for process in (msrun, *msrun.children(recursive=True)):
                self.started.setdefault(process.pid, process)
        for number, process in self.started.items():
            if number in self.rank_of or number == self.msrun.pid:
                continue
            with contextlib.suppress(psutil.Error):
                environment = process.environ()
                role = environment.get("MS_ROLE") if process.ppid() == self.msrun.pid else None
                if role == "MS_WORKER":
                    self.rank_of[number] = int(environment[RANK_VARIABLE])
                elif role == "MS_SCHED":
                    self.scheduler = process

    def _failure(self) -> tuple[int, int] | None:
        """(process, exit code) of the rank that msrun says has failed first."""
        match = _FAILED.search(_text(self.job.log_dir / f"msrun_{self.job.node_rank}.log"))
        return (int(match[1]), int(match[2])) if match else None

    @property
    def deserted(self) -> bool:
        """Whether the scheduler has been gone for longer than the ranks here may outlive it."""
        patience = _ALONE_SECONDS_AFAR if self.job.node_rank else _ALONE_SECONDS
        return self.scheduler_seen is not None and time.monotonic() > self.scheduler_seen + patience

    def _look_for_scheduler(self) -> None:
        now = time.monotonic()
        if self.job.node_rank == 0:
            alive = self.scheduler is not None and not _ended(self.scheduler)
        else:
            if now < self.next_probe:
                return
            alive = _listens(self.job.master_addr, self.job.master_port)
            self.next_probe = time.monotonic() + _PROBE_SECONDS
        if alive:
            self.scheduler_seen = now

    def _error(self) -> str:
        """The one-line error that a rank here has handed over: the first rank's, where several have found it."""
        errors = (_text(self.job.log_dir / f"rank_{rank}.error").strip() for rank in self.job.ranks)
        return next(filter(None, errors), "")

    def _explain(self, failure: tuple[int, int] | None, late: bool) -> None:
        """Says what has happened, with the last lines of whoever has failed."""
        rank = self.rank_of.get(failure[0]) if failure else None
        if late:
            path = self.job.log_dir / f"rank_{self.job.ranks.start}.log"
            what = f"the job did not end within {self.time_limit:g} s; it was stopped. Rank {self.job.ranks.start}'s"
        elif self.deserted and self.job.node_rank:
            path = self.job.log_dir / f"rank_{self.job.ranks.start}.log"
            what = f"the first machine no longer answered; the ranks here were stopped. Rank {self.job.ranks.start}'s"
        elif self.deserted:
            path = self.job.log_dir / "scheduler.log"
            what = "a rank no longer answered, maybe on another machine; the ranks here were stopped. The scheduler's"
        elif failure is None or rank is None:
            path = self.job.log_dir / f"msrun_{self.job.node_rank}.log"
            what = f"the job failed; the logs of its ranks are in {self.job.log_dir}. msrun's"
        else:
            path = self.job.log_dir / f"rank_{rank}.log"
            code = failure[1]
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            what = f"rank {rank} {how}; the other ranks were stopped. Its"
        print(f"{what} last lines ({path}):", file=sys.stderr)
        lines = [line for line in map(_kept, _text(path).splitlines()) if line.strip()]
        for line in lines[-_LAST_LINES:]:
            print(f"  {line}", file=sys.stderr)


class _Follower:
    """Copies what is appended to a file to the console, carriage returns of progress bars included."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: IO[str] | None = None
        self.in_note = False  # what was read last ended within a note of MindSpore's

    def show(self) -> None:
        """Shows what is new."""
        if self.file is None:
            if not self.path.exists():
                return
            self.file = self.path.open(encoding="utf-8", errors="replace", newline="")
        new = self.file.read()
        kept = ""
        for line in new.splitlines(keepends=True):
            kept += "" if self.in_note else _kept(line)
            self.in_note = (self.in_note or _NOISE.search(line) is not None) and not line.endswith("\n")
        if kept:
            sys.stdout.write(kept)
            sys.stdout.flush()


def _kept(line: str) -> str:
    """A line without what MindSpore notes, which may begin behind a progress bar; nothing where that is all of it."""
    note = _NOISE.search(line)
    return line[: note.start()] if note else line


def _ended(process: psutil.Process) -> bool:
    """Whether it is gone, or only waits for msrun to ask for its exit code."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _listens(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=_PROBE_SECONDS).close()
    except OSError:
        return False
    return True


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
