"""A training run's directory: what is in it, and how a new run finds its place without losing an old one."""

from __future__ import annotations

import shutil
from pathlib import Path

from codellama_ckpt import step_directory

from codellama_app.checkpoint_sizes import CHECKPOINTS, TOKENIZER
from codellama_app.metrics import LOSS_PICTURE, METRICS, TENSORBOARD

CONFIG = "config.yaml"
SUMMARY = "summary.json"
_PREVIOUS = "previous"
_CONTENT = (CHECKPOINTS, CONFIG, LOSS_PICTURE, METRICS, SUMMARY, TENSORBOARD, TOKENIZER)


def start(directory: Path) -> None:
    """Makes the directory; what an earlier run left in it moves to `previous/N`, and a line says so."""
    directory.mkdir(parents=True, exist_ok=True)
    old = [directory / name for name in _CONTENT if (directory / name).exists()]
    if not old:
        return
    number = 1
    while (directory / _PREVIOUS / str(number)).exists():
        number += 1
    aside = directory / _PREVIOUS / str(number)
    aside.mkdir(parents=True)
    for path in old:
        shutil.move(path, aside / path.name)
    print(f"{directory} held an earlier run, which is now in {aside}", flush=True)


def checkpoint_path(directory: Path, step: int) -> Path:
    """Where the checkpoint of a step goes."""
    return step_directory(directory / CHECKPOINTS, step)
