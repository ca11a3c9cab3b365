"""Finding the newest checkpoint of a run and removing old ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from codellama_ckpt import CheckpointError, is_complete, latest, open_checkpoint, prune, save_sharded, step_directory


def save_steps(parent: Path, *steps: int) -> list[Path]:
    directories = [step_directory(parent, step) for step in steps]
    for step, directory in zip(steps, directories, strict=True):
        save_sharded({"step": np.array(step)}, directory)
    return directories


def test_names_of_steps() -> None:
    assert step_directory("run", 30) == Path("run/step_000030")
    assert step_directory("run", 12_345_678) == Path("run/step_12345678")


def test_latest_is_the_highest_step_not_the_last_name(tmp_path: Path) -> None:
    assert latest(tmp_path / "none") is None
    assert latest(tmp_path) is None
    directories = save_steps(tmp_path, 1_000_000, 999_999, 30)  # as text, step_1000000 < step_999999
    assert latest(tmp_path) == directories[0]


def test_incomplete_and_foreign_directories_are_not_latest(tmp_path: Path) -> None:
    (directory,) = save_steps(tmp_path, 30)
    shutil.copytree(directory, tmp_path / "step_000031")
    (tmp_path / "step_000031" / "COMPLETE").unlink()
    (tmp_path / "step_000032").mkdir()
    (tmp_path / "step_000033").write_text("a file")
    shutil.copytree(directory, tmp_path / "step_000034.backup")
    shutil.copytree(directory, tmp_path / "best")
    assert latest(tmp_path) == directory
    assert is_complete(tmp_path / "best")
    assert not is_complete(tmp_path / "step_000031")
    assert not is_complete(tmp_path / "nothing")


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    directories = save_steps(tmp_path, 10, 20, 30, 40)
    shutil.copytree(directories[0], tmp_path / "best")
    (tmp_path / "step_000005").mkdir()  # incomplete, and not ours
    (tmp_path / "metrics.jsonl").write_text("{}")
    assert prune(tmp_path, keep_last=2) == (directories[0], directories[1])
    assert {path.name for path in tmp_path.iterdir()} == {
        "step_000030",
        "step_000040",
        "best",
        "step_000005",
        "metrics.jsonl",
    }
    assert open_checkpoint(directories[2]).read("step") == 30
    assert prune(tmp_path, keep_last=2) == ()
    assert prune(tmp_path / "none", keep_last=2) == ()
    with pytest.raises(CheckpointError, match="keep_last must be at least 1, found 0"):
        prune(tmp_path, keep_last=0)
    assert latest(tmp_path) == directories[3]


def test_prune_spares_what_is_to_be_kept(tmp_path: Path) -> None:
    directories = save_steps(tmp_path, 10, 20, 30, 40)
    assert prune(tmp_path, 1, keep=[directories[1], directories[3]]) == (directories[0], directories[2])
    assert sorted(tmp_path.iterdir()) == [directories[1], directories[3]]


def test_prune_finishes_what_was_cut_short(tmp_path: Path) -> None:
    save_steps(tmp_path, 10)
    (tmp_path / ".step_000020.0a1b.tmp").mkdir()
    (tmp_path / ".step_000020.0a1b.tmp" / "part").write_text("half")
    (tmp_path / ".step_000005.removed.tmp").mkdir()
    (tmp_path / ".git").mkdir()
    prune(tmp_path, keep_last=1)
    assert {path.name for path in tmp_path.iterdir()} == {"step_000010", ".git"}
