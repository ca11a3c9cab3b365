"""Convert, save, load and merge checkpoints, against torch.save, safetensors and plain copying, alternating in one run.

    hatch run bench:ckpt [--gigabytes 2] [--rounds 5] [--work save load] [--folder FOLDER] [--memory_folder FOLDER]

Every measurement is a process of its own. Each round does every piece of work on every side, another side first each
time. Before the time begins, everything written earlier is on the disk (fsync), and what is read is not in the page
cache but was read once before, so that a disk with a cache of its own is in the same state for all. The time ends when
the output is on the disk: fsync, on all sides. The memory is the process's peak. All of it is done on a disk, and once
more on a file system in memory (/dev/shm), where what remains is what the software costs. The model has random bfloat16
weights in 4096 columns, as a Hugging Face directory. The last line is one JSON object with medians and extremes.

- convert: a Hugging Face directory of shards -> one full file with MindFormers' names (peers: names as they are)
- save: arrays in memory -> one file (ours: a sharded checkpoint of one writer, with checksums)
- load: that file -> arrays in memory (ours without comparing checksums, which the peers do not have)
- load_verified: the same, with checksums compared (peers: load)
- merge: four tensor-parallel files, rows and columns split -> one full file
- copy does the same amount of reading and writing with the bytes as they are
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sides.hardware import hardware
from sides.workers import environment_python

SIDES = Path(__file__).parent / "sides"
PEER_ENVIRONMENT = "bench-transformers"
WORK = ("convert", "save", "load", "load_verified", "merge")
PEERS = ("copy", "torch", "safetensors")
MEMORY = "/dev/shm"

Measured = dict[str, dict[str, list[dict[str, float]]]]  # by work, by side: every round


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2, help="size of the model; files take seven times this")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", nargs="+", choices=WORK, default=WORK, help="to load, save must be among them")
    parser.add_argument("--places", nargs="+", choices=("disk", "memory"), default=("disk", "memory"))
    parser.add_argument("--folder", help="where the files go; default: the system's temporary folder")
    parser.add_argument("--memory_folder", default=MEMORY, help="on a file system in memory")
    parser.add_argument(
        "--peer_python", help=f"an interpreter with torch and safetensors; default: {PEER_ENVIRONMENT}'s"
    )
    flags = parser.parse_args()
    work = [one for one in WORK if one in flags.work]
    if "save" not in work and any(one.startswith("load") for one in work):
        parser.error("what is loaded must be saved first: add save to --work")
    theirs = flags.peer_python or environment_python(PEER_ENVIRONMENT)
    print(hardware())
    folders = {"disk": flags.folder, "memory": flags.memory_folder}
    size, seen = 0, {}
    for place in flags.places:
        with tempfile.TemporaryDirectory(dir=folders[place]) as folder:
            size, seen[place] = compare(place, folder, flags.gigabytes, work, flags.rounds, theirs)
    sides = {side: {place: figures(side, seen[place]) for place in seen} for side in ("ours", *PEERS)}
    ratio = {side: {place: ratios(side, seen[place]) for place in seen} for side in PEERS}
    print(
        json.dumps(
            {
                "work": f"checkpoints of {size / 1e9:.2f} GB, bfloat16, GB/s (median, least, most) and peak bytes",
                "ours": sides.pop("ours"),
                "peers": sides,
                "ratio": ratio,
                "hardware": hardware(),
            }
        )
    )


def compare(
    place: str, folder: str, gigabytes: float, work: list[str], rounds: int, theirs: str
) -> tuple[int, Measured]:
    """Bytes of the model, and what all sides took."""
    ours, peer = [sys.executable, str(SIDES / "ckpt_ours.py")], [theirs, str(SIDES / "ckpt_peers.py")]
    made = run([*ours, "make", folder, str(gigabytes)])
    print(f"{made['bytes'] / 1e9:.2f} GB in {made['tensors']} tensors, the largest {made['largest'] / 1e9:.2f} GB")
    sides = ("ours", *PEERS)
    seen: Measured = {one: {side: [] for side in sides} for one in work}
    for number in range(rounds):
        first = number % len(sides)
        for one in work:
            shown = []
            for side in sides[first:] + sides[:first]:
                command = [*ours, one, folder] if side == "ours" else [*peer, side, one, folder]
                result = run(command)
                seen[one][side].append(result)
                shown.append(f"{side} {rate(result):.2f} GB/s, peak {result['peak_bytes'] / 1e9:.2f} GB")
            print(f"{place}, round {number + 1}, {one}: {'; '.join(shown)}", flush=True)
    return made["bytes"], seen


def figures(side: str, seen: Measured) -> dict[str, dict[str, float]]:
    """Of every piece of work that a side did."""
    return {work: summary(results[side]) for work, results in seen.items()}


def ratios(side: str, seen: Measured) -> dict[str, float]:
    """Times ours is faster, the median over the rounds."""
    return {
        work: statistics.median(
            b["seconds"] / a["seconds"] for a, b in zip(results["ours"], results[side], strict=True)
        )
        for work, results in seen.items()
    }


def run(command: list[str]) -> dict[str, Any]:
    """What one process measured of itself."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def rate(result: dict[str, float]) -> float:
    """GB/s."""
    return result["bytes"] / result["seconds"] / 1e9


def summary(results: list[dict[str, float]]) -> dict[str, float]:
    """Median and extremes."""
    rates = [rate(result) for result in results]
    return {
        "gigabytes_per_second": statistics.median(rates),
        "least": min(rates),
        "most": max(rates),
        "peak_bytes": max(result["peak_bytes"] for result in results),
    }


if __name__ == "__main__":
    main()
