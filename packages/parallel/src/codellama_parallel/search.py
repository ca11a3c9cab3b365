"""All strategies for a number of devices, ranked. Plain Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from codellama_model.config import ConfigError, LlamaConfig

from codellama_parallel.devices import Device
from codellama_parallel.memory import Memory, Work, memory
from codellama_parallel.mesh import Coordinate
from codellama_parallel.plan import Plan
from codellama_parallel.strategy import RECOMPUTE, ParallelConfig
from codellama_parallel.throughput import Throughput, throughput


@dataclass(frozen=True)
class Candidate:
    """A strategy that fits."""

    strategy: ParallelConfig
    memory: Memory
    throughput: Throughput


def fullest(plan: Plan, work: Work) -> Memory:
    """The memory of the stage that needs most."""
    stages = range(plan.strategy.pipeline_stage)
    return max((memory(plan, Coordinate(stage, 0, 0), work) for stage in stages), key=lambda one: one.total)


def search(
    config: LlamaConfig, strategy: ParallelConfig, work: Work, device: Device, device_num: int, device_memory: int
) -> list[Candidate]:
    """The strategies for `device_num` devices of `device_memory` bytes that fit, fastest first.

    Varied: data, model and pipeline parallelism, sequence parallelism, ZeRO-1, recompute. The rows of a global step
    stay those of `strategy`: fewer data-parallel copies compute more micro-batches.
    """
    rows = strategy.data_parallel * strategy.micro_batch_num
    found = []
    for candidate in _strategies(strategy, device_num, rows):
        try:
            plan = Plan(config, candidate)
            candidate.check_batch(work.rows * candidate.micro_batch_num, work.seq_length)
        except ConfigError:  # impossible for these sizes
            continue
        needed = fullest(plan, work)
        if needed.total <= device_memory:
            found.append(Candidate(candidate, needed, throughput(plan, work, device)))
    return sorted(found, key=lambda one: (-one.throughput.tokens_per_second, one.memory.total))


def _strategies(strategy: ParallelConfig, device_num: int, rows: int) -> Iterator[ParallelConfig]:
    for model in _divisors(device_num):
        for pipeline in _divisors(device_num // model):
            data = device_num // model // pipeline
            if rows % data:
                continue
            for sequence in (False, True) if model > 1 else (False,):
                for shard in (False, True) if data > 1 else (False,):
                    for recompute in RECOMPUTE:
                        yield dataclasses.replace(
                            strategy,
                            data_parallel=data,
                            model_parallel=model,
                            pipeline_stage=pipeline,
                            micro_batch_num=rows // data,
                            use_seq_parallel=sequence,
                            optimizer_shard=shard,
                            recompute=recompute,
                            pipeline_offset=0,
                        )


def _divisors(number: int) -> list[int]:
    return [one for one in range(1, number + 1) if number % one == 0]
