"""The checkpoints of a training run: their directories' names, which is the newest, and removing old ones."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path

from codellama_ckpt.errors import CheckpointError
from codellama_ckpt.files import reported, sync_directory
from codellama_ckpt.index import COMPLETE, INDEX

_STEP = re.compile(r"step_([0-9]{6,})")
_LEFTOVER = re.compile(r"\.step_[0-9]{6,}\..*\.tmp")


def step_directory(checkpoints_dir: str | os.PathLike[str], step: int) -> Path:
    """Where the checkpoint of a step belongs: `checkpoints_dir/step_000030`."""
    return Path(checkpoints_dir) / f"step_{step:06d}"


def is_complete(directory: str | os.PathLike[str]) -> bool:
    """Whether a directory is a sharded checkpoint that was saved to its end (its contents are not read)."""
    directory = Path(directory)
    return (directory / COMPLETE).is_file() and (directory / INDEX).is_file()


def latest(checkpoints_dir: str | os.PathLike[str]) -> Path | None:
    """The complete `step_NNNNNN` directory of the highest step; None where there is none, or no `checkpoints_dir`."""
    complete = _complete(Path(checkpoints_dir))
    return complete[-1] if complete else None


def prune(checkpoints_dir: str | os.PathLike[str], keep_last: int, *, keep: Collection[Path] = ()) -> tuple[Path, ...]:
    """Remove all but the newest `keep_last` complete `step_NNNNNN` directories, and what killed saves left of theirs.

    Args:
        checkpoints_dir: of the run.
        keep_last: how many of the newest stay.
        keep: checkpoints that stay whatever their age (those of the lowest loss), by their names.

    Only for the run that owns the directory, and not while it saves. An incomplete `step_NNNNNN` directory, which this
    package never leaves, is not touched.

    Returns:
        The checkpoints removed, oldest first.

    Raises:
        CheckpointError: `keep_last` is less than 1, or something can not be removed.
    """
    if keep_last < 1:
        raise CheckpointError(f"keep_last must be at least 1, found {keep_last}")
    parent = Path(checkpoints_dir)
    kept = {path.name for path in keep}
    removed = tuple(path for path in _complete(parent)[:-keep_last] if path.name not in kept)
    with reported(f"remove old checkpoints of {parent}"):
        for directory in removed:
            # Out of sight in one step, so that a removal cut short never leaves half a checkpoint.
            os.rename(directory, parent / f".{directory.name}.removed.tmp")  # noqa: PTH104
        if parent.is_dir():
            sync_directory(parent)
            for path in parent.iterdir():
                if _LEFTOVER.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
    return removed


def _complete(parent: Path) -> list[Path]:
    """The complete checkpoints of a run, by rising step."""
    if not parent.is_dir():
        return []
    found = [(int(match[1]), path) for path in parent.iterdir() if (match := _STEP.fullmatch(path.name))]
    return [path for _, path in sorted(found) if is_complete(path)]
