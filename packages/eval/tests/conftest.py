"""Shared by the tests: HumanEval, one sandbox for the session, the command line, and data that may be missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from codellama_eval import Outcome, Problem, load_problems
from codellama_eval.execution import Executor
from codellama_eval.sandbox.workers import Sandbox

Sample = tuple[str, str]


@pytest.fixture(scope="session")
def problems() -> dict[str, Problem]:
    return load_problems()


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(allow_unsandboxed=True) as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def outcomes(sandbox: Sandbox, problems: dict[str, Problem]) -> Callable[[Iterable[Sample]], list[Outcome]]:
    """Outcomes of (task_id, completion); what has been run once is not run again."""
    executor = Executor(sandbox, problems, strict=False, timeout=6.0)
    known: dict[Sample, Outcome] = {}

    def run(samples: Iterable[Sample]) -> list[Outcome]:
        samples = list(samples)
        new = list(dict.fromkeys(sample for sample in samples if sample not in known))
        known.update(zip(new, executor.run(new, lambda: None), strict=True))
        return [known[sample] for sample in samples]

    return run


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """For subprocesses: they import what the tests import."""
    return dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))


@pytest.fixture(scope="session")
def run_cli(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "codellama_eval", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)

    return run


@pytest.fixture(scope="session")
def infilling_data() -> Path:
    beside = next(
        (one / "shared" / "data" for one in Path(__file__).parents if (one / "shared" / "data").is_dir()), None
    )
    path = Path(os.environ["CODELLAMA_TEST_DATA"]) if "CODELLAMA_TEST_DATA" in os.environ else beside
    if path is None or not (path / "infilling").is_dir():
        pytest.skip("no test data: set CODELLAMA_TEST_DATA to a folder that holds infilling")
    return path / "infilling"
