"""Shared by the tests: a tiny tokenizer, small corpora, the command line, and data that may be missing."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from codellama_data import open_rows, standard_library
from codellama_tokenizer import CodeLlamaTokenizer, train_tokenizer

VOCAB_SIZE = 700
Rows = dict[str, npt.NDArray[np.int32]]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CodeLlamaTokenizer:
    texts = [document.text for document, _ in zip(standard_library().documents(), range(60), strict=False)]
    model_file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return train_tokenizer(texts, model_file, VOCAB_SIZE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty small sources in two folders, each different, with characters of several widths."""
    generator = random.Random(7)
    for number in range(40):
        path = tmp_path / "corpus" / ("a" if number % 2 else "b") / f"file{number:02d}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            f"def f{number}_{line}(x):\n    return x + {generator.random()}  # é∑🐍\n" for line in range(number + 1)
        ]
        path.write_text("".join(lines), encoding="utf-8")
    return tmp_path / "corpus"


@pytest.fixture(scope="session")
def read_all() -> Callable[..., Rows]:
    """All rows of a MindRecord source, stacked by column."""

    def read(source: object) -> Rows:
        rows = open_rows(source)  # type: ignore[arg-type]
        found = list(rows)
        return {column: np.stack([row[column] for row in found]) for column in rows.columns}

    return read


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """For subprocesses: they import what the tests import."""
    return dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))


@pytest.fixture(scope="session")
def run_cli(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "codellama_data", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)

    return run


@pytest.fixture(scope="session")
def test_data() -> Path:
    beside = next(
        (one / "shared" / "data" for one in Path(__file__).parents if (one / "shared" / "data").is_dir()), None
    )
    path = Path(os.environ["CODELLAMA_TEST_DATA"]) if "CODELLAMA_TEST_DATA" in os.environ else beside
    if path is None or not path.is_dir():
        pytest.skip("no test data: set CODELLAMA_TEST_DATA to a folder that holds wikitext2 and codealpaca")
    return path
