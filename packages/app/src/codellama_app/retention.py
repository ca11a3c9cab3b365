"""Which checkpoints of a run stay: the newest ones, and those with the lowest validation loss."""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path

from codellama_ckpt import is_complete, open_checkpoint, prune

from codellama_app.run_progress import Progress

PROGRESS = "progress"  # of a checkpoint's state


def prune_checkpoints(directory: Path, keep_last: int | None, keep_best: int) -> list[Path]:
    """Removes what is neither among the newest nor among the best; returns what was removed, oldest first."""
    if keep_last is None:
        return []
    complete = sorted(path for path in directory.glob("step_*") if is_complete(path))
    kept = set(complete[-keep_last:])
    if keep_best:
        losses = {path: _validation_loss(path) for path in complete}
        kept.update(sorted(complete, key=lambda path: (losses[path], path))[:keep_best])
    removed = [path for path in complete if path not in kept]
    for path in removed:
        hidden = directory / f".{path.name}.removed.tmp"  # a removal cut short leaves no half checkpoint in sight
        path.rename(hidden)
        shutil.rmtree(hidden)
    return removed


def remove_leftovers(directory: Path) -> None:
    """Removes what killed saves left of theirs; only while nothing is being saved."""
    prune(directory, keep_last=sys.maxsize)


def _validation_loss(path: Path) -> float:
    """Of the validation that followed the checkpoint's step; infinite without one."""
    progress = Progress.from_json(open_checkpoint(path).state[PROGRESS])  # type: ignore[arg-type]
    return progress.eval_loss if progress.eval_loss is not None and progress.eval_step == progress.step else math.inf
