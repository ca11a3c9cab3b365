"""Output appears whole or not at all: refusals, kill -9, a full disk, and going on with --resume."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from codellama_data import DataError, find_corpus, preprocess_code
from codellama_data.output import WorkFolder, check_space, partition_paths
from codellama_tokenizer import CodeLlamaTokenizer

Read = Callable[[object], dict[str, npt.NDArray[np.int32]]]

# Small tasks, a journal entry after each, and an end after the fourth: what `kill -9` in a long run leaves.
KILLED = """
import os, signal, sys
import codellama_data.job as job
from codellama_data.cli import main
job._CHUNK_BYTES, job._JOURNAL_SECONDS = 2000, -1.0
write, entries = job.Job._write_journal, []
def write_and_die(self):
    write(self)
    entries.append(0)
    if len(entries) == 4 and sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
job.Job._write_journal = write_and_die
job.chunked.__defaults__ = (2000, 256)
sys.exit(main(sys.argv[2:]))
"""


def arguments(folder: Path, tokenizer: CodeLlamaTokenizer, output: Path, *more: str) -> list[str]:
    return [
        *("preprocess", "--dataset_type", "code", "--input_glob", str(folder), "--no_progress", "--seq_length", "31"),
        *("--model_file", str(tokenizer.model_file), "--output_file", str(output), *more),
    ]


def test_partition_names_are_padded_like_mindspores() -> None:
    assert [path.name for path in partition_paths(Path("o"), 1)] == ["o"]
    assert [path.name for path in partition_paths(Path("o"), 2)] == ["o0", "o1"]
    assert [path.name for path in partition_paths(Path("o"), 11)][:2] == ["o00", "o01"]


def test_existing_output_and_missing_folder_are_refused(
    folder: Path, tmp_path: Path, tokenizer: CodeLlamaTokenizer, read_all: Read
) -> None:
    corpus = find_corpus(str(folder))

    def run(output: Path, overwrite: bool = False, **more: Any) -> None:
        preprocess_code(
            corpus, tokenizer, output, seq_length=31, num_workers=1, overwrite=overwrite, progress=False, **more
        )

    with pytest.raises(DataError, match=r"no/such: no such folder, create it first"):
        run(tmp_path / "no" / "such" / "o")
    with pytest.raises(DataError, match=r"a:b: MindSpore allows no : in the name"):
        run(tmp_path / "a:b")
    with pytest.raises(DataError, match="is a folder"):
        run(tmp_path / "corpus")
    run(tmp_path / "o")
    before = (tmp_path / "o").read_bytes()
    with pytest.raises(DataError, match=r"o: exists already, give --overwrite"):
        run(tmp_path / "o", seed=1)
    assert (tmp_path / "o").read_bytes() == before
    with pytest.raises(DataError, match=r"both outputs have this name"):
        run(tmp_path / "p", eval_output_file=tmp_path / "p")
    first = read_all(tmp_path / "o")["input_ids"]
    run(tmp_path / "o", overwrite=True, seed=1)
    second = read_all(tmp_path / "o")["input_ids"]
    assert first.shape != second.shape or (first != second).any()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "o", "o.db"]


def test_two_runs_for_one_output_are_refused(tmp_path: Path) -> None:
    with (
        WorkFolder(tmp_path / "o"),
        pytest.raises(DataError, match="another run is writing"),
        WorkFolder(tmp_path / "o"),
    ):
        pass
    with WorkFolder(tmp_path / "o"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", ["1", "2"])
def test_killed_run_leaves_nothing_that_looks_finished_and_goes_on_with_resume(
    folder: Path,
    tmp_path: Path,
    tokenizer: CodeLlamaTokenizer,
    environment: dict[str, str],
    read_all: Read,
    workers: str,
) -> None:
    (folder / "dup.py").write_text((folder / "a" / "file01.py").read_text())  # its twin comes before the kill

    def run(how: str, output: str, *more: str) -> subprocess.CompletedProcess[str]:
        parts = arguments(folder, tokenizer, tmp_path / output, "--num_workers", workers, *more)
        evaluation = ("--eval_output_file", str(tmp_path / f"{output}.eval"), "--eval_share", "0.3")
        command = [sys.executable, "-c", KILLED, how, *parts, *evaluation]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)

    assert run("killed", "o").returncode == -signal.SIGKILL
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("o")]
    refused = run("whole", "o", "--resume", "--seed", "5")
    assert refused.returncode == 1
    assert "had another input or other options" in refused.stderr
    resumed = run("whole", "o", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    whole = run("whole", "w")
    assert whole.returncode == 0, whole.stderr
    for part in ("", ".eval"):
        one, other = read_all(tmp_path / f"o{part}")["input_ids"], read_all(tmp_path / f"w{part}")["input_ids"]
        assert (one == other).all()

    def told(text: str) -> list[str]:
        return [line.split(": ", 2)[-1] for line in text.splitlines() if not line.startswith("took")]

    assert told(resumed.stdout) == told(whole.stdout)
    assert "1 duplicate documents" in resumed.stdout
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize(("limit", "message"), [(4096, "rows can not be written"), (1 << 20, "check the space")])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    folder: Path, tmp_path: Path, tokenizer: CodeLlamaTokenizer, environment: dict[str, str], limit: int, message: str
) -> None:
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-m", "codellama_data", *arguments(folder, tokenizer, tmp_path / "out" / "o")]

    def small_files() -> None:  # stands in for a full disk: writing beyond the limit fails
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        [*command, "--num_workers", "1"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=small_files,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_missing_space_is_found_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no space left on the device, .* MiB needed"):
        check_space(tmp_path, 1 << 60)
