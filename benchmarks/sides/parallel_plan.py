"""What the parallel benchmark and its ranks know of a job alike: its strategy, and what the planner says it sends."""

import math
from collections import Counter

from codellama_model import LlamaConfig
from codellama_parallel import Coordinate, ParallelConfig, Plan
from codellama_parallel.buckets import gradient_buckets
from codellama_parallel.memory import FLOAT32, Work
from codellama_parallel.traffic import predicted
from train_protocol import llama_keys

MESHES = {"tp2": "model_parallel", "dp2": "data_parallel", "pp2": "pipeline_stage"}
RANKS = 2


def job(mesh: str, size: dict[str, int]) -> tuple[Plan, Work]:
    """The plan of a mesh, and what a rank computes at a time: `batch` rows, however the job is split."""
    parts = RANKS if mesh == "dp2" else 1
    if size["micro_batches"] % parts:
        raise SystemExit(f"--micro_batches {size['micro_batches']} can not be shared by {parts} processes")
    strategy = ParallelConfig(**{MESHES[mesh]: RANKS}, micro_batch_num=size["micro_batches"] // parts)
    return Plan(LlamaConfig(**llama_keys(size)), strategy), Work(size["batch"], size["sequence"])


def messages(plan: Plan, where: Coordinate, work: Work) -> list[int]:
    """Bytes of each collective of a step of one rank; together what the planner predicts."""
    hidden = work.tokens * plan.config.hidden_size * work.activation_bytes
    rest = Counter(predicted(plan, where, work).bytes)
    found = []
    for bucket in gradient_buckets(plan, where):
        whole = FLOAT32 * sum(math.prod(plan.local_shape(name, where)) for name in bucket.names)
        found.append(whole)
        rest[bucket.operation, bucket.axis] -= whole
    for total in rest.values():  # hidden states, and what is smaller
        count, remainder = divmod(total, hidden)
        found += [hidden] * count + [remainder] * (remainder > 0)
    return found
