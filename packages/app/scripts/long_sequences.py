"""How memory and time of a training step grow with the sequence: 1,024 to 16,384 tokens at a small width.

    python packages/app/scripts/long_sequences.py [--lengths 1024,2048,4096,8192,16384] [--recompute] [--picture o.png]

One row a step, each length in a process of its own. Memory is the process's peak over what it held before the network
was made (MindSpore itself). Linear growth shows as a constant last column.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

LENGTHS = "1024,2048,4096,8192,16384"
STEPS = 3  # the first compiles


def main() -> None:
    """The script."""
    parser = argparse.ArgumentParser(description="Memory and time of a training step by sequence length.")
    parser.add_argument("--lengths", default=LENGTHS)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.recompute)))
        return
    print(f"{'tokens':>8} {'MiB':>8} {'s/step':>8} {'tokens/s':>9} {'KiB/token':>10}")
    points = []
    for length in map(int, arguments.lengths.split(",")):
        command = [sys.executable, __file__, "--one", str(length), *(["--recompute"] if arguments.recompute else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{length:8} failed: {done.stderr.strip().splitlines()[-1] if done.stderr else done.returncode}")
            continue
        memory, seconds = json.loads(done.stdout.splitlines()[-1])
        points.append((length, memory, seconds))
        print(
            f"{length:8,} {memory:8,.0f} {seconds:8.2f} {length / seconds:9,.0f} {memory * 1024 / length:10.1f}",
            flush=True,
        )
    if arguments.picture:
        draw(points, arguments.picture)


def measure(length: int, recomputed: bool) -> tuple[float, float]:
    """MiB over MindSpore's own, and the best step's seconds."""
    import mindspore as ms  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415
    from codellama_app.training_step import TrainingStep  # noqa: PLC0415
    from codellama_model import AdamW, CausalLMLoss, LlamaConfig, LlamaForCausalLM  # noqa: PLC0415
    from codellama_parallel.recompute import recompute  # noqa: PLC0415

    ms.set_context(mode=ms.GRAPH_MODE)
    ms.Tensor(np.zeros(1)) + 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        num_layers=4,
        num_heads=2,
        n_kv_heads=1,
        intermediate_size=176,
        max_position_embedding=length,
    )
    network = LlamaForCausalLM(config)
    if recomputed:
        recompute(network, "full")
    step = TrainingStep(CausalLMLoss(network), AdamW(network.trainable_params()), 1.0)
    ids = np.random.default_rng(0).integers(3, 512, (1, length + 1)).astype(np.int32)
    best = float("inf")
    for _ in range(STEPS):
        start = time.perf_counter()
        step(1e-3, 1.0, {"input_ids": ids})
        best = min(best, time.perf_counter() - start)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, best


def draw(points: list[tuple[int, float, float]], path: Path) -> None:
    """The curve, beside a straight line through its last point."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    lengths, memory = [one[0] for one in points], [one[1] for one in points]
    axes.plot(lengths, memory, marker="o", label="measured")
    axes.plot([0, lengths[-1]], [0, memory[-1]], linestyle="--", color="tab:gray", label="proportional")
    axes.set(xlabel="tokens of a row", ylabel="MiB beyond MindSpore's own", title="Memory of a training step")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
