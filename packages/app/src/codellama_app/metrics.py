"""What a run records: `metrics.jsonl`, one object a step, and `loss.png` drawn from it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

METRICS, LOSS_PICTURE = "metrics.jsonl", "loss.png"
_SMOOTHING = 0.9  # weight of the past in the drawn average


class Metrics:
    """Appends steps to a run's `metrics.jsonl`; a line is whole once `step` returns."""

    def __init__(self, directory: Path) -> None:
        self._file = (directory / METRICS).open("a", encoding="utf-8")

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def step(self, values: Mapping[str, float | int]) -> None:
        """Writes one step."""
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()


def draw_loss(directory: Path, levels: Mapping[str, float]) -> Path:
    """Draws the loss of every step, and `levels` as horizontal lines; returns the picture's path."""
    import matplotlib as mpl  # noqa: PLC0415  (a second of import, wanted once at the end)

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    rows = [json.loads(line) for line in (directory / METRICS).read_text(encoding="utf-8").splitlines()]
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    smooth: list[float] = []
    for loss in losses:
        smooth.append(loss if not smooth else _SMOOTHING * smooth[-1] + (1 - _SMOOTHING) * loss)
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=0.8, label="training loss")
    axes.plot(steps, smooth, color="tab:blue", linewidth=1.8, label="running average")
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
