"""Convert, save, load and merge checkpoints, against torch.save, safetensors and plain copying, alternating in one run.

    hatch run bench:ckpt [--gigabytes 2] [--rounds 3] [--folder FOLDER]

Every measurement is a process of its own. The time is from files that the page cache does not hold to output that is on
the disk (fsync, on all sides), the memory is the process's peak. The model has random bfloat16 weights in 4096 columns,
as a Hugging Face directory. Prints every round; the last line is one JSON object with medians.

- convert: a Hugging Face directory of shards -> one full file with MindFormers' names (peers: names as they are)
- save: arrays in memory -> one file (ours: a sharded checkpoint of one writer, with checksums)
- load: that file -> arrays in memory
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
WORK = ("convert", "save", "load", "merge")
PEERS = ("copy", "torch", "safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2, help="size of the model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the files go; default: the system's temporary folder")
    parser.add_argument(
        "--peer_python", help=f"an interpreter with torch and safetensors; default: {PEER_ENVIRONMENT}'s"
    )
    flags = parser.parse_args()
    theirs = flags.peer_python or environment_python(PEER_ENVIRONMENT)
    ours, peer = [sys.executable, str(SIDES / "ckpt_ours.py")], [theirs, str(SIDES / "ckpt_peers.py")]
    print(hardware())
    seen: dict[str, dict[str, list[dict[str, float]]]] = {side: {} for side in ("ours", *PEERS)}
    with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
        made = run([*ours, "make", folder, str(flags.gigabytes)])
        print(f"{made['bytes'] / 1e9:.2f} GB in {made['tensors']} tensors, the largest {made['largest'] / 1e9:.2f} GB")
        for number in range(flags.rounds):
            for work in WORK:
                shown = []
                for side, measured in seen.items():
                    command = [*ours, work, folder] if side == "ours" else [*peer, side, work, folder]
                    result = run(command)
                    measured.setdefault(work, []).append(result)
                    rate = result["bytes"] / result["seconds"] / 1e9
                    shown.append(f"{side} {rate:.2f} GB/s, peak {result['peak_bytes'] / 1e9:.2f} GB")
                print(f"round {number + 1}, {work}: {'; '.join(shown)}", flush=True)
    figures = {side: {work: summary(results) for work, results in works.items()} for side, works in seen.items()}
    ratio = {
        side: {
            work: statistics.median(
                b["seconds"] / a["seconds"] for a, b in zip(seen["ours"][work], seen[side][work], strict=True)
            )
            for work in WORK
        }
        for side in PEERS
    }
    print(
        json.dumps(
            {
                "work": f"checkpoints of {made['bytes'] / 1e9:.2f} GB, bfloat16, GB/s and peak bytes",
                "ours": figures.pop("ours"),
                "peers": figures,
                "ratio": ratio,
                "hardware": hardware(),
            }
        )
    )


def run(command: list[str]) -> dict[str, Any]:
    """What one process measured of itself."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def summary(results: list[dict[str, float]]) -> dict[str, float]:
    return {
        "gigabytes_per_second": statistics.median(r["bytes"] / r["seconds"] / 1e9 for r in results),
        "peak_bytes": max(r["peak_bytes"] for r in results),
    }


if __name__ == "__main__":
    main()
