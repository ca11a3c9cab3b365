"""How fast a strategy would train on a device of the table. Plain Python.

A step is its slowest stage's micro-batches, the pipeline's bubble, and the collectives, none of which is taken to
overlap with computing. Left out: everything but matrix products and bytes on the wire (element-wise operations, the
optimizer, latency, the host), overlap of the two (MindFormers' `fine_grain_interleave`), contention between links.
"""

from __future__ import annotations

from dataclasses import dataclass

from codellama_parallel.devices import Device
from codellama_parallel.memory import Work
from codellama_parallel.mesh import Coordinate, Mesh
from codellama_parallel.plan import Plan
from codellama_parallel.schedule import bubble
from codellama_parallel.traffic import Link, predicted

MATRIX_EFFICIENCY = 0.6  # share of the peak that large matrix products reach: an assumption, not measured on a device


@dataclass(frozen=True)
class Throughput:
    """One step.

    Attributes:
        step_seconds: of the whole step.
        compute_seconds: matrix products of the slowest stage, the bubble apart.
        communication_seconds: collectives of that stage.
        bubble: share of the computing time that a stage waits besides.
        tokens_per_second: of one device.
        mfu: matrix products of the model, none counted twice, over what the device could do (PaLM, appendix B).
    """

    step_seconds: float
    compute_seconds: float
    communication_seconds: float
    bubble: float
    tokens_per_second: float
    mfu: float


def throughput(plan: Plan, work: Work, device: Device) -> Throughput:
    """The prediction for a job of this plan, all of whose devices are alike."""
    strategy, config = plan.strategy, plan.config
    stages = range(strategy.pipeline_stage)
    seconds = [stage_flops(plan, work, stage) / (device.peak_flops * MATRIX_EFFICIENCY) for stage in stages]
    compute = max(seconds) * strategy.micro_batch_num
    communication = max(_communication(plan, Coordinate(stage, 0, 0), work, device) for stage in stages)
    waiting = bubble(strategy.pipeline_stage, strategy.micro_batch_num)
    step = compute / (1 - waiting) + communication
    tokens = work.tokens * strategy.micro_batch_num * strategy.data_parallel
    per_device = tokens / step / strategy.device_num
    mfu = per_device * config.flops_per_token(work.seq_length) / device.peak_flops
    return Throughput(step, compute, communication, waiting, per_device, mfu)


def stage_flops(plan: Plan, work: Work, stage: int) -> float:
    """Matrix products that one rank of this stage computes for one micro-batch, recomputing included."""
    config, strategy = plan.config, plan.strategy
    head = config.vocab_size * config.hidden_size
    query, key_value = config.num_heads * config.head_size, config.kv_heads * config.head_size
    matrices = config.hidden_size * (2 * query + 2 * key_value + 3 * config.intermediate_size)
    scores = 2 * work.seq_length * query / 2  # two products over half the context, on average
    last = stage == strategy.pipeline_stage - 1
    layers = 2 * plan.layers[stage] * (matrices + scores)
    forward = layers + (2 * head if last else 0)
    passes = 3 * forward + (2 * head if last else 0)  # backward is twice forward; the loss computes logits twice
    if strategy.recompute == "full":
        passes += layers
    elif strategy.recompute == "selective":
        passes += 2 * plan.layers[stage] * scores
    if not last:
        passes += layers  # see `step`: the backward pass begins with the stage's forward pass
    return passes * work.tokens / strategy.model_parallel


def _communication(plan: Plan, where: Coordinate, work: Work, device: Device) -> float:
    mesh = Mesh(plan.strategy, Mesh(plan.strategy).rank_at(*where))
    sizes = {
        "model": mesh.model_group(),
        "key_value": mesh.key_value_group(plan.config.kv_heads),
        "data": mesh.data_group(),
        "world": mesh.world(),
        "tied": mesh.stage_pair(0, plan.strategy.pipeline_stage - 1),
        "pipeline": mesh.stage_pair(0, min(1, plan.strategy.pipeline_stage - 1)),
    }
    seconds = 0.0
    for link, size in predicted(plan, where, work).bytes.items():
        ranks = sizes[link[1]]
        nodes = {rank // device.devices_per_node for rank in ranks}
        bandwidth = device.node_bandwidth if len(nodes) == 1 else device.network_bandwidth
        seconds += size * _share_on_wire(link, len(ranks)) / bandwidth
    return seconds


def _share_on_wire(link: Link, ranks: int) -> float:
    """Bytes that a rank sends for each byte of a collective, by the ring algorithms (arXiv:2104.04473, section 3.1)."""
    operation, _ = link
    if operation in {"send", "receive", "exchange"}:
        return 0.5 if operation == "exchange" else 1.0  # an exchange uses both directions at once
    ring = (ranks - 1) / ranks
    return 2 * ring if operation == "all_reduce" else ring
