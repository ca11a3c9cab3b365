"""What a run records: `metrics.jsonl`, one object a step; TensorBoard's files on request; `loss.png` at the end."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from codellama_app.command import UserError
from codellama_app.full_disk import NO_ROOM

METRICS, LOSS_PICTURE, TENSORBOARD = "metrics.jsonl", "loss.png", "tensorboard"
_SMOOTHING = 0.9  # weight of the past in the drawn average


class Metrics:
    """Appends steps to a run's `metrics.jsonl`; a line is whole, and with the system, once `step` returns.

    Where the disk is full, lines wait in memory for room: that is said once, and no reason to end a run.

    Args:
        directory: of the run.
        after_step: a resumed run's lines behind this step are removed first: its steps will come again.
        tensorboard: write the same for TensorBoard too.
    """

    def __init__(self, directory: Path, after_step: int = 0, tensorboard: bool = False) -> None:
        self._path = directory / METRICS
        if self._path.exists():
            _cut(self._path, after_step)
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self._waiting = b""
        self._warned = False
        self._board = _summary_writer(directory / TENSORBOARD, after_step) if tensorboard else None

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)
        if self._board is not None:
            self._board.close()

    def step(self, values: Mapping[str, float | int]) -> None:
        """Writes one step; a number that is not finite, which JSON lacks, as null."""
        known = {key: value if math.isfinite(value) else None for key, value in values.items()}
        self._waiting += f"{json.dumps(known)}\n".encode()
        self._write()
        if self._board is not None:
            for key, value in values.items():
                if key != "step":
                    self._board.add_scalar(key, value, values["step"])

    def _write(self) -> None:
        try:
            while self._waiting:
                self._waiting = self._waiting[os.write(self._file, self._waiting) :]
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            if not self._warned:
                print(
                    f"\nWARNING: {self._path}: {error.strerror}; its lines wait for room", file=sys.stderr, flush=True
                )
            self._warned = True


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The lines of a run so far."""
    return [json.loads(line) for line in (directory / METRICS).read_text(encoding="utf-8").splitlines()]


def _cut(path: Path, after_step: int) -> None:
    """Leaves the whole lines up to a step; the file changes at once or not at all."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            break  # the run was killed while it wrote this line
        if not line.endswith("\n") or step > after_step:
            break
        kept.append(line)
    beside = path.with_name(f".{path.name}")
    beside.write_text("".join(kept), encoding="utf-8")
    beside.replace(path)


def check_tensorboard() -> None:
    """UserError where TensorBoard's writer is not installed."""
    try:
        import tensorboardX  # noqa: F401, PLC0415
    except ImportError:
        raise UserError(
            "tensorboard True needs the extra: pip install 'codellama-app[tensorboard]' (or leave it out)"
        ) from None


def _summary_writer(folder: Path, after_step: int) -> Any:
    from tensorboardX import SummaryWriter  # noqa: PLC0415  (an extra)

    return SummaryWriter(str(folder), purge_step=after_step + 1)


def draw_loss(directory: Path, levels: Mapping[str, float]) -> Path:
    """Draws the loss of every step, and `levels` as horizontal lines; returns the picture's path."""
    import matplotlib as mpl  # noqa: PLC0415  (a second of import, wanted once at the end)

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    rows = [row for row in read_metrics(directory) if row["loss"] is not None]
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    validated = [(row["step"], row["eval_loss"]) for row in rows if "eval_loss" in row]
    smooth: list[float] = []
    for loss in losses:
        smooth.append(loss if not smooth else _SMOOTHING * smooth[-1] + (1 - _SMOOTHING) * loss)
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=0.8, label="training loss")
    axes.plot(steps, smooth, color="tab:blue", linewidth=1.8, label="running average")
    if validated:
        axes.plot(*zip(*validated, strict=True), color="tab:orange", marker=".", label="validation loss")
    for color, (label, level) in zip(("tab:green", "tab:red", "tab:gray"), levels.items(), strict=False):
        axes.axhline(level, color=color, linestyle="--", linewidth=1.2, label=f"{label} {level:.2f}")
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=directory.name)
    axes.grid(alpha=0.3)
    axes.legend()
    path = directory / LOSS_PICTURE
    beside = directory / f".{LOSS_PICTURE}"
    figure.savefig(beside, format="png", dpi=120)
    plt.close(figure)
    os.replace(beside, path)  # noqa: PTH105
    return path
