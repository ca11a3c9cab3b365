"""Trains in one process, and again as a job whose processes change: the losses must be the same.

    python packages/app/scripts/meshes.py

The second run goes 1 process -> 2 that share every matrix -> 2 that share the rows, with SIGKILL for one of them in the
middle of a step -> 1. Where one was killed, the job must end within a minute, name it with its last lines, leave no
process behind, and go on from its last checkpoint; SIGTERM must finish the step on all ranks and save it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

CONFIG = """\
model: {vocab_size: 400, hidden_size: 32, num_layers: 2, num_heads: 4, n_kv_heads: 2, intermediate_size: 64,
        max_position_embedding: 128}
dataset: {corpus: corpus, seq_length: 64, batch_size: 4, eval_rows: 10}
optimizer: {learning_rate: 3e-3, weight_decay: 0.1}
lr_schedule: {warmup_steps: 10}
max_steps: 130
save_steps: 10
eval_steps: 65
"""
MODULES = "abc bisect copy fnmatch functools glob heapq io keyword operator queue random reprlib shlex stat string"
LOSS_TOLERANCE = 1e-5  # relative: what ranks add up in another order
STOP_SECONDS = 60.0  # what a user is promised after a rank's death
PATIENCE = 1800.0
TENSOR = ("--worker_num", "2", "--parallel_config.model_parallel", "2")
DATA = ("--worker_num", "2", "--parallel_config.data_parallel", "2", "--dataset.batch_size", "2")


def main() -> None:
    """The script."""
    with tempfile.TemporaryDirectory(prefix="meshes_") as name:
        folder = Path(name)
        (folder / "corpus").mkdir()
        for module in MODULES.split():
            source = Path(os.__file__).parent / f"{module}.py"
            (folder / "corpus" / source.name).write_bytes(source.read_bytes())
        (folder / "tiny.yaml").write_text(CONFIG)

        _, code = train(folder, "calm")
        assert code == 0, log_of(folder)
        print("one process: done", flush=True)
        steps = [0]
        for what, flags, end in (
            ("1 process", (), terminate_rank_0),
            ("2 processes, model_parallel", TENSOR, terminate_launcher),
            ("2 processes, data_parallel", DATA, kill_rank_1),
        ):
            steps.append(changed(folder, what, flags, end, steps[-1] + 15))
        _, code = train(folder, "moving")
        assert code == 0, log_of(folder)
        difference = compare(folder)
    print(f"losses, norms and held-out losses are equal, relative {difference:.1e} (allowed {LOSS_TOLERANCE:g})")


def train(
    folder: Path,
    run: str,
    flags: tuple[str, ...] = (),
    end: Callable[[subprocess.Popen[bytes]], str] | None = None,
    after: int = 0,
) -> tuple[float, int]:
    """Runs or goes on; `end` is called once step `after` is done. Seconds from there to the exit, and its code."""
    program = Path(sys.executable).parent / "codellama-train"
    command = [program, "--config", "tiny.yaml", "--output_dir", run, "--resume_training", "True", *flags]
    environment = os.environ | {"CODELLAMA_CACHE": str(folder / "cache")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
    begin = deadline = time.monotonic() + PATIENCE
    if end is not None:
        before = lines(folder / run)
        while not any(json.loads(line)["step"] >= after for line in lines(folder / run) - before):
            assert process.poll() is None and time.monotonic() < deadline, log_of(folder)
            time.sleep(0.002)
        print(f"  {end(process)} after step {len(lines(folder / run))}", flush=True)
        begin = time.monotonic()
    code = process.wait(PATIENCE)
    return time.monotonic() - begin, code


def changed(folder: Path, what: str, flags: tuple[str, ...], end: Callable[..., str], after: int) -> int:
    """One part of the moving run; returns the step of its last checkpoint."""
    print(what, flush=True)
    seconds, code = train(folder, "moving", flags, end, after)
    text = log_of(folder)
    assert code != 0, text
    assert not left_behind(folder), left_behind(folder)
    if end is kill_rank_1:
        assert seconds < STOP_SECONDS, f"it took {seconds:.0f} s to stop"
        assert "rank 1 was killed by signal 9" in text, text
    else:
        assert "interrupted after step" in text, text
    newest = max(path.name for path in (folder / "moving" / "checkpoints").glob("step_*"))
    print(f"  stopped after {seconds:.1f} s with exit code {code}; newest checkpoint {newest}", flush=True)
    return int(newest.removeprefix("step_"))


def terminate_rank_0(process: subprocess.Popen[bytes]) -> str:
    """SIGTERM to a run of one process."""
    process.send_signal(signal.SIGTERM)
    return "SIGTERM"


def terminate_launcher(process: subprocess.Popen[bytes]) -> str:
    """SIGTERM to what the user has started."""
    process.send_signal(signal.SIGTERM)
    return "SIGTERM to the job"


def kill_rank_1(process: subprocess.Popen[bytes]) -> str:
    """SIGKILL to one rank."""
    for child in psutil.Process(process.pid).children(recursive=True):
        environment = child.environ()
        if environment.get("MS_ROLE") == "MS_WORKER" and environment.get("RANK_ID") == "1":
            child.kill()
            return "SIGKILL to rank 1"
    raise AssertionError("no rank 1 is running")


def lines(run: Path) -> set[str]:
    """Whole lines of the metrics; a repeated step makes another one, as its times differ."""
    metrics = run / "metrics.jsonl"
    text = metrics.read_text() if metrics.is_file() else ""
    return set(text[: text.rfind("\n") + 1].splitlines())


def left_behind(folder: Path) -> list[int]:
    """Processes of a job that has ended."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder) and process.pid != os.getpid():
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def log_of(folder: Path) -> str:
    """What the newest job printed."""
    return (folder / "log").read_text(errors="replace")


def compare(folder: Path) -> float:
    """The largest relative difference of the two runs' figures; AssertionError beyond the tolerance."""
    runs = []
    for run in ("calm", "moving"):
        rows = [json.loads(line) for line in (folder / run / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)), "metrics.jsonl skips or repeats steps"
        runs.append(rows)
    assert len(runs[0]) == len(runs[1])
    largest = 0.0
    for one, other in zip(*runs, strict=True):
        for key in ("loss", "eval_loss"):
            if key in one:
                largest = max(largest, abs(one[key] - other[key]) / abs(one[key]))
                assert largest <= LOSS_TOLERANCE, f"step {one['step']}: {key} {other[key]}, expected {one[key]}"
    return largest


if __name__ == "__main__":
    main()
