"""Going on from a checkpoint: which one, whether it belongs to this run, and what has changed since."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from codellama_ckpt import Checkpoint, CheckpointError, latest, open_checkpoint

from codellama_app.checkpoint_sizes import CHECKPOINTS
from codellama_app.command import UserError
from codellama_app.config import RunConfig
from codellama_app.retention import PROGRESS
from codellama_app.run_progress import Progress

RUN, DATA = "run", "data"  # of a checkpoint's state: the configuration as resolved, the digest of the rows

# What may change without changing what is computed (beyond rounding, where it is spread over processes otherwise). The
# rows' place may; their digest stands in for it. How a step's rows are cut up may; their number is compared.
_HARMLESS = (
    "resume_training",
    "resume_anyway",
    "output_dir",
    "save_steps",
    "save_minutes",
    "keep_last",
    "keep_best",
    "eval_steps",
    "tensorboard",
    "dataset.train_dataset_dir",
    "dataset.eval_dataset_dir",
    "dataset.eval_rows",
    "dataset.batch_size",
    "gradient_accumulation_steps",
    "recompute",
    "parallel_config.",
    "generation.",
)
_ROWS = (
    "dataset.batch_size",
    "gradient_accumulation_steps",
    "parallel_config.micro_batch_num",
    "parallel_config.data_parallel",
)


@dataclass(frozen=True)
class Found:
    """A checkpoint to go on from, and how far it was."""

    checkpoint: Checkpoint
    progress: Progress


def find_checkpoint(directory: Path) -> Found | None:
    """The newest whole checkpoint of a run's directory; None where the run has saved none.

    Raises:
        CheckpointError: it holds weights only, or is damaged.
    """
    newest = latest(directory / CHECKPOINTS)
    if newest is None:
        return None
    checkpoint = open_checkpoint(newest, verify=True)
    progress = checkpoint.state.get(PROGRESS)
    if not isinstance(progress, dict):
        raise CheckpointError(f"{newest} holds weights only and can not be resumed from (use run_mode finetune)")
    return Found(checkpoint, Progress.from_json(progress))


def run_state(config: RunConfig, digest: str, progress: Progress) -> dict[str, object]:
    """What a checkpoint says of its run beside the arrays."""
    return {PROGRESS: progress.to_json(), RUN: flat(config), DATA: digest}


def check_unchanged(found: Found, config: RunConfig, digest: str) -> None:
    """Prints what changed since the checkpoint, if anything that matters; refuses it unless `resume_anyway`.

    Raises:
        UserError: the configuration or the rows differ.
    """
    saved = found.checkpoint.state.get(RUN)
    before = flat(RunConfig()) | (saved if isinstance(saved, dict) else {})  # keys that are newer had their defaults
    lines = _differences(before, flat(config))
    if _rows(before) != config.step_rows:
        lines.append(f"rows of a step ({' x '.join(_ROWS)}): {_rows(before)} then, {config.step_rows} now")
    if found.checkpoint.state.get(DATA) != digest:
        lines.append(f"the training rows: digest {found.checkpoint.state.get(DATA)} then, {digest} now")
    if not lines:
        return
    print(f"changed since {found.checkpoint.path}:", *(f"  {line}" for line in lines), sep="\n", flush=True)
    if not config.resume_anyway:
        raise UserError(
            f"the run in {config.output_dir} was another: {'; '.join(lines)}. Give what it had, another output_dir,"
            " or --resume_anyway True"
        )


def _rows(values: Mapping[str, object]) -> int:
    return math.prod(int(str(values[key])) for key in _ROWS)


def flat(config: RunConfig) -> dict[str, object]:
    """Every key with its dots, and its value as JSON has it; `model` as resolved."""
    values = dataclasses.asdict(config) | {"model": config.llama().to_dict()}
    return _flat(values, "")


def _flat(values: Mapping[str, object], prefix: str) -> dict[str, object]:
    keys: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            keys |= _flat(value, f"{prefix}{key}.")
        else:
            keys[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return keys


def _differences(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    absent = "(not there)"
    return [
        f"{key}: {before.get(key, absent)} then, {now.get(key, absent)} now"
        for key in {**before, **now}
        if before.get(key, absent) != now.get(key, absent) and not key.startswith(_HARMLESS)
    ]
