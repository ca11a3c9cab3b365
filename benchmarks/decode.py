"""Decoding and prompt processing at 135 M parameters, float32, one row, against transformers, alternating in one run.

    hatch run bench:decode [--rounds 7] [--prompt_tokens 64] [--new_tokens 64]

Prints each round's tokens/s and the median of the paired ratios, then the first token of cold processes; the last line
is one JSON object. Both sides load the same random checkpoint; where their greedy texts part, the position is printed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from sides.hardware import hardware
from sides.workers import Worker, environment_python

SIDES = Path(__file__).parent / "sides"
PEER_ENVIRONMENT = "bench-transformers"
KINDS = ("decode", "prefill")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompt_tokens", type=int, default=64)
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument(
        "--peer_python", help=f"an interpreter with torch and transformers; default: {PEER_ENVIRONMENT}'s"
    )
    flags = parser.parse_args()
    theirs = flags.peer_python or environment_python(PEER_ENVIRONMENT)
    with tempfile.TemporaryDirectory() as folder:
        peer = str(SIDES / "decode_transformers.py")
        made = subprocess.run([theirs, peer, "--make", folder], check=True, capture_output=True, text=True)
        versions = json.loads(made.stdout)
        print(f"{hardware()}\npeer: {versions}\n135 M parameters, float32, batch 1, prompt {flags.prompt_tokens}")
        sizes = [folder, str(flags.prompt_tokens), str(flags.new_tokens)]
        commands = {
            "ours": [sys.executable, str(SIDES / "decode_ours.py"), *sizes],
            "transformers": [theirs, peer, *sizes],
        }
        rates = alternate(commands, flags.rounds)
        ratio = {
            kind: statistics.median(
                a / b for a, b in zip(rates["ours"][kind], rates["transformers"][kind], strict=True)
            )
            for kind in KINDS
        }
        cold = {}
        for name, command in commands.items():
            done = subprocess.run([*command, "--cold"], check=True, capture_output=True, text=True)
            cold[name] = json.loads(done.stdout)["first_token_seconds"]
            print(f"cold process, first token: {name} {cold[name]:.1f} s")
    medians = {name: {kind: statistics.median(seen[kind]) for kind in KINDS} for name, seen in rates.items()}
    for name, figures in medians.items():
        figures["cold_first_token_seconds"] = cold[name]
    print(
        json.dumps(
            {
                "work": f"135 M float32, prompt {flags.prompt_tokens}, {flags.new_tokens} new tokens, tokens/s",
                "ours": medians.pop("ours"),
                "peers": medians,
                "ratio": {"transformers": ratio},
                "hardware": hardware(),
            }
        )
    )


def alternate(commands: dict[str, list[str]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Tokens/s of every side in every round, the sides taking turns."""
    workers = {name: Worker(command) for name, command in commands.items()}
    rates: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in KINDS} for name in commands}
    texts = {}
    for number in range(rounds):
        shown = []
        for name, worker in workers.items():
            result = worker.measure()
            texts[name] = result["ids"]
            for kind in KINDS:
                rates[name][kind].append(result[kind])
                shown.append(f"{name} {kind} {result[kind]:.1f}")
        print(f"round {number + 1}, tokens/s: {', '.join(shown)}", flush=True)
    first, second = texts.values()
    parted = next((place for place, (a, b) in enumerate(zip(first, second, strict=True)) if a != b), None)
    print("greedy texts equal" if parted is None else f"greedy texts part at token {parted}")
    for worker in workers.values():
        worker.close()
    return rates


if __name__ == "__main__":
    main()
