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
    """A strategy that fits; for generation, whose speed is not estimated, without a throughput."""

    strategy: ParallelConfig
    memory: Memory
    throughput: Throughput | None


def fullest(plan: Plan, work: Work) -> Memory:
    """The memory of the stage that needs most."""
    stages = range(plan.strategy.pipeline_stage)
    return max((memory(plan, Coordinate(stage, 0, 0), work) for stage in stages), key=lambda one: one.total)


def search(
    config: LlamaConfig, strategy: ParallelConfig, work: Work, device: Device, device_num: int, device_memory: int
) -> list[Candidate]:
    """The strategies for `device_num` devices of `device_memory` bytes that fit, best first.

    For generation these are the numbers of model-parallel ranks up to `device_num`, the fewest first. In training the
    fastest is first, and varied are data, model and pipeline parallelism, sequence parallelism, ZeRO-1 and recompute.
    The rows of a global step stay those of `strategy`: fewer data-parallel copies compute more micro-batches.
    """
    rows = strategy.data_parallel * strategy.micro_batch_num
    found = []
    candidates = _strategies(strategy, device_num, rows) if work.training else _splits(strategy, device_num)
    for candidate in candidates:
        try:
            plan = Plan(config, candidate)
            candidate.check_batch(work.rows * candidate.micro_batch_num, work.seq_length)
        except ConfigError:  # impossible for these sizes
            continue
        needed = fullest(plan, work)
        if needed.total <= device_memory:
            speed = throughput(plan, work, device) if work.training else None
            found.append(Candidate(candidate, needed, speed))
    return sorted(found, key=_rank)


def _rank(one: Candidate) -> tuple[float, int]:
    if one.throughput is None:
        return one.strategy.device_num, one.memory.total
    return -one.throughput.tokens_per_second, one.memory.total


def _splits(strategy: ParallelConfig, device_num: int) -> Iterator[ParallelConfig]:
    """Strategies that generate: `codellama_parallel.cached` splits over the model axis alone."""
    for model in _divisors(device_num):
        yield dataclasses.replace(
            strategy,
            data_parallel=1,
            model_parallel=model,
            pipeline_stage=1,
            micro_batch_num=1,
            vocab_emb_dp=True,
            use_seq_parallel=False,
            optimizer_shard=False,
            recompute="none",
            pipeline_offset=0,
        )


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
