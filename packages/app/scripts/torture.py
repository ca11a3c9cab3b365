"""Kills a training with SIGKILL at random moments, resumes it each time, and compares with a run that nobody killed.

    python packages/app/scripts/torture.py [--kills 20] [--seed 0] [--micro_batches 1]

Losses, rates and norms of every step and all bytes of the last checkpoint (weights, moments, step count) must be the
same; `metrics.jsonl` must have every step once. A third of the moments lie within a save, a few within the start of the
program, the others anywhere between steps.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIG = """\
output_dir: {folder}/unused
model: {{vocab_size: 400, hidden_size: 32, num_layers: 1, num_heads: 4, n_kv_heads: 2, intermediate_size: 64,
        max_position_embedding: 128}}
dataset: {{corpus: {folder}/corpus, seq_length: 64, batch_size: 2, eval_rows: 8}}
gradient_accumulation_steps: {micro_batches}
optimizer: {{learning_rate: 3e-3, weight_decay: 0.1}}
lr_schedule: {{warmup_steps: 20}}
max_steps: {steps}
save_steps: 7
eval_steps: 7
keep_last: 2
keep_best: 1
"""
MODULES = (
    "abc bisect copy fnmatch functools glob heapq io keyword operator queue random reprlib shlex stat string textwrap"
)
EXACT = ("loss", "lr", "grad_norm", "eval_loss", "tokens", "epoch")  # the other fields are times
PATIENCE = 1800.0  # seconds; more means that it hangs


def main() -> None:
    """The script."""
    parser = argparse.ArgumentParser(description="SIGKILL at random moments: every resume must be exact.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--micro_batches", type=int, default=1, help="of a step: more than one make another graph")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="torture_") as name:
        folder = Path(name)
        steps = 20 * (arguments.kills + 2)
        (folder / "corpus").mkdir()
        for module in MODULES.split():
            source = Path(os.__file__).parent / f"{module}.py"
            (folder / "corpus" / source.name).write_bytes(source.read_bytes())
        (folder / "tiny.yaml").write_text(
            CONFIG.format(folder=folder, steps=steps, micro_batches=arguments.micro_batches)
        )

        calm = folder / "calm"
        process, begin = start(folder, calm), time.monotonic()
        while not changed(calm):
            assert process.poll() is None, f"ended by itself: {log_of(calm)}"
            time.sleep(0.002)
        start_seconds = time.monotonic() - begin
        assert process.wait(PATIENCE) == 0, log_of(calm)
        print(f"uninterrupted: {steps} steps", flush=True)

        tortured, cut_saves = folder / "tortured", 0
        for kill in range(arguments.kills):
            moment = ("save", "steps", "start")[0 if kill % 3 == 0 else 2 if kill % 7 == 4 else 1]
            process = start(folder, tortured)
            before = unfinished(tortured)
            done = wait_for(moment, process, tortured, start_seconds, rng)
            process.send_signal(signal.SIGKILL)
            process.wait()
            cut = bool(unfinished(tortured) - before)
            cut_saves += cut
            print(f"kill {kill + 1}: {done}{', a save was cut' if cut else ''}", flush=True)
            check_metrics(tortured)
        assert start(folder, tortured).wait(PATIENCE) == 0, log_of(calm)
        compare(calm, tortured, steps)
    print(
        f"exact after {arguments.kills} kills, {cut_saves} of them within a save:"
        f" {steps} steps, every byte of the state"
    )


def start(folder: Path, run: Path) -> subprocess.Popen[bytes]:
    """Starts the run, or goes on with it."""
    program = Path(sys.executable).parent / "codellama-train"
    command = [program, "--config", folder / "tiny.yaml", "--output_dir", run]
    environment = os.environ | {"CODELLAMA_CACHE": str(folder / "cache")}
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [*command, "--resume_training", "True"], stdout=log, stderr=log, env=environment, cwd=folder
        )


def wait_for(moment: str, process: subprocess.Popen[bytes], run: Path, start_seconds: float, rng: random.Random) -> str:
    """Waits for a moment of this kind; returns what it was. The start lasts up to the first step."""
    if moment == "start":
        seconds = rng.uniform(0, start_seconds)
        time.sleep(seconds)
        return f"{seconds:.1f} s after the start"
    before, more = changed(run), rng.randint(1, 20)
    deadline = time.monotonic() + PATIENCE
    lines = 0
    while lines < more:  # of this process: the lines behind the checkpoint go when it starts to train
        assert process.poll() is None and time.monotonic() < deadline, f"ended by itself: {log_of(run)}"
        now = changed(run)
        lines = sum(line not in before for line in now)
        time.sleep(0.002)
    if moment == "save":
        seen = unfinished(run)
        while not unfinished(run) - seen:
            assert process.poll() is None and time.monotonic() < deadline, f"no save came: {log_of(run)}"
        time.sleep(rng.uniform(0, 0.01))
        return f"within the save after step {step_of(run)}"
    time.sleep(rng.uniform(0, 0.05))
    return f"after step {step_of(run)}"


def unfinished(run: Path) -> set[Path]:
    """Saves that have not become checkpoints."""
    return set((run / "checkpoints").glob(".step_*.tmp"))


def log_of(run: Path) -> str:
    """What the newest process printed."""
    return (run.parent / "log").read_text(errors="replace")


def changed(run: Path) -> set[str]:
    """The lines of the metrics; a repeated step makes another line, as its times differ."""
    metrics = run / "metrics.jsonl"
    return set(metrics.read_text().splitlines()) if metrics.is_file() else set()


def step_of(run: Path) -> int:
    """Steps done."""
    return len((run / "metrics.jsonl").read_text().splitlines())


def check_metrics(run: Path) -> list[dict[str, float]]:
    """The lines, each step once and in order; a last line that the kill cut short is left out, as a resume does."""
    if not (run / "metrics.jsonl").is_file():
        return []
    text = (run / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)), "metrics.jsonl skips or repeats steps"
    return rows


def compare(calm: Path, tortured: Path, steps: int) -> None:
    """AssertionError where the two runs differ in anything but times."""
    expected, found = check_metrics(calm), check_metrics(tortured)
    assert len(expected) == len(found) == steps
    for one, other in zip(expected, found, strict=True):
        for key in EXACT:
            assert one.get(key) == other.get(key), (
                f"step {one['step']}: {key} {other.get(key)}, expected {one.get(key)}"
            )
    indexes = [
        json.loads((run / "checkpoints" / f"step_{steps:06d}" / "index.json").read_text()) for run in (calm, tortured)
    ]
    sums = [
        {name: [piece["crc32"] for piece in one["slices"]] for name, one in index["tensors"].items()}
        for index in indexes
    ]
    assert sums[0] == sums[1], "the final states differ"
    kept = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (calm, tortured)]
    assert kept[0] == kept[1], f"checkpoints kept: {kept[1]}, expected {kept[0]}"


if __name__ == "__main__":
    main()
