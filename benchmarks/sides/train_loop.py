"""`codellama-train` as a user starts it, with its whole loop, as one more side of the training benchmark.

The process is stopped between measurements. A measurement is the time in which the run's `metrics.jsonl` grows by so
many lines: rows read, steps, clipping, metrics, the bar, and one checkpoint, its writing in the background included.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import train_protocol as protocol
import yaml
from codellama_data.spool import Spool
from codellama_data.writing import write_partitions

_ROWS = 512
_POLL = 0.002  # seconds between two looks at metrics.jsonl: what a measurement may be wrong by
_ENDLESS = 1_000_000  # steps; the benchmark ends the run


class TrainLoop:
    """A running `codellama-train`.

    Args:
        size: of `train_protocol.SIZES`.
        steps: that a measurement takes, and from one checkpoint to the next.
        folder: for the rows and the run, which hold one or two checkpoints.
    """

    def __init__(self, size: dict[str, int], steps: int, folder: Path) -> None:
        self.steps = steps
        self._run, self._log = folder / "run", folder / "log"
        config = folder / "loop.yaml"
        config.write_text(yaml.safe_dump(_configuration(size, steps, _write_rows(size, folder), self._run)))
        with self._log.open("w") as log:
            command = [Path(sys.executable).with_name("codellama-train"), "--config", config]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        self._lines = 0
        self._wait_for_lines(max(2, steps // 5))  # the first one compiles; a checkpoint ends well within a measurement
        self._process.send_signal(signal.SIGSTOP)

    def measure(self) -> dict[str, float]:
        """Mean seconds a step over `steps` of them, and the most memory so far."""
        self._process.send_signal(signal.SIGCONT)
        start = time.perf_counter()
        self._wait_for_lines(self._lines + self.steps)
        seconds = time.perf_counter() - start
        self._process.send_signal(signal.SIGSTOP)
        return {"seconds": seconds / self.steps, "peak_bytes": protocol.peak_memory(self._process.pid)}

    def close(self) -> None:
        """Ends the run."""
        self._process.kill()
        self._process.wait()

    def _wait_for_lines(self, count: int) -> None:
        path = self._run / "metrics.jsonl"
        size = -1
        while self._lines < count:
            if self._process.poll() is not None:
                sys.exit(f"codellama-train ended early:\n{self._log.read_text()}")
            time.sleep(_POLL)
            if path.exists() and (now := os.stat(path).st_size) != size:  # noqa: PTH116
                size = now
                self._lines = path.read_bytes().count(b"\n")


def _configuration(size: dict[str, int], steps: int, rows: Path, run: Path) -> dict[str, object]:
    return {
        "output_dir": str(run),
        "model": protocol.llama_keys(size),
        "dataset": {"train_dataset_dir": str(rows), "seq_length": size["sequence"], "batch_size": size["batch"]},
        "optimizer": {
            "learning_rate": protocol.LEARNING_RATE,
            "weight_decay": protocol.WEIGHT_DECAY,
            "max_grad_norm": protocol.MAX_GRAD_NORM,
        },
        "lr_schedule": {"type": "constant", "warmup_steps": 0},
        "max_steps": _ENDLESS,
        "save_steps": steps,
        "keep_last": 1,
    }


def _write_rows(size: dict[str, int], folder: Path) -> Path:
    """A MindRecord file of random ids."""
    path, spool_path = folder / "rows.mindrecord", folder / "spool"
    ids = np.random.default_rng(0).integers(3, size["vocab_size"], (_ROWS, size["sequence"] + 1)).astype(np.int32)
    with Spool(spool_path, ("input_ids",), ids.shape[1], np.int32) as spool:
        spool.append(ids.reshape(-1))
        write_partitions(spool, folder, path, 1)
    spool_path.unlink()
    return path
