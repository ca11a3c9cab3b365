"""One rank of a training job on a tiny network, for the tests: `msrun ... parity_job.py CASES.json OUTPUT`.

CASES.json holds a list of cases (see `Case`), all for as many processes as the job has. Each trains for some steps on
rows that depend on the case alone; what comes out is compared with the same case in one process. Every rank writes, per
case, `OUTPUT/NAME.RANK.npz`: `losses`, `norms`, `tokens` of every step, its parameters and moments, `peak_bytes`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections import Counter
from pathlib import Path

import mindspore as ms
import numpy as np
from codellama_model import Generator, LlamaConfig, select
from codellama_parallel import Mesh, ParallelConfig, ParallelStep, Plan, build, load
from codellama_parallel.collectives import group
from codellama_parallel.memory import Work, memory
from codellama_parallel.random_weights import normal_slice
from codellama_parallel.shared_memory import SWITCH
from codellama_parallel.step import Stage
from codellama_parallel.traffic import Traffic, counted, predicted
from mindspore import nn
from mindspore.communication import get_group_size, get_rank, init
from numpy.typing import NDArray

DEVIATION = 0.15  # of every matrix: no gradient is 0 or tiny, as those of a real start would be
# AdamW divides a gradient by its own size: an element whose gradient comes within rounding of 0 moves by a share of the
# rate that rounding decides, in one process with its micro-batches cut otherwise as well (at a rate of 3e-3, up to 3e-5
# of its matrix's largest number; with the kernels, up to 8e-4). This is Code Llama 34B's rate; 20 steps of a wrong
# gradient would still show as 6e-3.
LEARNING_RATE = 1.5e-4
WEIGHT_DECAY, MAX_GRAD_NORM = 0.1, 0.5  # clips in every step


@dataclasses.dataclass(frozen=True)
class Case:
    """One training to compare: a strategy, and what differs from the usual tiny network and batch."""

    name: str
    strategy: dict[str, object]
    n_kv_heads: int = 4
    num_layers: int = 3
    tied: bool = False
    packed: bool = False
    rows: int = 8
    steps: int = 20
    generate: bool = False  # also generate some tokens, before training
    operations: str = "composed"  # entry of the device table; "cpu" is codellama-kernels where that is installed
    shared_memory: bool = True  # add up in it where codellama-kernels is installed

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            num_layers=self.num_layers,
            num_heads=8,
            n_kv_heads=self.n_kv_heads,
            intermediate_size=48,
            max_position_embedding=32,
            tie_word_embeddings=self.tied,
        )

    def alone(self) -> Case:
        """The same in one process, of one micro-batch, with composed operations."""
        return dataclasses.replace(self, name="alone", strategy={}, operations="composed")


SEQUENCE = 16
PROMPTS, NEW_TOKENS = [[1, 5, 9], [1, 7]], 12
# MindSpore finds what it has parsed by an object's id: cells must live on, or the next case's may be taken for them
_KEPT: list[object] = []
SAVES_GRAPHS = "MS_DEV_SAVE_GRAPHS" in os.environ and "MS_ROLE" in os.environ  # set by `parity.run` for its jobs


def weights(config: LlamaConfig) -> dict[str, NDArray[np.float32]]:
    """Whole parameters; norms away from 1, so that a wrong gradient of theirs shows."""
    values = {}
    for name, shape in config.parameter_shapes().items():
        box = tuple((0, side) for side in shape)
        values[name] = normal_slice(name, shape, box, DEVIATION, seed=0) + np.float32(len(shape) == 1)
    return values


def batches(case: Case) -> list[dict[str, NDArray[np.int32]]]:
    """Global batches with ragged labels: rows with few tokens under loss, and one with none."""
    generator = np.random.default_rng(1)
    result = []
    for _ in range(case.steps):
        ids = generator.integers(0, case.config().vocab_size, (case.rows, SEQUENCE + 1)).astype(np.int32)
        labels = ids.copy()
        for row, start in enumerate(generator.integers(0, SEQUENCE, case.rows)):
            labels[row, :start] = -100
        labels[generator.integers(case.rows)] = -100
        batch = {"input_ids": ids, "labels": labels}
        if case.packed:
            border = generator.integers(1, SEQUENCE, (case.rows, 1))
            batch["document_ids"] = (np.arange(SEQUENCE + 1)[None] >= border).astype(np.int32)
        result.append(batch)
    return result


def train(case: Case, rank: int) -> dict[str, NDArray[np.generic]]:
    """Runs a case on this rank."""
    config, strategy = case.config(), ParallelConfig(**case.strategy)  # type: ignore[arg-type]
    mesh, plan = Mesh(strategy, rank), Plan(config, strategy)
    if strategy.device_num > 1:
        os.environ[SWITCH] = str(int(case.shared_memory))
    network = build(config, mesh, plan, select(case.operations))
    whole = weights(config)
    load(network, mesh, plan, lambda name, slices: np.ascontiguousarray(whole[name][slices]))
    generated = Generator(network).generate(PROMPTS, NEW_TOKENS, stop_ids=()) if case.generate else []
    step = ParallelStep(network, mesh, plan, weight_decay=WEIGHT_DECAY, max_grad_norm=MAX_GRAD_NORM)
    _KEPT.append((network, step))
    check_memory(step, plan, mesh)
    share = case.rows // strategy.data_parallel
    sent = Sent(step, step.prepare(share, SEQUENCE))
    own = slice(mesh.coordinate.data * share, (mesh.coordinate.data + 1) * share)
    results = [
        step(LEARNING_RATE, 1.0, {name: column[own] for name, column in batch.items()}) for batch in batches(case)
    ]
    if SAVES_GRAPHS:  # before `evaluate`, which sends too
        check_operators(case, mesh, sent)
        expected = predicted(plan, mesh.coordinate, Work(share // strategy.micro_batch_num, SEQUENCE))
        found = {link: size / case.steps for link, size in sent.bytes.items()}
        if found != expected.bytes:
            raise AssertionError(f"{case.name}, rank {rank}: predicted {expected.bytes}, counted {found}")
    evaluated, tokens = step.evaluate({name: column[own] for name, column in batches(case)[0].items()})
    return {
        "generated": np.array(generated),
        "evaluated": np.array(evaluated / tokens),
        "losses": np.array([result.loss for result in results]),
        "norms": np.array([result.grad_norm for result in results]),
        "tokens": np.array([result.tokens for result in results]),
        **{parameter.name: parameter.asnumpy() for parameter in network.get_parameters()},
        **saved(step),
    }


def saved(step: ParallelStep) -> dict[str, NDArray[np.generic]]:
    """What this rank would write into a checkpoint: `state KIND NAME`, and `box KIND NAME`, where it belongs."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for one in step.state():
        if one.owner:
            arrays[f"state {one.kind} {one.name}"] = one.parameter.asnumpy()
            arrays[f"box {one.kind} {one.name}"] = np.array(one.box)
    return arrays


def check_memory(step: ParallelStep, plan: Plan, mesh: Mesh) -> None:
    """Parameters, gradients and optimizer state take exactly the bytes that the estimate says."""
    update = step.update
    held = {
        "parameters": step.parameters,
        "gradients": [*step.sums, step.totals],
        "optimizer": [*update.optimizer.first, *update.optimizer.second, update.optimizer.step, *update.windows],
    }
    expected = memory(plan, mesh.coordinate, Work(1, SEQUENCE))
    for what, parameters in held.items():
        found = sum(parameter.nbytes for parameter in parameters)
        if found != getattr(expected, what):
            raise AssertionError(f"rank {mesh.rank}: {what} take {found} bytes, predicted {getattr(expected, what)}")


def check_operators(case: Case, mesh: Mesh, sent: Sent) -> None:
    """The kernels add up and compute a split vocabulary where they are chosen and there, and nothing else does."""
    chosen = {"codellama_shared_sum": group("world", mesh.world(), mesh.size).shared is not None}
    if mesh.strategy.model_parallel > 1 and mesh.last_stage:
        fused = select(case.operations).vocabulary_slice is not select("composed").vocabulary_slice
        chosen |= {"codellama_vocabulary_slice": fused, "codellama_vocabulary_slice_backward": fused}
    for operator, wanted in chosen.items():
        if wanted != any(operator in text for text in sent.graphs):
            raise AssertionError(f"{case.name}, rank {mesh.rank}: {operator} is {'not ' * wanted}in the graphs")


class Sent:
    """Counts what a step sends: every graph of it is looked at when it is compiled, and counted when it runs."""

    def __init__(self, step: ParallelStep, stage: Stage) -> None:
        self.bytes: Counter[tuple[str, str]] = Counter()
        self.graphs: list[str] = []  # the text of each
        step.update = Watched(step.update, self)
        stage.backward = Watched(stage.backward, self)
        if stage.forward is not None:
            stage.forward = Watched(stage.forward, self)
        for neighbour in (stage.previous, stage.next):
            if neighbour is not None:
                for name in ("send", "receive", "exchange"):
                    setattr(neighbour, name, Watched(getattr(neighbour, name), self))


class Watched:
    """A cell whose calls are counted."""

    def __init__(self, cell: nn.Cell, sent: Sent) -> None:
        self.cell, self.sent = cell, sent
        self.traffic: Traffic | None = None

    def __call__(self, *arguments: object) -> object:
        before = graphs()
        result = self.cell(*arguments)
        if self.traffic is None:
            total: Counter[tuple[str, str]] = Counter()
            for path in graphs() - before:
                total.update(counted(path).bytes)
                self.sent.graphs.append(path.read_text(encoding="utf-8"))
            self.traffic = Traffic(dict(total))
        self.sent.bytes.update(self.traffic.bytes)
        return result

    def __getattr__(self, name: str) -> object:
        return getattr(self.cell, name)


def graphs() -> set[Path]:
    """What MindSpore has saved so far."""
    return set(Path(f"rank_{get_rank()}").glob("graph_build_*.ir")) if SAVES_GRAPHS else set()


def main() -> None:
    """Runs the cases of the file in turn."""
    cases, output = [Case(**case) for case in json.loads(Path(sys.argv[1]).read_text())], Path(sys.argv[2])
    ms.set_context(mode=ms.GRAPH_MODE)
    init()
    for case in cases:
        if ParallelConfig(**case.strategy).device_num != get_group_size():  # type: ignore[arg-type]
            raise SystemExit(f"case {case.name} is not for {get_group_size()} processes")
        np.savez(output / f"{case.name}.{get_rank()}.npz", **train(case, get_rank()))
        print(f"{case.name} done", flush=True)


if __name__ == "__main__":
    main()
