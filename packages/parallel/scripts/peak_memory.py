"""`hatch run parallel:peak_memory`: the peak memory of a rank falls as the plan says.

Trains two steps under each strategy and prints the largest rank's peak of resident memory, beyond what it had before
the network was built, beside the plan's figure. What MindSpore keeps of compiled graphs is not in the plan: it is
measured by a twin, a network of as many layers with tiny matrices under the same strategy, and taken off, as the plan's
figure for the twin is. The fall from one strategy to another is held against the plan's.

ZeRO-1 saves moments, so it is measured on a network that has many parameters for its tokens.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from codellama_model import LlamaConfig
from codellama_parallel import Mesh, ParallelConfig, Plan
from codellama_parallel.launch import Launch, launch, launched
from codellama_parallel.memory import Memory, Work, memory
from ports import free_port

# Of a fall: the plan's activations are within 15 % themselves, and the peak falls between two graphs or within one.
TOLERANCE = 0.15
ROWS, SEQUENCE = 8, 256  # of a global batch
CONFIG = LlamaConfig(
    vocab_size=16000,
    hidden_size=512,
    num_layers=6,
    num_heads=8,
    n_kv_heads=4,
    intermediate_size=1376,
    max_position_embedding=SEQUENCE,
)
WIDE_SEQUENCE = 64
WIDE = LlamaConfig(
    vocab_size=1000,
    hidden_size=2048,
    num_layers=2,
    num_heads=16,
    n_kv_heads=8,
    intermediate_size=5504,
    max_position_embedding=WIDE_SEQUENCE,
)


@dataclass(frozen=True)
class Case:
    """A network under a strategy, and the length of its rows."""

    strategy: ParallelConfig
    config: LlamaConfig = CONFIG
    sequence: int = SEQUENCE

    def twin(self) -> Case:
        """The same graphs over next to no numbers."""
        small = dataclasses.replace(self.config, vocab_size=512, hidden_size=64, intermediate_size=176)
        return dataclasses.replace(self, config=small)


_TWIN = "twin of "
CASES: dict[str, Case] = {
    "one process": Case(ParallelConfig()),
    "tp4": Case(ParallelConfig(model_parallel=4)),
    "dp2": Case(ParallelConfig(data_parallel=2), WIDE, WIDE_SEQUENCE),
    "dp2, optimizer_shard": Case(ParallelConfig(data_parallel=2, optimizer_shard=True), WIDE, WIDE_SEQUENCE),
    "pp2, all 4 micro-batches in one": Case(ParallelConfig(pipeline_stage=2, micro_batch_num=1)),
    "pp2, 1F1B of 4 micro-batches": Case(ParallelConfig(pipeline_stage=2, micro_batch_num=4)),
}


@dataclass(frozen=True)
class Fall:
    """A pair of cases, the second of which must need less."""

    before: str
    after: str


FALLS = [
    Fall("one process", "tp4"),
    Fall("dp2", "dp2, optimizer_shard"),
    Fall("pp2, all 4 micro-batches in one", "pp2, 1F1B of 4 micro-batches"),
]


def planned(case: Case) -> float:
    """The fullest rank's, MiB."""
    strategy = case.strategy
    plan = Plan(case.config, strategy)
    work = Work(ROWS // strategy.data_parallel // strategy.micro_batch_num, case.sequence, fused=_fused())
    ranks: list[Memory] = [memory(plan, Mesh(strategy, rank).coordinate, work) for rank in range(strategy.device_num)]
    return max(rank.total for rank in ranks) / 2**20


def measured(name: str) -> float:
    """The fullest rank's, MiB, in a job of its own."""
    strategy = CASES[name.removeprefix(_TWIN)].strategy
    with tempfile.TemporaryDirectory() as folder:
        if strategy.device_num == 1:
            command = [sys.executable, __file__, "--run", name, folder]
            code = subprocess.run(command, cwd=folder, check=False).returncode
        else:
            job = Launch(strategy.device_num, master_port=free_port(), log_dir=Path(folder) / "log")
            code = launch(job, [__file__, "--run", name, folder])
        if code:
            raise SystemExit(f"{name}: the job failed")
        return max(float(path.read_text()) for path in Path(folder).glob("*.peak")) / 2**20


def run(name: str, folder: Path) -> None:
    """Two steps on this rank."""
    import mindspore as ms  # noqa: PLC0415  (the table itself needs none)
    import numpy as np  # noqa: PLC0415
    from codellama_parallel import ParallelStep, build, initialize  # noqa: PLC0415
    from mindspore.communication import get_rank, init  # noqa: PLC0415

    ms.set_context(mode=ms.GRAPH_MODE)
    rank = 0
    if launched():
        init()
        rank = get_rank()
    case = CASES[name.removeprefix(_TWIN)]
    if name.startswith(_TWIN):
        case = case.twin()
    strategy, config = case.strategy, case.config
    mesh, plan = Mesh(strategy, rank), Plan(config, strategy)
    before = _status("VmRSS")
    network = build(config, mesh, plan)
    initialize(network, mesh, plan, seed=0)
    step = ParallelStep(network, mesh, plan)
    rows = ROWS // strategy.data_parallel
    for _ in range(2):
        ids = np.random.default_rng(0).integers(0, config.vocab_size, (rows, case.sequence + 1)).astype(np.int32)
        step(1e-4, 1.0, {"input_ids": ids})
    (folder / f"{rank}.peak").write_text(str(_status("VmHWM") - before))


def _status(what: str) -> int:
    """A figure of this process, bytes."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def _fused() -> bool:
    from codellama_model import select  # noqa: PLC0415  (loads MindSpore)

    return select("cpu").linear is not select("composed").linear


def main() -> None:
    """Prints the tables; exit code 1 where a fall is off by more than the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", nargs=2, metavar=("CASE", "FOLDER"), help="one rank of a case; used by the script")
    parser.add_argument("--only", default="", help="cases whose name contains this, and the falls between them")
    arguments = parser.parse_args()
    if arguments.run:
        run(arguments.run[0], Path(arguments.run[1]))
        return
    figures = {}
    print(f"{'peak of the fullest rank beyond its twin, MiB':48}{'planned':>10}{'measured':>10}")
    for name, case in CASES.items():
        if arguments.only not in name:
            continue
        figures[name] = planned(case) - planned(case.twin()), measured(name) - measured(_TWIN + name)
        print(f"{name:48}{figures[name][0]:10.0f}{figures[name][1]:10.0f}", flush=True)
    failed = False
    for fall in (fall for fall in FALLS if fall.before in figures and fall.after in figures):
        ours, theirs = (before - after for before, after in zip(figures[fall.before], figures[fall.after], strict=True))
        failed |= abs(theirs / ours - 1) > TOLERANCE
        print(f"{fall.before} -> {fall.after}: planned {ours:.0f}, measured {theirs:.0f}, ratio {theirs / ours:.2f}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
