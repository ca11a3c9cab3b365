"""What one rank keeps in memory. Plain Python.

Parameters, gradients and optimizer state are counted exactly as `ParallelStep` allocates them. Activations are what the
composed operations of `codellama_model` keep for the backward pass of one micro-batch, term by term.

Shapes: T tokens of a micro-batch, T' of them between the matrices (T / R in sequence parallel), R model-parallel ranks,
H hidden, S sequence, Q query numbers, K key/value numbers, F feed-forward numbers of a rank, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from codellama_parallel.buckets import gradient_buckets
from codellama_parallel.mesh import Coordinate
from codellama_parallel.plan import Plan
from codellama_parallel.schedule import in_flight

FLOAT32 = 4  # bytes
_STEP_BYTES = FLOAT32  # AdamW's counter
_TOTALS_BYTES = 2 * FLOAT32  # sum of the loss and number of tokens


@dataclass(frozen=True)
class Work:
    """What one data-parallel rank computes at a time.

    Args:
        rows: of a micro-batch.
        seq_length: S.
        parameter_bytes: of a weight: 4 in float32, 2 in float16 and bfloat16.
        activation_bytes: of a number between the operations.
    """

    rows: int
    seq_length: int
    parameter_bytes: int = FLOAT32
    activation_bytes: int = FLOAT32

    @property
    def tokens(self) -> int:
        """Of a micro-batch, T."""
        return self.rows * self.seq_length


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank. `buffers`: what collectives and the border of a pipeline stage need at most at one time."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    buffers: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.gradients + self.optimizer + self.activations + self.buffers


def memory(plan: Plan, where: Coordinate, work: Work) -> Memory:
    """The memory of the rank at this coordinate."""
    whole = {name: math.prod(plan.local_shape(name, where)) for name in plan.local_names(where)}
    owned = {name: size // plan.optimizer_parts(name) for name, size in whole.items()}
    masters = [owned[name] for name in whole if plan.optimizer_parts(name) > 1]  # the rows that a copy updates
    return Memory(
        parameters=sum(whole.values()) * work.parameter_bytes,
        gradients=sum(whole.values()) * FLOAT32 + _TOTALS_BYTES,
        optimizer=(2 * sum(owned.values()) + sum(masters)) * FLOAT32 + _STEP_BYTES,
        activations=activations(plan, where, work),
        buffers=_buffers(plan, where, work, whole),
    )


def _buffers(plan: Plan, where: Coordinate, work: Work, whole: dict[str, int]) -> int:
    strategy = plan.strategy
    border = work.tokens // strategy.sequence_parts * plan.config.hidden_size * work.activation_bytes
    states = 0 if where.pipeline == 0 else in_flight(where.pipeline, strategy.pipeline_stage, strategy.micro_batch_num)
    buckets = [sum(whole[name] for name in bucket.names) for bucket in gradient_buckets(plan, where)]
    # a bucket is laid out once and its sum arrives beside it
    return border * states + 2 * FLOAT32 * max(buckets, default=0)


def activations(plan: Plan, where: Coordinate, work: Work) -> int:
    """Bytes that one micro-batch's backward pass finds in memory at its fullest moment."""
    config, strategy = plan.config, plan.strategy
    ranks = strategy.model_parallel
    tokens, between = work.tokens, work.tokens // strategy.sequence_parts
    hidden = config.hidden_size
    scores = tokens * work.seq_length * (config.num_heads // ranks)
    layer = _layer(plan, tokens, between) + scores
    layers = plan.layers[where.pipeline]
    if strategy.recompute == "full":
        kept = layers * between * hidden + layer
    elif strategy.recompute == "selective":
        kept = layers * (layer - scores) + scores
    else:
        kept = layers * layer
    head = 0
    if where.pipeline == strategy.pipeline_stage - 1:
        # the norm's input, its output on all tokens, and logits, their exponentials and their gradient
        head = 2 * between * hidden + tokens * hidden + 3 * tokens * (config.vocab_size // ranks)
    return (kept + head) * work.activation_bytes


def _layer(plan: Plan, tokens: int, between: int) -> int:
    """Numbers that one decoder layer keeps, the scores of attention apart."""
    config, ranks = plan.config, plan.strategy.model_parallel
    query = config.num_heads * config.head_size // ranks
    key_value = max(1, config.kv_heads // ranks) * config.head_size
    ffn = config.intermediate_size // ranks
    norms = 2 * (2 * between + tokens) * config.hidden_size  # input, normalised input; weighted and entered
    attention = tokens * (2 * query + 2 * key_value)  # rotated query and key, value; the mixed values
    feed_forward = 4 * tokens * ffn  # gate, up, silu of the gate, their product
    return norms + attention + feed_forward
