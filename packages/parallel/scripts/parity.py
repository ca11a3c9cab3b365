"""Compares a job of several processes with the same training in one: losses, norms, final parameters."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from codellama_parallel import Mesh, ParallelConfig, Plan
from numpy.typing import NDArray
from parity_job import Case, train

# Relative, float32: sums over tokens, heads and ranks are added in another order than in one process. Of a parameter
# the measure is its largest number: AdamW divides by the gradient's own size, and where that is near 0 it magnifies
# rounding.
TOLERANCE = 1e-5
# A job takes minutes, on a busy machine too. A rank that waits for ever must not keep `all.py` from the other jobs.
JOB_SECONDS = 1200.0
_JOB = Path(__file__).parent / "parity_job.py"
# A process of its own, whose working directory takes the graphs; a rank that dies ends the job.
_LAUNCH = """
import sys
from pathlib import Path
from codellama_parallel.launch import Launch, launch
job = Launch(int(sys.argv[1]), master_port=int(sys.argv[2]), log_dir=Path("log"))
sys.exit(launch(job, sys.argv[4:], time_limit=float(sys.argv[3])))
"""


def run(cases: Sequence[Case], processes: int, folder: Path, port: int, time_limit: float = JOB_SECONDS) -> None:
    """Runs the cases one after the other in one job of so many processes.

    Raises:
        AssertionError: the job failed, or did not end within so many seconds; with what it said.
    """
    (folder / "cases.json").write_text(json.dumps([dataclasses.asdict(case) for case in cases]))
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "GLOG_v": "3",
        "MS_CPU_COMM_OP_TIMEOUT": "1800",  # seconds; on a busy machine one rank may compile long after the others
        "MS_NODE_TIMEOUT": "600",  # seconds; the same for a heartbeat
        "MS_DEV_SAVE_GRAPHS": "1",  # so that each rank counts what it sends,
        "MS_DEV_DUMP_IR_PASSES": "graph_build",  # of the last stage of compilation only
    }
    command = [sys.executable, "-c", _LAUNCH, processes, port, time_limit, _JOB, folder / "cases.json", folder]
    job = subprocess.run(
        [str(word) for word in command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if job.returncode:
        raise AssertionError(f"the job failed:\n{job.stdout}{job.stderr}")


def deviations(case: Case, folder: Path) -> dict[str, float]:
    """The largest relative deviation of the losses, the norms and the final parameters, over all ranks."""
    strategy = ParallelConfig(**case.strategy)  # type: ignore[arg-type]
    plan = Plan(case.config(), strategy)
    alone = _alone(json.dumps(dataclasses.asdict(case.alone())))
    worst = {"losses": 0.0, "norms": 0.0, "evaluated": 0.0, "parameters": 0.0}
    for rank in range(strategy.device_num):
        where = Mesh(strategy, rank).coordinate
        with np.load(folder / f"{case.name}.{rank}.npz") as result:
            for key in ("tokens", "generated"):
                np.testing.assert_array_equal(result[key], alone[key], err_msg=f"{case.name}, rank {rank}: {key}")
            for key in ("losses", "norms", "evaluated"):
                worst[key] = max(worst[key], float(np.abs(result[key] / alone[key] - 1).max()))
            for name in plan.local_names(where):
                box = plan.box(name, where)
                assert box is not None
                whole = alone[name]
                difference = np.abs(result[name] - whole[tuple(slice(*side) for side in box)])
                worst["parameters"] = max(worst["parameters"], float(difference.max() / np.abs(whole).max()))
    worst["state"] = _state(case, folder, strategy.device_num, alone)
    return worst


def _state(case: Case, folder: Path, ranks: int, alone: dict[str, NDArray[np.generic]]) -> float:
    """The largest deviation of what the ranks save: every number of the training's state, each exactly once."""
    whole = {key: np.zeros_like(value) for key, value in alone.items() if key.startswith("state ")}
    written = {key: np.zeros(value.shape, int) for key, value in whole.items()}
    for rank in range(ranks):
        with np.load(folder / f"{case.name}.{rank}.npz") as result:
            for key in (key for key in result.files if key.startswith("state ")):
                box = tuple(slice(*side) for side in result[key.replace("state ", "box ", 1)])
                whole[key][box] = result[key]
                written[key][box] += 1
    assert all((count == 1).all() for count in written.values()), f"{case.name}: state saved not exactly once"
    return max(float(np.abs(whole[key] - alone[key]).max() / np.abs(alone[key]).max()) for key in whole)


@cache
def _alone(case: str) -> dict[str, NDArray[np.generic]]:
    return train(Case(**json.loads(case)), 0)
