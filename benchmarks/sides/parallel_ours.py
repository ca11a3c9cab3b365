"""One side of the parallel benchmark: the training step on two processes, each with its share of the threads.

    python parallel_ours.py SIZE STEPS MICRO_BATCHES MESH THREADS FOLDER        then lines as `train_protocol` has it

Starts the ranks, which run this file too. Rank 0 reads the lines and lets the other go with a sum over both. FOLDER
takes the ranks' logs.
"""

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mindspore as ms
import numpy as np
import train_protocol as protocol
from codellama_parallel import Mesh, ParallelStep, build, initialize
from codellama_parallel.collectives import AllReduce, group
from codellama_parallel.launch import THREAD_VARIABLES, Launch, launch, launched
from mindspore import Parameter, Tensor, nn, ops
from mindspore.communication import get_rank, init
from parallel_plan import RANKS, job, messages


class Messages(nn.Cell):
    """All collectives of a step, one after the other and nothing in between."""

    def __init__(self, mesh: Mesh, sizes: list[int]) -> None:
        super().__init__()
        payloads = (Tensor(np.zeros(size // 4, np.float32)) for size in sizes)
        self.payloads = ms.ParameterTuple([Parameter(one, name=f"payload_{i}") for i, one in enumerate(payloads)])
        self.all_reduce = AllReduce(group("world", mesh.world(), mesh.size))

    def construct(self, token: Tensor) -> Tensor:
        for payload in self.payloads:
            token = self.all_reduce(ops.depend(payload, token))[:1]
        return token


def rank(mesh_name: str) -> None:
    """What each of the ranks runs."""
    ms.set_context(mode=ms.GRAPH_MODE)
    init()
    size = protocol.SIZES[sys.argv[1]] | {"micro_batches": int(sys.argv[3])}
    plan, work = job(mesh_name, size)
    mesh = Mesh(plan.strategy, get_rank())
    world = AllReduce(group("world", mesh.world(), mesh.size))

    def requests() -> Iterator[object]:
        while world(Tensor(float(mesh.rank == 0 and bool(sys.stdin.readline())), ms.float32)).asnumpy():
            yield None

    def make(_: dict[str, int]) -> tuple[protocol.Step, str]:
        network = build(plan.config, mesh, plan)
        initialize(network, mesh, plan, seed=0)
        step = ParallelStep(
            network, mesh, plan, weight_decay=protocol.WEIGHT_DECAY, max_grad_norm=protocol.MAX_GRAD_NORM
        )
        rows = work.rows * plan.strategy.micro_batch_num
        own = slice(mesh.coordinate.data * rows, (mesh.coordinate.data + 1) * rows)

        def run(ids: np.ndarray) -> float:
            return step(protocol.LEARNING_RATE, 1.0, {"input_ids": ids[own]}).loss

        return run, f"{mesh.size} processes x {os.environ[THREAD_VARIABLES[0]]} threads, mindspore {ms.__version__}"

    protocol.run(make, {"collectives": timed(Messages(mesh, messages(plan, mesh.coordinate, work)))}, requests())


def timed(cell: Messages) -> Callable[[], float]:
    """A function that sends everything and takes the time."""

    def seconds() -> float:
        start = time.perf_counter()
        cell(Tensor(np.zeros(1, np.float32))).asnumpy()
        return time.perf_counter() - start

    seconds()  # compiles
    return seconds


def start(mesh_name: str, threads: int, folder: Path) -> int:
    """Runs the ranks and gives their exit code; what rank 0 prints is printed here."""
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(max(1, threads // RANKS))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return launch(Launch(RANKS, master_port=port, log_dir=folder), [__file__, *sys.argv[1:]])


if __name__ == "__main__":
    if launched():
        rank(sys.argv[4])
    else:
        sys.exit(start(sys.argv[4], int(sys.argv[5]), Path(sys.argv[6]) / sys.argv[4]))
