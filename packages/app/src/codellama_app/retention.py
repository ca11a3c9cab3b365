"""Which checkpoints of a run stay: the newest ones, and those with the lowest validation loss."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from codellama_ckpt import is_complete, open_checkpoint, prune

from codellama_app.run_progress import Progress

PROGRESS = "progress"  # of a checkpoint's state


def prune_checkpoints(directory: Path, keep_last: int | None, keep_best: int) -> tuple[Path, ...]:
    """Removes what is neither among the newest nor among the best; returns what was removed, oldest first.

    Checkpoints without a validation after their step are never among the best. Only while nothing is being saved.

    Raises:
        CheckpointError: one can not be read or removed.
    """
    if keep_last is None:
        return ()
    return prune(directory, keep_last, keep=_best(directory, keep_best))


def remove_leftovers(directory: Path) -> None:
    """Removes what killed saves left of theirs; only while nothing is being saved."""
    prune(directory, keep_last=sys.maxsize)


def _best(directory: Path, count: int) -> list[Path]:
    """The checkpoints with the lowest validation loss; of equal ones, the oldest."""
    if not count:
        return []
    losses = {path: _validation_loss(path) for path in directory.glob("step_*") if is_complete(path)}
    validated = [path for path, loss in losses.items() if math.isfinite(loss)]
    return sorted(validated, key=lambda path: (losses[path], path))[:count]


def _validation_loss(path: Path) -> float:
    """Of the validation that followed the checkpoint's step; infinite without one."""
    progress = Progress.from_json(open_checkpoint(path).state[PROGRESS])  # type: ignore[arg-type]
    return progress.eval_loss if progress.eval_loss is not None and progress.eval_step == progress.step else math.inf
