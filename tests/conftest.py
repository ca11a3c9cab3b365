"""What the tests across packages share: a small corpus, one short training run, real data where it is at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of data for checks, which is not part of the project."""
    folder = Path(os.environ.get("CODELLAMA_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data for checks in {folder} (set CODELLAMA_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def command(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a console script of the environment, with a cache of its own; returns the finished process."""
    environment = os.environ | {"CODELLAMA_CACHE": str(tmp_path_factory.mktemp("cache"))}
    environment.pop("HATCH_ENV_ACTIVE", None)  # the programs name other commands inside hatch

    def run(name: str, *arguments: object, cwd: Path, **options: object) -> subprocess.CompletedProcess[str]:
        script = Path(sys.executable).parent / name
        return subprocess.run(  # type: ignore[call-overload]
            [script, *map(str, arguments)],
            cwd=cwd,
            env=environment,
            text=True,
            capture_output=True,
            timeout=300,
            check=False,
            **options,
        )

    return run


@dataclass(frozen=True)
class TinyRun:
    """A finished training run of a very small network, and what it printed."""

    directory: Path
    config: Path
    corpus: Path
    output: str


TINY = """\
output_dir: {run}
model:
  vocab_size: 400
  hidden_size: 24
  num_layers: 2
  num_heads: 4
  n_kv_heads: 2
  intermediate_size: 40
  max_position_embedding: 512
dataset:
  corpus: {corpus}
  seq_length: 32
  batch_size: 4
  eval_rows: 8
optimizer:
  learning_rate: 1e-2
max_steps: 12
save_steps: 5
"""


@pytest.fixture(scope="session")
def tiny_run(command: Run, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """One real `codellama-train`, on a few modules of the standard library."""
    folder = tmp_path_factory.mktemp("tiny")
    corpus, config, directory = folder / "corpus", folder / "tiny.yaml", folder / "run"
    corpus.mkdir()
    library = Path(os.__file__).parent
    for name in (
        "abc",
        "bisect",
        "contextlib",
        "copy",
        "fnmatch",
        "functools",
        "glob",
        "heapq",
        "io",
        "keyword",
        "operator",
        "queue",
        "random",
        "reprlib",
        "sched",
        "shlex",
        "stat",
        "string",
        "textwrap",
        "types",
    ):
        (corpus / f"{name}.py").write_bytes((library / f"{name}.py").read_bytes())
    config.write_text(TINY.format(run=directory, corpus=corpus))
    done = command("codellama-train", "--config", config, cwd=folder)
    assert done.returncode == 0, done.stderr
    return TinyRun(directory, config, corpus, done.stdout)
