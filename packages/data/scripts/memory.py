"""Peak memory of `codellama-data preprocess` on generated input: the longer test that it does not grow with the text.

    python packages/data/scripts/memory.py [--dataset_type wiki|code|qa ...] [--megabytes 2048] [--limit 1024]

Generates one file, runs the command on it, and adds up the peaks of the resident memory of all its processes. Exits
with code 1 above the limit. The last line is one JSON object. All sizes are MiB.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from codellama_data import standard_library
from codellama_tokenizer import train_tokenizer

MEBIBYTE = 1 << 20
VOCAB_SIZE = 1000
TRAINING_DOCUMENTS = 40
SAMPLE_SECONDS = 0.02


def main() -> None:
    """Generate, run, measure, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_type", nargs="+", default=["wiki", "code", "qa"], choices=("wiki", "code", "qa"))
    parser.add_argument("--megabytes", type=int, nargs="+", default=[2048], help="sizes of the input")
    parser.add_argument("--limit", type=float, default=1024, help="largest peak allowed")
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--folder", help="where to work; default: a temporary folder")
    flags = parser.parse_args()
    peaks: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=flags.folder) as name:
        folder = Path(name)
        texts = [document.text for document, _ in zip(standard_library().documents(), range(200), strict=False)]
        tokenizer = train_tokenizer(texts[:TRAINING_DOCUMENTS], folder / "tokenizer.model", VOCAB_SIZE)
        for kind in flags.dataset_type:
            for size in flags.megabytes:
                source = folder / f"input.{'txt' if kind == 'wiki' else 'jsonl'}"
                generate(source, kind, size * MEBIBYTE, texts)
                command = [
                    *(sys.executable, "-m", "codellama_data", "preprocess", "--dataset_type", kind, "--no_progress"),
                    *("--input_glob", str(source), "--model_file", str(tokenizer.model_file), "--seq_length", "4096"),
                    *("--output_file", str(folder / "out.mindrecord"), "--overwrite"),
                    *("--num_workers", str(flags.num_workers)),
                ]
                begun = time.monotonic()
                peak = peak_of(command)
                peaks.setdefault(kind, []).append(peak)
                print(
                    f"{kind}: {size:,} MiB of text, peak {peak:.0f} MiB, {time.monotonic() - begun:.0f} s", flush=True
                )
    print(json.dumps({"megabytes": flags.megabytes, "peaks": peaks, "num_workers": flags.num_workers}))
    if any(peak > flags.limit for found in peaks.values() for peak in found):
        sys.exit(f"memory.py: above the limit of {flags.limit:.0f} MiB")


def generate(path: Path, kind: str, size: int, texts: list[str]) -> None:
    """Write about `size` bytes: source code cut at random places, no two documents the same."""
    generator = random.Random(0)
    pool = "".join(texts)
    number = written = 0
    with path.open("w", encoding="utf-8") as stream:
        while written < size:
            number += 1
            start = generator.randrange(len(pool) - 8192)
            text = pool[start : start + generator.randrange(1000, 8000)]
            if kind == "wiki":
                line = " ".join(text.split()) + f" {number} . \n \n"
            elif kind == "code":
                line = json.dumps({"text": f"# {number}\n{text}"}) + "\n"
            else:
                talk = [{"from": "human", "value": f"{number}?"}, {"from": "gpt", "value": text}]
                line = json.dumps({"conversations": talk}) + "\n"
            written += stream.write(line)


def peak_of(command: list[str]) -> float:
    """Sum over all processes of a command of each one's peak of resident memory: at least the peak of the sum."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peaks: dict[int, int] = {}
    while process.poll() is None:
        for number in family(process.pid):
            try:
                found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{number}/status").read_text())
            except OSError:  # it has just ended
                continue
            if found:
                peaks[number] = int(found[1])
        time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        sys.exit(f"memory.py: {command[3]} ended with exit code {process.returncode}")
    return sum(peaks.values()) / 1024


def family(number: int) -> list[int]:
    """A process and all that came from it."""
    try:
        children = Path(f"/proc/{number}/task/{number}/children").read_text().split()
    except OSError:
        return []
    return [number, *(one for child in children for one in family(int(child)))]


if __name__ == "__main__":
    main()
