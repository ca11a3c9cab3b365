"""Draws the points of `lengths.py`: a column for each kind of work, time above, memory below."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.ticker import NullLocator
from sides.bounds import Bounds

_TITLES = {
    "decode": ("decode, 135 M", "ms a token", "tokens before"),
    "prefill": ("prompt, 135 M", "ms a prompt", "tokens of the prompt"),
    "train": ("training step, 56 M", "ms a step", "tokens of the row"),
}
_LABELS = {"ours": "this project"}
_COLORS = {"ours": "tab:blue", "llama.cpp F16": "tab:orange", "transformers float32": "tab:green", "torch": "tab:green"}


def draw(points: list[dict[str, Any]], bounds: Bounds, folder: Path) -> Path:
    """Writes performance-lengths.png; returns its path."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415  (after the backend is chosen)

    figure, axes = plt.subplots(2, 3, figsize=(12, 7), layout="constrained")
    for column, (work, (title, unit, length_label)) in enumerate(_TITLES.items()):
        time, memory = axes[0][column], axes[1][column]
        mine = [one for one in points if one["work"] == work]
        for side in sorted({one["side"] for one in mine}, key=[*_COLORS].index):
            line = sorted((one["length"], one["seconds"], one["peak_bytes"]) for one in mine if one["side"] == side)
            style = {"marker": "o", "color": _COLORS[side], "label": _LABELS.get(side, side)}
            time.plot([one[0] for one in line], [one[1] * 1e3 for one in line], **style)
            memory.plot([one[0] for one in line], [one[2] / 1e9 for one in line], **style)
        lengths = sorted({one["length"] for one in mine})
        style = {"linestyle": "--", "color": "tab:gray"}
        time.plot(lengths, [bounds.seconds(work, n) * 1e3 for n in lengths], label="bound", **style)
        memory.plot(lengths, [bounds.bytes(work, n) / 1e9 for n in lengths], label="bound", **style)
        time.set(title=title, ylabel=unit, yscale="log")
        memory.set(ylabel="peak memory, GB", ylim=(0, None))
        for one in (time, memory):
            one.set(xlabel=length_label, xscale="log")
            one.set_xticks(lengths, [f"{n:,}" for n in lengths])
            one.xaxis.set_minor_locator(NullLocator())
            one.grid(alpha=0.3)
        time.legend()
    path = folder / "performance-lengths.png"
    beside = folder / f".{path.name}"
    figure.savefig(beside, format="png", dpi=110)
    plt.close(figure)
    beside.replace(path)
    return path
