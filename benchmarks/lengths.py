"""Cost against length: decoding, prompts and training steps, time and peak memory, beside what the machine allows.

    hatch run bench:lengths                          every point that docs/performance.json does not have, and the plot
    hatch run bench:lengths --work train --again     those of one kind anew
    hatch run bench:lengths --points 1               one point, which takes seconds to a minute

A point is one side at one length in a process of its own; each is recorded as soon as it is measured, so that a run
can be ended and gone on with. Sides at a length do not take turns: their ratios are for `decode.py`, `prefill.py` and
`train.py` to say. generate: the time of a prompt, and of a token after it, at 135 M. train: a step over one row of so
many tokens, 56 M.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "sides"))
from sides import contest, records
from sides.bounds import Bounds
from sides.hardware import hardware
from sides.idle import wait_until_idle
from sides.length_plot import draw
from sides.machine import product_rate
from sides.workers import Worker

SIDES = Path(__file__).parent / "sides"
LENGTHS = {"generate": (128, 512, 2048, 8192), "train": (128, 256, 512, 1024, 2048, 4096)}
RECORDED = {"generate": ("prefill", "decode"), "train": ("train",)}  # what is recorded of each
PEERS = ["llama.cpp F16", "transformers float32"]
TORCH = "torch"
NEW_TOKENS = 32
ROUNDS, SECONDS = 3, 25  # so many measurements of a point, fewer where they take longer together
Point = dict[str, Any]  # work, side, length, and the figures


def main() -> None:
    parser = contest.arguments(__doc__.splitlines()[0], weights="fp16", rounds=ROUNDS)
    parser.add_argument("--work", nargs="+", choices=list(LENGTHS), default=list(LENGTHS))
    parser.add_argument("--again", action="store_true", help="measure what is recorded already, too")
    parser.add_argument("--points", type=int, help="measure at most so many")
    parser.set_defaults(peers=PEERS)
    flags = parser.parse_args()
    found = records.load()
    known = set(map(place, found["lengths"]))
    with contest.models_folder(flags.models) as models:
        if found["machine"] is None or flags.again:
            found["machine"] = machine(flags)
            records.save(found)
        wanted = [
            (work, side, length, command)
            for work in flags.work
            for length in LENGTHS[work]
            for side, command in commands(flags, models, work, length).items()
            if flags.again or any((one, side, length) not in known for one in RECORDED[work])
        ]
        for work, side, length, command in wanted[: flags.points]:
            points = measure(flags, work, side, length, command)
            print(*map(json.dumps, points), sep="\n", flush=True)
            found["lengths"] = sorted(
                [one for one in found["lengths"] if place(one) not in map(place, points)] + points, key=place
            )
            records.save(found)
        sizes = json.loads((contest.checkpoint(flags, models) / "config.json").read_text())
    picture = draw(found["lengths"], Bounds(found["machine"], sizes), records.DOCS)
    print(f"{max(0, len(wanted) - (flags.points or len(wanted)))} points are left to measure; drawn: {picture}")


def machine(flags: argparse.Namespace) -> dict[str, Any]:
    """The machine's rates, each by the library that reaches more."""
    done = subprocess.run(
        [str(contest.interpreter(flags, "bench-transformers")), str(SIDES / "machine.py")],
        check=True,
        capture_output=True,
        text=True,
    )
    rates = json.loads(done.stdout)
    return rates | {"product_rate": max(product_rate(), rates["product_rate"]), "hardware": hardware()}


def place(point: Point) -> tuple[str, str, int]:
    """Where a point belongs."""
    return point["work"], point["side"], point["length"]


def commands(flags: argparse.Namespace, models: Path, work: str, length: int) -> dict[str, list[str]]:
    """The programs that measure one length, by side."""
    if work == "train":
        torch = str(contest.interpreter(flags, "bench-transformers"))
        return {
            "ours": [sys.executable, str(SIDES / "train_ours.py"), f"56m:{length}", "1"],
            TORCH: [torch, str(SIDES / "train_torch.py"), f"56m:{length}", "1"],
        }
    sizes = ["--prompt_tokens", length, "--new_tokens", NEW_TOKENS, "--threads", flags.threads]
    programs, missing = contest.commands(flags, models, list(map(str, sizes)))
    for name, reason in missing.items():
        print(f"{name}: missing: {reason}", file=sys.stderr)
    return programs


def measure(flags: argparse.Namespace, work: str, side: str, length: int, command: list[str]) -> list[Point]:
    """Points with the median of the seconds (of a prompt, a token, a step) and the most memory of the process."""
    worker = Worker(command, contest.environment(flags))
    answers: list[dict[str, Any]] = []
    busy, start = 0, time.perf_counter()
    while len(answers) < flags.rounds and (not answers or time.perf_counter() - start < SECONDS):
        busy += wait_until_idle(contest.PATIENCE) > 0
        answers.append(worker.measure())
    worker.close()
    seconds = {
        "prefill": lambda one: length / one["prefill"],
        "decode": lambda one: 1 / one["decode"],
        "train": lambda one: one["seconds"],
    }
    about = {
        "peak_bytes": max(one["peak_bytes" if work == "train" else "memory"] for one in answers),
        "rounds": len(answers),
        "not_idle": busy,
    }
    return [
        {
            "work": recorded,
            "side": side,
            "length": length,
            "seconds": statistics.median(map(seconds[recorded], answers)),
            **about,
        }
        for recorded in RECORDED[work]
    ]


if __name__ == "__main__":
    main()
