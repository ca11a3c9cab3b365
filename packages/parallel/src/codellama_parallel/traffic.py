"""What one rank sends in a step: predicted from plan and batch, and counted in the graphs that really ran.

The size of a collective is that of its whole tensor: what is summed, what all-gather yields, what reduce-scatter takes.
Plain Python.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from codellama_parallel.buckets import gradient_buckets
from codellama_parallel.memory import FLOAT32, Work
from codellama_parallel.mesh import Coordinate
from codellama_parallel.plan import Plan
from codellama_parallel.schedule import Kind, one_forward_one_backward

Link = tuple[str, str]  # (operation, axis)


@dataclass(frozen=True)
class Traffic:
    """Bytes of one rank in one step, per (operation, axis)."""

    bytes: Mapping[Link, int]

    @property
    def total(self) -> int:
        """Over all collectives."""
        return sum(self.bytes.values())


def predicted(plan: Plan, where: Coordinate, work: Work) -> Traffic:
    """What the rank at this coordinate sends in one step."""
    total: Counter[Link] = Counter()
    micro_batches = plan.strategy.micro_batch_num
    last = where.pipeline == plan.strategy.pipeline_stage - 1
    if not last:  # the forward pass for the next stage; the backward pass computes it again
        _add(total, _forward(plan, where, work), micro_batches)
    _add(total, _backward(plan, where, work), micro_batches)
    _add(total, _borders(plan, where, work), 1)
    whole = {name: math.prod(plan.local_shape(name, where)) for name in plan.local_names(where)}
    for bucket in gradient_buckets(plan, where):
        size = sum(whole[name] for name in bucket.names) * FLOAT32
        total[bucket.operation, bucket.axis] += size
        if bucket.operation == "reduce_scatter":
            total["all_gather", bucket.axis] += size  # of the updated parameters
    if plan.strategy.device_num > 1:
        total["all_reduce", "world"] += 3 * FLOAT32  # loss, tokens, squares of the gradients
    return Traffic(dict(total))


def _forward(plan: Plan, where: Coordinate, work: Work) -> Counter[Link]:
    """One forward pass of one micro-batch, the loss apart."""
    total: Counter[Link] = Counter()
    if plan.strategy.model_parallel == 1:
        return total
    hidden = work.tokens * plan.config.hidden_size * work.activation_bytes
    pairs = 2 * plan.layers[where.pipeline]
    embedding = int(where.pipeline == 0 and not plan.strategy.vocab_emb_dp)
    head = int(where.pipeline == plan.strategy.pipeline_stage - 1)
    if plan.strategy.use_seq_parallel:
        total["all_gather", "model"] += (pairs + head) * hidden
        total["reduce_scatter", "model"] += (pairs + embedding) * hidden
    else:
        total["all_reduce", "model"] += (pairs + embedding) * hidden
    return total


def _backward(plan: Plan, where: Coordinate, work: Work) -> Counter[Link]:
    """Forward, loss and backward pass of one micro-batch, in one graph."""
    total = _forward(plan, where, work)
    if plan.strategy.model_parallel == 1:
        return total
    last = where.pipeline == plan.strategy.pipeline_stage - 1
    hidden = work.tokens * plan.config.hidden_size * work.activation_bytes
    pairs = 2 * plan.layers[where.pipeline]
    embedding = int(where.pipeline == 0 and not plan.strategy.vocab_emb_dp)
    if plan.strategy.use_seq_parallel:
        total["reduce_scatter", "model"] += (pairs + last) * hidden
        total["all_gather", "model"] += (pairs + embedding) * hidden
    else:
        total["all_reduce", "model"] += (pairs + last) * hidden
    if plan.strategy.recompute == "full" and plan.strategy.use_seq_parallel:
        total["all_gather", "model"] += pairs * hidden  # a branch is entered again, and never left again
    if last:
        total["all_gather", "model"] += plan.strategy.model_parallel * work.tokens * FLOAT32  # largest logits
        total["all_reduce", "model"] += 2 * work.tokens * FLOAT32  # sums and the labels' logits
    else:
        # the last sum of the forward pass yields the next stage's states, which nothing here needs again
        operation = "reduce_scatter" if plan.strategy.use_seq_parallel else "all_reduce"
        total[operation, "model"] -= hidden
    return total


def _borders(plan: Plan, where: Coordinate, work: Work) -> Counter[Link]:
    """States and gradients over the borders of a stage; an exchange counts both."""
    strategy = plan.strategy
    states = work.tokens // strategy.sequence_parts * plan.config.hidden_size * work.activation_bytes
    total: Counter[Link] = Counter()
    for action in one_forward_one_backward(where.pipeline, strategy.pipeline_stage, strategy.micro_batch_num):
        if action.kind in {Kind.TO_NEXT, Kind.TO_PREVIOUS}:
            total[border_operation(action.sent, action.received), "pipeline"] += states * (
                2 if action.sent is not None and action.received is not None else 1
            )
    return total


def border_operation(sent: int | None, received: int | None) -> str:
    """Its name in the graphs of `collectives`."""
    if sent is not None and received is not None:
        return "exchange"
    return "receive" if sent is None else "send"


def _add(total: Counter[Link], part: Mapping[Link, int], times: int) -> None:
    for link, size in part.items():
        total[link] += size * times


_CALL = re.compile(r"= (?:AllReduce|AllGather|ReduceScatter|Send|Receive)\(|= Custom\(.*\blogical: ")
_SHAPES = re.compile(
    r"\(<(?:Ref\[)?Tensor\[(?P<type>\w+)\]\]?, \((?P<takes>[\d, ]*)\)[^>]*>(?:, <[^>]*>)*\)"
    r" -> \(<Tensor\[\w+\], \((?P<gives>[\d, ]*)\)"
)
_ITEM = {"Float32": 4, "Float16": 2, "BFloat16": 2}


def counted(graph: Path) -> Traffic:
    """The collectives of one run of a graph that MindSpore has saved as it runs it.

    With MS_DEV_SAVE_GRAPHS=1 a rank leaves such files, `rank_N/graph_build_*.ir`, in its working directory.

    Raises:
        ValueError: the file has a collective that `collectives` did not make, or whose size it does not tell.
    """
    total: Counter[Link] = Counter()
    lines = graph.read_text(encoding="utf-8").splitlines()
    for index, line in enumerate(lines):
        if _CALL.search(line):
            shapes = _SHAPES.search(lines[index + 1])
            if shapes is None:
                raise ValueError(f"{graph}: no shapes after {line!r}")
            size = max(_size(shapes["takes"]), _size(shapes["gives"])) * _ITEM[shapes["type"]]
            total[_attribute(line, "logical"), _attribute(line, "axis")] += size
    return Traffic(dict(total))


def _attribute(line: str, key: str) -> str:
    match = re.search(rf'\b{key}: "(\w+)"', line)
    if match is None:
        raise ValueError(f"a collective without {key}: {line}")
    return match[1]


def _size(shape: str) -> int:
    return math.prod(int(side) for side in shape.split(",") if side.strip())
