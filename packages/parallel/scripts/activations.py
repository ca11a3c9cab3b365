"""Holds the estimate of activations against what MindSpore's memory pool says of a forward and backward pass.

`python packages/parallel/scripts/activations.py` prints a table, predicted beside measured, of one process. Its CPU
backend tells the largest size of its pool when a process ends, in MiB rounded down, so every case has a process of its
own. The pool holds what a graph computes; parameters, their gradients' sums and moments lie outside of it.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from codellama_model import LlamaConfig
from codellama_parallel import Mesh, ParallelConfig, Plan
from codellama_parallel.memory import Work, memory
from codellama_parallel.strategy import RECOMPUTE, Recompute

TOLERANCE = 0.15  # what is promised of the estimate; the pool's rounding is below 0.08 of the sizes here
SEQUENCE = 256
OPERATIONS = ("composed", "cpu")  # the second is codellama-kernels where that is installed
SIZES: dict[Recompute, tuple[tuple[int, int], ...]] = {  # (layers, rows)
    "none": ((4, 8), (8, 8)),
    "selective": ((4, 2),),
    "full": ((4, 8), (12, 8)),
}
_PEAK = re.compile(r"DumpDynamicMemPoolStateInfo\].*?peak used mem:(\d+)M")


def case(recompute: Recompute, layers: int) -> Plan:
    """The network and strategy of a case."""
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        num_layers=layers,
        num_heads=4,
        n_kv_heads=2,
        intermediate_size=352,
        max_position_embedding=SEQUENCE,
    )
    return Plan(config, ParallelConfig(recompute=recompute))


def predicted(plan: Plan, rows: int, fused: bool) -> float:
    """The estimate's activations, MiB."""
    return memory(plan, Mesh(plan.strategy).coordinate, Work(rows, SEQUENCE, fused=fused)).activations / 2**20


def measured(recompute: Recompute, layers: int, rows: int, operations: str) -> int:
    """The pool's largest size, MiB rounded down, in a process that runs one micro-batch forwards and backwards."""
    environment = os.environ | {
        "GLOG_v": "3",
        "MS_SUBMODULE_LOG_v": "{PRE_ACT:1}",  # INFO of the memory pool only
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(Path(__file__)), "--run", recompute, str(layers), str(rows), operations]
    job = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = _PEAK.findall(job.stderr + job.stdout)
    if job.returncode or not found:
        raise RuntimeError(f"no measurement: {job.stderr[-2000:]}")
    return int(found[-1])


def fused(operations: str) -> bool:
    """Whether this entry of the device table has fused operators here."""
    from codellama_model import select  # noqa: PLC0415  (loads MindSpore)

    return select(operations).linear is not select("composed").linear


def run(recompute: Recompute, layers: int, rows: int, operations: str) -> None:
    """One micro-batch through the network, in this process."""
    import mindspore as ms  # noqa: PLC0415  (the table itself needs none)
    import numpy as np  # noqa: PLC0415
    from codellama_model import select  # noqa: PLC0415
    from codellama_parallel import ParallelStep, build, initialize  # noqa: PLC0415

    ms.set_context(mode=ms.GRAPH_MODE)
    plan = case(recompute, layers)
    mesh = Mesh(plan.strategy)
    network = build(plan.config, mesh, plan, select(operations))
    initialize(network, mesh, plan, seed=0)
    ids = np.random.default_rng(0).integers(0, plan.config.vocab_size, (rows, SEQUENCE + 1)).astype(np.int32)
    columns = (ms.Tensor(ids), ms.Tensor(ids))
    stage = ParallelStep(network, mesh, plan).prepare(rows, SEQUENCE)
    stage.run([columns], ms.Tensor(1.0, ms.float32))
    ms.runtime.synchronize()


def main() -> None:
    """Prints the table; exit code 1 where a case is off by more than the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", nargs=4, metavar=("RECOMPUTE", "LAYERS", "ROWS", "OPERATIONS"))
    arguments = parser.parse_args().run
    if arguments:
        run(arguments[0], int(arguments[1]), int(arguments[2]), arguments[3])
        return
    print("operations  recompute   layers  rows  predicted  measured  MiB")
    worst = 0.0
    for operations in OPERATIONS:
        for recompute in RECOMPUTE:
            for layers, rows in SIZES[recompute]:
                ours = predicted(case(recompute, layers), rows, fused(operations))
                theirs = measured(recompute, layers, rows, operations)
                worst = max(worst, abs(ours / theirs - 1))
                print(f"{operations:12}{recompute:12}{layers:6}{rows:6}{ours:11.1f}{theirs:10}", flush=True)
    print(f"largest deviation {worst:.1%}, of {TOLERANCE:.0%} allowed")
    sys.exit(worst > TOLERANCE)


if __name__ == "__main__":
    main()
