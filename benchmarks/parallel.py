"""Training on two processes, each with half of the threads, against one process with all, alternating in one run.

    hatch run bench:parallel [--meshes tp2 dp2 pp2] [--size 56m] [--rounds 3] [--micro_batches 4]

The work is one and the same: `micro_batches` times the size's batch in a step, 4,096 tokens by default; the gradients
are added up once in a step, so that fewer tokens make that weigh more. Beside each mesh stands what the planner
says a rank sends in a step, and the seconds that just these collectives take. Prints every round's tokens/s, the
medians with the median of the paired ratios, and last one JSON object.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "sides"))
from codellama_parallel import Mesh
from codellama_parallel.traffic import predicted
from parallel_plan import MESHES, RANKS, job
from sides.hardware import hardware
from sides.idle import wait_until_idle
from sides.workers import Worker
from train_protocol import SIZES

SIDES = Path(__file__).parent / "sides"
ALONE = "one process"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--meshes", nargs="+", choices=list(MESHES), default=list(MESHES))
    parser.add_argument("--size", choices=sorted(SIZES), default="56m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="steps that a measurement takes the mean of")
    parser.add_argument("--micro_batches", type=int, default=4, help="of a step; each is the size's batch")
    parser.add_argument("--threads", type=int, default=2, help="of the one process; two processes have half each")
    parser.add_argument("--idle_seconds", type=float, default=60, help="the longest wait for an idle machine")
    flags = parser.parse_args()
    size = SIZES[flags.size] | {"micro_batches": flags.micro_batches}
    tokens = size["batch"] * size["sequence"] * flags.micro_batches
    arguments = [flags.size, str(flags.steps), str(flags.micro_batches)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "CODELLAMA_NUM_THREADS"), str(flags.threads))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        commands = {ALONE: [str(SIDES / "train_ours.py"), *arguments]}
        for mesh in flags.meshes:
            commands[mesh] = [str(SIDES / "parallel_ours.py"), *arguments, mesh, str(flags.threads), folder]
        workers = {}
        print(f"{hardware()}\n{flags.size}: {size}, {tokens} tokens a step", flush=True)
        for name, command in commands.items():
            workers[name] = Worker([sys.executable, *command], os.environ | threads)
            stack.callback(workers[name].close)
            print(f"{name}: {workers[name].about}", flush=True)
        seen: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
        busy = 0
        for number in range(1, flags.rounds + 1):
            for name, worker in workers.items():
                busy += wait_until_idle(flags.idle_seconds) > 0
                seen[name].append(worker.measure())
            rates = (f"{name} {tokens / found[-1]['seconds']:.0f}" for name, found in seen.items())
            print(f"round {number}, tokens/s: {', '.join(rates)}", flush=True)
    alone = [one["seconds"] for one in seen.pop(ALONE)]
    ours, ratio = {}, {}
    print(f"{ALONE:12} {tokens / statistics.median(alone):8.0f} tokens/s  (x {flags.threads} threads)")
    for mesh, found in seen.items():
        ratio[mesh] = statistics.median(a / one["seconds"] for a, one in zip(alone, found, strict=True))
        plan, work = job(mesh, size)
        ours[mesh] = {
            "tokens_per_second": tokens / statistics.median(one["seconds"] for one in found),
            "step_seconds": statistics.median(one["seconds"] for one in found),
            "collective_seconds": statistics.median(one["collectives"] for one in found),
            "predicted_bytes": predicted(plan, Mesh(plan.strategy).coordinate, work).total,
            "peak_bytes_of_rank_0": max(one["peak_bytes"] for one in found),
        }
        one = ours[mesh]
        print(
            f"{mesh:12} {one['tokens_per_second']:8.0f} tokens/s  {ratio[mesh]:.2f} of one process; a step of"
            f" {one['step_seconds']:.2f} s, in it {one['collective_seconds']:.2f} s for the"
            f" {one['predicted_bytes'] / 1e6:.0f} MB that the planner says a rank sends"
        )
    if busy:
        print(f"{busy} measurements were made though the machine was not idle")
    result = {
        "work": f"training {flags.size}, float32, {tokens} tokens a step: {RANKS} processes",
        "ours": ours,
        "peers": {ALONE: {"tokens_per_second": tokens / statistics.median(alone), "threads": flags.threads}},
        "ratio": {ALONE: ratio},
        "hardware": hardware(),
        "not_idle": busy,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
