"""Holds the estimate of activations against what MindSpore's memory pool says of a forward and backward pass.

`hatch run parallel:activations` prints a table, predicted beside measured, of one process and of the ranks of small
jobs. The CPU backend tells the largest size of its pool when a process ends, in MiB rounded down, so every case has
processes of its own. The pool holds what a graph computes; parameters, their gradients' sums and moments lie outside of
it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from codellama_model import LlamaConfig
from codellama_parallel import Mesh, ParallelConfig, Plan
from codellama_parallel.launch import Launch, launch, launched
from codellama_parallel.memory import Work, memory
from ports import free_port

TOLERANCE = 0.15  # what is promised of the estimate; the pool's rounding is below 0.08 of the sizes here
SEQUENCE = 256
OPERATIONS = ("composed", "cpu")  # the second is codellama-kernels where that is installed


@dataclasses.dataclass(frozen=True)
class Case:
    """A network and how it is computed.

    Attributes:
        layers: of the network.
        rows: of a micro-batch, of 256 tokens each.
        strategy: of `ParallelConfig`.
    """

    layers: int
    rows: int
    strategy: dict[str, object] = dataclasses.field(default_factory=dict)

    def plan(self) -> Plan:
        """Of the case's network."""
        config = LlamaConfig(
            vocab_size=512,
            hidden_size=128,
            num_layers=self.layers,
            num_heads=4,
            n_kv_heads=2,
            intermediate_size=352,
            max_position_embedding=SEQUENCE,
        )
        return Plan(config, ParallelConfig(**self.strategy))  # type: ignore[arg-type]


CASES = [
    Case(4, 8),
    Case(8, 8),
    Case(4, 2, {"recompute": "selective"}),
    Case(4, 8, {"recompute": "full"}),
    Case(12, 8, {"recompute": "full"}),
    Case(4, 8, {"model_parallel": 2}),
    Case(4, 8, {"model_parallel": 2, "use_seq_parallel": True}),
    Case(4, 8, {"model_parallel": 2, "use_seq_parallel": True, "recompute": "full"}),
    Case(8, 4, {"pipeline_stage": 2, "micro_batch_num": 2}),
]
_LOGGING = {"GLOG_v": "3", "MS_SUBMODULE_LOG_v": "{PRE_ACT:1}", "OMP_NUM_THREADS": "1"}  # INFO of the memory pool only
_PEAK = re.compile(r"DumpDynamicMemPoolStateInfo\].*?peak used mem:(\d+)M")


def predicted(case: Case, fused: bool) -> list[float]:
    """The estimate's activations of every rank, MiB."""
    plan, work = case.plan(), Work(case.rows, SEQUENCE, fused=fused)
    ranks = range(plan.strategy.device_num)
    return [memory(plan, Mesh(plan.strategy, rank).coordinate, work).activations / 2**20 for rank in ranks]


def measured(case: Case, operations: str) -> list[int]:
    """The pool's largest size on every rank, MiB rounded down, in a job that runs one step forwards and backwards."""
    program = [str(Path(__file__)), "--run", json.dumps(dataclasses.asdict(case)), operations]
    ranks = case.plan().strategy.device_num
    if ranks == 1:
        job = subprocess.run([sys.executable, *program], capture_output=True, text=True, check=False)
        code, logs = job.returncode, [job.stderr + job.stdout]
    else:
        with tempfile.TemporaryDirectory() as folder:
            code = launch(Launch(ranks, master_port=free_port(), log_dir=Path(folder)), program)
            logs = [(Path(folder) / f"rank_{rank}.log").read_text() for rank in range(ranks)]
    peaks = [_PEAK.findall(log) for log in logs]
    if code or not all(peaks):
        raise RuntimeError(f"no measurement: {logs[0][-2000:]}")
    return [int(found[-1]) for found in peaks]


def fused(operations: str) -> bool:
    """Whether this entry of the device table has fused operators here."""
    from codellama_model import select  # noqa: PLC0415  (loads MindSpore)

    return select(operations).linear is not select("composed").linear


def run(case: Case, operations: str) -> None:
    """The micro-batches of one step through the part of the network that this process has."""
    os.environ |= _LOGGING  # before MindSpore is loaded
    import mindspore as ms  # noqa: PLC0415  (the table itself needs none)
    import numpy as np  # noqa: PLC0415
    from codellama_model import select  # noqa: PLC0415
    from codellama_parallel import ParallelStep, build, initialize  # noqa: PLC0415
    from mindspore.communication import get_rank, init  # noqa: PLC0415

    ms.set_context(mode=ms.GRAPH_MODE)
    rank = 0
    if launched():
        init()
        rank = get_rank()
    plan = case.plan()
    mesh = Mesh(plan.strategy, rank)
    network = build(plan.config, mesh, plan, select(operations))
    initialize(network, mesh, plan, seed=0)
    micro_batches = plan.strategy.micro_batch_num
    ids = np.random.default_rng(0).integers(0, plan.config.vocab_size, (case.rows, SEQUENCE + 1)).astype(np.int32)
    step = ParallelStep(network, mesh, plan)
    stage = step.prepare(case.rows * micro_batches, SEQUENCE)
    stage.run([(ms.Tensor(ids), ms.Tensor(ids))] * micro_batches, ms.Tensor(1.0, ms.float32))
    step.totals.asnumpy()


def main() -> None:
    """Prints the table; exit code 1 where a rank is off by more than the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", nargs=2, metavar=("CASE", "OPERATIONS"), help="one rank of a case; used by the script")
    arguments = parser.parse_args().run
    if arguments:
        run(Case(**json.loads(arguments[0])), arguments[1])
        return
    print("operations  layers  rows rank  predicted  measured  MiB; strategy")
    worst = 0.0
    for operations in OPERATIONS:
        for case in CASES:
            both = zip(predicted(case, fused(operations)), measured(case, operations), strict=True)
            for rank, (ours, theirs) in enumerate(both):
                worst = max(worst, abs(ours / theirs - 1))
                figures = f"{operations:12}{case.layers:6}{case.rows:6}{rank:5}{ours:11.1f}{theirs:10}"
                print(f"{figures}       {json.dumps(case.strategy)}", flush=True)
    print(f"largest deviation {worst:.1%}, of {TOLERANCE:.0%} allowed")
    sys.exit(worst > TOLERANCE)


if __name__ == "__main__":
    main()
