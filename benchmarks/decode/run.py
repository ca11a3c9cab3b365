"""Decoding at 135 M parameters, float32, one row: this project against transformers, alternating in one run.

    hatch run benchmark:decode [--rounds 5] [--prompt_tokens 64] [--new_tokens 64]

Prints each round's tokens/s and the median of the paired ratios, then the first token of cold processes, with the
hardware. Both sides load the same random checkpoint; where their greedy texts part, the position is printed.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PEER_ENVIRONMENT = "benchmark-peer"


class Side:
    """A worker process that answers each request with one JSON line."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.read()

    def read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.process.args} ended early")
        return json.loads(line)

    def measure(self) -> dict:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def hardware() -> str:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    cores = subprocess.run(["nproc"], capture_output=True, text=True, check=True).stdout.strip()
    return f"{model}, {cores} cores, {platform.system()} {platform.release()}"


def peer_python() -> str:
    subprocess.run(["hatch", "env", "create", PEER_ENVIRONMENT], check=False, capture_output=True)
    done = subprocess.run(["hatch", "env", "find", PEER_ENVIRONMENT], check=True, capture_output=True, text=True)
    return str(Path(done.stdout.strip()) / "bin" / "python")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt_tokens", type=int, default=64)
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument(
        "--peer_python", help=f"an interpreter with torch and transformers; default: {PEER_ENVIRONMENT}'s"
    )
    flags = parser.parse_args()
    theirs = flags.peer_python or peer_python()
    with tempfile.TemporaryDirectory() as folder:
        versions = subprocess.run(
            [theirs, HERE / "peer.py", "--make", folder], check=True, capture_output=True, text=True
        ).stdout.strip()
        print(f"{hardware()}\npeer: {versions}\n135 M parameters, float32, batch 1, prompt {flags.prompt_tokens}")
        sizes = [folder, str(flags.prompt_tokens), str(flags.new_tokens)]
        commands = {
            "ours": [sys.executable, str(HERE / "ours.py"), *sizes],
            "peer": [theirs, str(HERE / "peer.py"), *sizes],
        }
        sides = {name: Side(command) for name, command in commands.items()}
        ratios: dict[str, list[float]] = {"decode": [], "prefill": []}
        for number in range(flags.rounds):
            results = {name: side.measure() for name, side in sides.items()}
            for kind, seen in ratios.items():
                seen.append(results["ours"][kind] / results["peer"][kind])
            print(
                f"round {number + 1}: "
                + "; ".join(
                    f"{kind} ours {results['ours'][kind]:.1f}, peer {results['peer'][kind]:.1f} tokens/s"
                    for kind in ratios
                )
            )
        pairs = zip(results["ours"]["ids"], results["peer"]["ids"], strict=True)
        parted = next((place for place, (a, b) in enumerate(pairs) if a != b), None)
        print("greedy texts equal" if parted is None else f"greedy texts part at token {parted}")
        for side in sides.values():
            side.close()
        for kind, seen in ratios.items():
            middle, low, high = statistics.median(seen), min(seen), max(seen)
            print(f"{kind}: median ratio ours / peer {middle:.2f} (of {low:.2f} to {high:.2f})")
        for name, command in commands.items():
            done = subprocess.run([*command, "--cold"], check=True, capture_output=True, text=True)
            print(f"cold process, first token: {name} {json.loads(done.stdout)['first_token_seconds']:.1f} s")


if __name__ == "__main__":
    main()
