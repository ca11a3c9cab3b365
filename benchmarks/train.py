"""A training step against torch and transformers, float32, alternating in one run.

    hatch run bench:train [--size 56m|long] [--rounds 7] [--steps 3] [--idle_seconds 60]

Before each round both sides wait until the machine is otherwise idle, for `idle_seconds` at most; a round that began on
a busy machine says so. Prints each round's tokens/s, peak memory, and the step's rate as a share of the machine's best
rate of float32 products (the larger of NumPy's and torch's, measured in the same round); the last line is one JSON
object.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "sides"))
from sides.hardware import hardware
from sides.idle import wait_until_idle
from sides.workers import Worker, environment_python
from train_protocol import SIZES, step_flops

SIDES = Path(__file__).parent / "sides"
PEER_ENVIRONMENT = "bench-transformers"
PEER = "torch"
SQUARE = 2048  # side of the product whose rate is the machine's best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="56m")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="steps that a measurement takes the mean of")
    parser.add_argument("--idle_seconds", type=float, default=60, help="the longest wait for an idle machine")
    parser.add_argument(
        "--peer_python", help=f"an interpreter with torch and transformers; default: {PEER_ENVIRONMENT}'s"
    )
    flags = parser.parse_args()
    theirs = flags.peer_python or environment_python(PEER_ENVIRONMENT)
    arguments = [flags.size, str(flags.steps)]
    workers = {
        "ours": Worker([sys.executable, str(SIDES / "train_ours.py"), *arguments]),
        PEER: Worker([theirs, str(SIDES / "train_torch.py"), *arguments]),
    }
    size = SIZES[flags.size]
    tokens, flops = size["batch"] * size["sequence"], step_flops(size)
    print(f"{hardware()}\n{flags.size}: {size}, {flops / 1e9:.0f} GFLOP a step")
    for name, worker in workers.items():
        print(f"{name}: {worker.about['about']}")
    rates: dict[str, list[float]] = {name: [] for name in workers}
    shares: dict[str, list[float]] = {name: [] for name in workers}
    peaks: list[float] = []
    memory = dict.fromkeys(workers, 0)
    print(
        f"{'round':>5} {'sgemm GFLOP/s':>14} " + " ".join(f"{name + ' tokens/s':>16} {'share':>6}" for name in workers)
    )
    for number in range(1, flags.rounds + 1):
        busy = wait_until_idle(flags.idle_seconds)
        answers = {name: worker.measure() for name, worker in workers.items()}
        best = max(product_rate(), answers[PEER]["product_rate"])
        peaks.append(best)
        row = f"{number:5} {best / 1e9:14.0f} "
        for name, answer in answers.items():
            rates[name].append(tokens / answer["seconds"])
            shares[name].append(flops / answer["seconds"] / best)
            memory[name] = max(memory[name], answer["peak_bytes"])
            row += f"{rates[name][-1]:16.0f} {shares[name][-1]:6.2f} "
        print(row + (f"  (machine busy: {busy:.0%})" if busy else ""), flush=True)
    for worker in workers.values():
        worker.close()
    figures = {
        name: {
            "tokens_per_second": statistics.median(rates[name]),
            "peak_bytes": memory[name],
            "share_of_sgemm_peak": statistics.median(shares[name]),
        }
        for name in workers
    }
    ratio = {
        "tokens_per_second": statistics.median(a / b for a, b in zip(rates["ours"], rates[PEER], strict=True)),
        "peak_bytes": memory["ours"] / memory[PEER],
    }
    for name, figure in figures.items():
        print(f"{name}: {figure['tokens_per_second']:.0f} tokens/s, peak memory {figure['peak_bytes'] / 1e9:.2f} GB")
    print(f"ratio: {ratio['tokens_per_second']:.2f} x the speed, {ratio['peak_bytes']:.2f} x the memory")
    result = {
        "work": f"training step {flags.size}, float32, batch {size['batch']} x {size['sequence']}",
        "ours": figures.pop("ours"),
        "peers": figures,
        "ratio": {PEER: ratio},
        "sgemm_peak_flops": statistics.median(peaks),
        "hardware": hardware(),
    }
    print(json.dumps(result))


def product_rate() -> float:
    """FLOP/s of NumPy's float32 matrix product, at best of four."""
    square = np.ones((SQUARE, SQUARE), np.float32)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        square @ square
        best = min(best, time.perf_counter() - start)
    return 2.0 * SQUARE**3 / best


if __name__ == "__main__":
    main()
