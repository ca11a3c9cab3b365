"""Hostile programs: none scores, harms, or leaves a process or a file; honest samples beside them all pass."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import util
from pathlib import Path

import pytest
from codellama_eval import Outcome, load_problems
from codellama_eval.execution import Executor
from codellama_eval.problems import data_file
from codellama_eval.sandbox.roles import TEXT_LIMIT
from codellama_eval.sandbox.workers import Sandbox

_spec = util.spec_from_file_location("eval_hostile", Path(__file__).with_name("hostile.py"))
assert _spec is not None and _spec.loader is not None
hostile = util.module_from_spec(_spec)
_spec.loader.exec_module(hostile)

TASK = "HumanEval/53"
TIMEOUT = 0.15  # seconds of processor time: honest samples here take milliseconds
LITTER = (Path("/tmp"), Path("/dev/shm"), Path("/var/tmp"))
LONGEST_RESULT = TEXT_LIMIT + len("failed: ")
ALL_LAYERS = ("user", "mount", "pid", "net", "ipc", "uts", "landlock", "seccomp")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox's layers are Linux's")


@dataclass
class Batch:
    outcomes: dict[str, Outcome]
    honest: list[Outcome]
    victim_unharmed: bool
    process_alive: bool
    litter: set[str]
    processes: set[str]


def listing() -> set[str]:
    """What is in the temporary folders; the names of this test's own files and of others' activity drop out later."""
    return {str(path) for folder in LITTER if folder.is_dir() for path in folder.glob("*codellama_eval*")}


def descendants() -> set[str]:
    """Processes below this one: pid and command."""
    parents: dict[int, tuple[int, str]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().rpartition(")")
        except OSError:
            continue
        parents[int(path.parent.name)] = (int(rest.split()[1]), name)
    found: set[int] = {os.getpid()}
    while more := {pid for pid, (parent, _) in parents.items() if parent in found} - found:
        found |= more
    return {f"{pid} {parents[pid][1]}" for pid in found - {os.getpid()}}


def run_batch(folder: Path, *, strict: bool, without: tuple[str, ...] = ()) -> Batch:
    problems = load_problems()
    victim = folder / "victim"
    victim.write_text("mine")
    victim.chmod(0o666)
    folder.chmod(0o777)
    names = [*hostile.WRONG, *hostile.HARMLESS]
    before, processes = listing(), descendants()
    bystander = subprocess.Popen(["sleep", "1000"])
    try:
        values = {"victim": str(victim), "folder": str(folder), "pid": bystander.pid, "data": str(data_file())}
        texts = {**hostile.WRONG, **hostile.HARMLESS}
        attacks = [(TASK, _filled(texts[name], values)) for name in names]
        honest = [(TASK, problems[TASK].canonical_solution)] * len(names)
        mixed = [sample for pair in zip(attacks, honest, strict=True) for sample in pair]
        with Sandbox(2, without=without, allow_unsandboxed=True) as sandbox:
            found = Executor(sandbox, problems, strict=strict, timeout=TIMEOUT).run(mixed, lambda: None)
        alive = bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
    return Batch(
        outcomes=dict(zip(names, found[::2], strict=True)),
        honest=found[1::2],
        victim_unharmed=victim.is_file() and victim.read_text() == "mine" and victim.stat().st_mode & 0o777 == 0o666,
        process_alive=alive,
        litter=listing() - before,
        processes=descendants() - processes,
    )


def _filled(text: str, values: dict[str, object]) -> str:
    for name, value in values.items():
        text = text.replace(f"@{name}@", repr(value))
    return text


@pytest.fixture(scope="module", params=["beside", "apart"])
def batch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Batch]:
    yield run_batch(tmp_path_factory.mktemp("hostile"), strict=request.param == "apart")


def check(batch: Batch, allowed: frozenset[str] = frozenset()) -> None:
    scored = [name for name in hostile.WRONG if batch.outcomes[name].passed and name not in allowed]
    assert scored == []
    assert all(outcome.passed for outcome in batch.honest)
    assert batch.victim_unharmed
    assert batch.process_alive
    assert batch.litter == set()
    assert batch.processes == set()
    assert max(len(outcome.result) for outcome in batch.outcomes.values()) <= LONGEST_RESULT


@needs_linux
def test_no_attack_scores_harms_or_leaves_anything(batch: Batch) -> None:
    check(batch)


@needs_linux
def test_right_answers_pass_whatever_they_try_besides(batch: Batch) -> None:
    assert {name: batch.outcomes[name].result for name in hostile.HARMLESS} == dict.fromkeys(hostile.HARMLESS, "passed")


@needs_linux
@pytest.mark.parametrize(
    ("name", "statuses"),
    [
        ("infinite loop", {"timeout"}),
        ("swallows an alarm, then answers", {"timeout"}),
        ("sleeps", {"timeout"}),
        ("os._exit(0)", {"exited"}),
        ("segmentation fault", {"crashed"}),
        ("3 GB", {"memory"}),
        ("no Python", {"syntax"}),
        ("sys.exit(0)", {"failed"}),
        ("local socket", {"failed"}),
        ("equal to everything", {"unconfirmed", "unsupported"}),
        ("an int that is equal to everything", {"unconfirmed", "failed"}),
    ],
)
def test_outcomes_say_what_happened(batch: Batch, name: str, statuses: set[str]) -> None:
    assert batch.outcomes[name].status in statuses


@needs_linux
@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "without",
    [
        ("user", "mount", "pid", "net", "ipc", "uts"),  # a container without user namespaces
        ("user", "mount", "pid", "net", "ipc", "uts", "landlock"),  # and an older kernel
        ("seccomp",),
        ("landlock",),
    ],
)
def test_fewer_layers_hold_too(tmp_path: Path, without: tuple[str, ...], strict: bool) -> None:
    """What a missing layer would have denied may work, and is harmless all the same."""
    check(run_batch(tmp_path, strict=strict, without=without), allowed=hostile.TRIES)
