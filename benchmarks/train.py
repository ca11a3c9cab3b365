"""A training step against torch and transformers, float32, alternating in one run.

    hatch run bench:train [--size 56m|long] [--rounds 7] [--steps 3] [--idle_seconds 60]
    hatch run bench:train --loop            and `codellama-train` with its whole loop, against this bare step

With `--loop`, a third side is `codellama-train` itself on MindRecord rows: metrics, clipping, and a checkpoint every
`loop_steps` steps, written in the background; a measurement has one checkpoint in it.

Before each round both sides wait until the machine is otherwise idle, for `idle_seconds` at most; a round that began on
a busy machine says so. Prints each round's tokens/s, peak memory, and the step's rate as a share of the machine's best
rate of float32 products (the larger of NumPy's and torch's, measured in the same round); the last line is one JSON
object.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "sides"))
from sides.hardware import hardware
from sides.idle import wait_until_idle
from sides.machine import product_rate
from sides.workers import Worker, environment_python
from train_loop import TrainLoop
from train_protocol import SIZES, step_flops

SIDES = Path(__file__).parent / "sides"
PEER_ENVIRONMENT = "bench-transformers"
BARE, PEER, LOOP = "ours", "torch", "codellama-train"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="56m")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="steps that a measurement takes the mean of")
    parser.add_argument("--idle_seconds", type=float, default=60, help="the longest wait for an idle machine")
    parser.add_argument(
        "--peer_python", help=f"an interpreter with torch and transformers; default: {PEER_ENVIRONMENT}'s"
    )
    parser.add_argument("--loop", action="store_true", help="measure codellama-train with its whole loop too")
    parser.add_argument("--loop_steps", type=int, default=40, help="steps of such a measurement, with one checkpoint")
    parser.add_argument("--folder", help="where its checkpoints go; default: the system's temporary folder")
    flags = parser.parse_args()
    theirs = flags.peer_python or environment_python(PEER_ENVIRONMENT)
    size = SIZES[flags.size]
    with contextlib.ExitStack() as stack:
        sides: dict[str, Worker | TrainLoop] = {}
        for name, command in ((BARE, [sys.executable, "train_ours.py"]), (PEER, [theirs, "train_torch.py"])):
            python, program = command
            sides[name] = worker = Worker([python, str(SIDES / program), flags.size, str(flags.steps)])
            stack.callback(worker.close)
            print(f"{name}: {worker.about['about']}")
        if flags.loop:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=flags.folder)))
            sides[LOOP] = loop = TrainLoop(size, flags.loop_steps, folder)
            stack.callback(loop.close)
        print(f"{hardware()}\n{flags.size}: {size}, {step_flops(size) / 1e9:.0f} GFLOP a step")
        rounds, peaks, busy = measure(sides, size, flags.rounds, flags.idle_seconds)
    tokens = size["batch"] * size["sequence"]
    result: dict[str, Any] = {
        "work": f"training step {flags.size}, float32, batch {size['batch']} x {size['sequence']}",
        **comparison(rounds, BARE, PEER, PEER),
        "sgemm_peak_flops": statistics.median(peaks),
        "hardware": hardware(),
        "rounds": flags.rounds,
        "not_idle": busy,
    }
    if flags.loop:
        work = f"codellama-train, a checkpoint every {flags.loop_steps} steps of {tokens} tokens, and its bare step"
        result["loop"] = {"work": work, **comparison(rounds, LOOP, BARE, "bare step")}
    print(json.dumps(result))


def comparison(rounds: dict[str, list[dict[str, float]]], ours: str, peer: str, name: str) -> dict[str, Any]:
    """Medians of two sides and of their paired ratios, which are printed too."""
    figures = {
        side: {
            "tokens_per_second": statistics.median(one["rate"] for one in rounds[side]),
            "peak_bytes": max(one["peak_bytes"] for one in rounds[side]),
            "share_of_sgemm_peak": statistics.median(one["share"] for one in rounds[side]),
        }
        for side in (ours, peer)
    }
    ratio = {
        "tokens_per_second": statistics.median(
            a["rate"] / b["rate"] for a, b in zip(rounds[ours], rounds[peer], strict=True)
        ),
        "peak_bytes": figures[ours]["peak_bytes"] / figures[peer]["peak_bytes"],
    }
    for side, figure in figures.items():
        print(f"{side}: {figure['tokens_per_second']:.0f} tokens/s, peak memory {figure['peak_bytes'] / 1e9:.2f} GB")
    speed, memory = ratio["tokens_per_second"], ratio["peak_bytes"]
    print(f"{ours} against {name}: {speed:.3f} x the speed, {memory:.2f} x the memory")
    return {"ours": figures[ours], "peers": {name: figures[peer]}, "ratio": {name: ratio}}


def measure(
    sides: dict[str, Worker | TrainLoop], size: dict[str, int], rounds: int, idle_seconds: float
) -> tuple[dict[str, list[dict[str, float]]], list[float], int]:
    """What each side did in each round, the sides taking turns; each round's best rate of products; rounds not idle."""
    tokens, flops = size["batch"] * size["sequence"], step_flops(size)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    peaks: list[float] = []
    not_idle = 0
    print(f"{'round':>5} {'sgemm GFLOP/s':>14} " + " ".join(f"{name + ' tokens/s':>25} {'share':>6}" for name in sides))
    for number in range(1, rounds + 1):
        busy = wait_until_idle(idle_seconds)
        not_idle += busy > 0
        answers = {name: side.measure() for name, side in sides.items()}
        peaks.append(max(product_rate(), answers[PEER]["product_rate"]))
        row = f"{number:5} {peaks[-1] / 1e9:14.0f} "
        for name, answer in answers.items():
            one = {
                "rate": tokens / answer["seconds"],
                "share": flops / answer["seconds"] / peaks[-1],
                "peak_bytes": answer["peak_bytes"],
            }
            found[name].append(one)
            row += f"{one['rate']:25.0f} {one['share']:6.2f} "
        print(row + (f"  (machine busy: {busy:.0%})" if busy else ""), flush=True)
    return found, peaks, not_idle


if __name__ == "__main__":
    main()
