"""Which gradients travel together, over which axis, and in which order. Plain Python, for the step and the estimate.

A bucket is one collective: the gradients in it are laid one after the other. After the last bucket every rank has
the sum over the whole job of every gradient that it updates with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from codellama_parallel.mesh import Coordinate
from codellama_parallel.plan import EMBEDDING, Plan, Sharding


@dataclass(frozen=True)
class Bucket:
    """One collective over the gradients of some parameters.

    Args:
        axis: "key_value" (ranks that share key/value heads), "model" (copies that saw different tokens), "tied" (first
            and last stage of a tied embedding) or "data".
        operation: "reduce_scatter" where each rank goes on with its part (ZeRO-1), "all_reduce" otherwise.
        names: the parameters, in order.
    """

    axis: Literal["key_value", "model", "tied", "data"]
    operation: Literal["all_reduce", "reduce_scatter"]
    names: tuple[str, ...]


def gradient_buckets(plan: Plan, where: Coordinate) -> tuple[Bucket, ...]:
    """The buckets of the rank at this coordinate, in the order in which they are sent."""
    names = plan.local_names(where)
    partial = [name for name in names if plan.partial_over_model(name)]
    shared = tuple(name for name in partial if plan.sharding(name) is Sharding.KEY_VALUE)
    copied = tuple(name for name in partial if name not in shared)
    buckets: list[Bucket] = []
    if shared:
        buckets.append(Bucket("key_value", "all_reduce", shared))
    if copied:
        buckets.append(Bucket("model", "all_reduce", copied))
    if len(plan.stages(EMBEDDING)) > 1 and EMBEDDING in names:
        buckets.append(Bucket("tied", "all_reduce", (EMBEDDING,)))
    if plan.strategy.data_parallel > 1:
        for bucket in _even(plan, where, names):
            split = tuple(name for name in bucket if plan.optimizer_parts(name) > 1)
            whole = tuple(name for name in bucket if plan.optimizer_parts(name) == 1)
            if split:
                buckets.append(Bucket("data", "reduce_scatter", split))
            if whole:
                buckets.append(Bucket("data", "all_reduce", whole))
    return tuple(buckets)


def _even(plan: Plan, where: Coordinate, names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """`gradient_aggregation_group` runs of consecutive parameters, of about the same size."""
    sizes = [math.prod(plan.local_shape(name, where)) for name in names]
    share = sum(sizes) / plan.strategy.gradient_aggregation_group
    buckets: dict[int, list[str]] = {}
    end = 0
    for name, size in zip(names, sizes, strict=True):
        middle = end + size / 2
        buckets.setdefault(min(int(middle / share), plan.strategy.gradient_aggregation_group - 1), []).append(name)
        end += size
    return [tuple(bucket) for bucket in buckets.values()]
