"""What one rank keeps in memory. Plain Python.

Parameters, gradients and optimizer state are counted exactly as `ParallelStep` allocates them. Activations are what the
operations keep for the backward pass of one micro-batch, term by term, and what the fullest moment of that pass needs
besides; `scripts/activations.py` holds them against MindSpore's own statistics.

Shapes: T tokens of a micro-batch, T' of them between the matrices (T / R in sequence parallel), R model-parallel ranks,
H hidden, S sequence, Q query numbers, K key/value numbers, F feed-forward numbers of a rank, V vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter
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
        training: False for generation: `rows` prompts at a time, of `seq_length` tokens with what follows them.
        fused: the operations are those of codellama-kernels; False for the composed ones of `codellama_model`.
        cache_bytes: of a number in the key/value cache, which `parallelize` makes float32.
    """

    rows: int
    seq_length: int
    parameter_bytes: int = FLOAT32
    activation_bytes: int = FLOAT32
    training: bool = True
    fused: bool = False
    cache_bytes: int = FLOAT32

    @property
    def tokens(self) -> int:
        """Of a micro-batch, T."""
        return self.rows * self.seq_length


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank.

    `activations` are those of the fullest moment of a backward pass, with the states that wait at the border of a
    pipeline stage; `buffers` what the largest bucket of gradients or parameters needs on its way. These two are never
    there at the same time: the buckets go when all micro-batches are through. `cache` holds the keys and values of
    generation.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    buffers: int
    cache: int = 0

    @property
    def total(self) -> int:
        """The most that is there at one time."""
        kept = self.parameters + self.gradients + self.optimizer + self.cache
        return kept + max(self.activations, self.buffers)


def memory(plan: Plan, where: Coordinate, work: Work) -> Memory:
    """The memory of the rank at this coordinate."""
    whole = {name: math.prod(plan.local_shape(name, where)) for name in plan.local_names(where)}
    if not work.training:
        return Memory(
            parameters=sum(whole.values()) * work.parameter_bytes,
            gradients=0,
            optimizer=0,
            activations=_prompt(plan, work),
            buffers=0,
            cache=_cache(plan, where, work),
        )
    owned = {name: size // plan.optimizer_parts(name) for name, size in whole.items()}
    return Memory(
        parameters=sum(whole.values()) * work.parameter_bytes,
        gradients=sum(whole.values()) * FLOAT32 + _TOTALS_BYTES,
        optimizer=(2 * sum(owned.values()) + _windows(plan, where)) * FLOAT32 + _STEP_BYTES,
        activations=activations(plan, where, work) + _border_states(plan, where, work),
        buffers=_buffers(plan, where, whole),
    )


def _windows(plan: Plan, where: Coordinate) -> int:
    """Numbers of the windows in which ZeRO-1 updates the rows of a bucket: buckets share those of one shape."""
    shapes: Counter[tuple[int, ...]] = Counter()
    for bucket in gradient_buckets(plan, where):
        if bucket.operation == "reduce_scatter":
            boxes = (plan.optimizer_box(name, where) for name in bucket.names)
            shapes |= Counter(tuple(end - begin for begin, end in box) for box in boxes if box is not None)
    return sum(math.prod(shape) * count for shape, count in shapes.items())


def _border_states(plan: Plan, where: Coordinate, work: Work) -> int:
    strategy = plan.strategy
    border = work.tokens // strategy.sequence_parts * plan.config.hidden_size * work.activation_bytes
    states = 0 if where.pipeline == 0 else in_flight(where.pipeline, strategy.pipeline_stage, strategy.micro_batch_num)
    return border * states


def _buffers(plan: Plan, where: Coordinate, whole: dict[str, int]) -> int:
    """Of the largest bucket, which is laid out once and whose sum arrives beside it.

    On CPU, reduce-scatter and all-gather are sums of the whole bucket, and need the same; elsewhere they need less.
    """
    buckets = [sum(whole[name] for name in bucket.names) for bucket in gradient_buckets(plan, where)]
    return 2 * FLOAT32 * max(buckets, default=0)


def _cache(plan: Plan, where: Coordinate, work: Work) -> int:
    """Keys and values of every position and a spare one, as `codellama_model.cache` allocates them."""
    config = plan.config
    heads = max(1, config.kv_heads // plan.strategy.model_parallel)
    position = 2 * plan.layers[where.pipeline] * heads * config.head_size * work.cache_bytes
    return work.rows * (work.seq_length + 1) * position


def _prompt(plan: Plan, work: Work) -> int:
    """A prompt as long as the cache on its way through one layer, at the fuller of its branches, and the logits."""
    config, ranks = plan.config, plan.strategy.model_parallel
    tokens = work.tokens
    query, key_value = _heads_widths(plan)
    scores = 2 * tokens * (work.seq_length + 1) * (config.num_heads // ranks)  # before and after the softmax
    attention = tokens * (2 * query + 2 * key_value) + scores
    feed_forward = 3 * tokens * config.intermediate_size // ranks  # gate, up, their product
    branch = 2 * tokens * config.hidden_size + max(attention, feed_forward)  # its input, plain and normalised
    return max(branch, work.rows * config.vocab_size) * work.activation_bytes


def activations(plan: Plan, where: Coordinate, work: Work) -> int:
    """Bytes that one micro-batch's backward pass finds in memory at its fullest moment."""
    strategy, layers = plan.strategy, plan.layers[where.pipeline]
    last = where.pipeline == strategy.pipeline_stage - 1
    parts = _fused(plan, work) if work.fused else _composed(plan, work)
    layer = 2 * parts.norm + parts.attention + parts.scores + parts.feed_forward
    if strategy.recompute == "full":
        kept = 2 * layers * parts.input
        inner = parts.norm - parts.input
        attending = inner + parts.attention + parts.scores + parts.attention_gradient
        feeding = inner + parts.feed_forward + parts.computed_again + parts.feed_forward_gradient
    else:
        kept = layers * layer
        attending = parts.attention_gradient - parts.feed_forward - parts.norm  # the other branch is through by then
        feeding = parts.feed_forward_gradient
        if strategy.recompute == "selective":
            kept -= layers * parts.scores
            attending += parts.scores
    return (kept + max(attending, feeding, parts.head if last else 0)) * work.activation_bytes


@dataclass(frozen=True)
class _Parts:
    """Numbers that the parts of the network keep, and that their gradients need besides at most at one time."""

    input: int  # of a branch, kept where the branch is computed again
    norm: int  # of a branch, its input included
    attention: int  # the scores apart
    scores: int
    feed_forward: int
    head: int  # all that head and loss hold before the last layer's gradient
    attention_gradient: int
    feed_forward_gradient: int
    computed_again: int  # kept by a recomputed feed-forward branch in addition


def _composed(plan: Plan, work: Work) -> _Parts:
    tokens, between, hidden, ffn = _extents(plan, work)
    query, key_value = _heads_widths(plan)
    scores = tokens * work.seq_length * (plan.config.num_heads // plan.strategy.model_parallel)
    # the input, and twice it: the gradient of its square, which depends on nothing else and is computed at once
    branch_input = 2 * between * hidden
    norm = branch_input + between * hidden + tokens * hidden  # normalised; weighted and entered
    vocabulary = plan.config.vocab_size // plan.strategy.model_parallel
    return _Parts(
        input=branch_input,
        norm=norm,
        attention=tokens * (2 * query + 2 * key_value),  # rotated query and key, value; the mixed values
        scores=scores,
        feed_forward=5 * tokens * ffn,  # gate, its sigmoid, its silu, up, the product
        head=norm + 3 * tokens * vocabulary,  # logits, their exponentials and their gradient
        attention_gradient=2 * scores,  # after and before the softmax
        feed_forward_gradient=3 * tokens * ffn,  # of the product, of gate and up
        computed_again=0,
    )


def _fused(plan: Plan, work: Work) -> _Parts:
    tokens, between, hidden, ffn = _extents(plan, work)
    query, key_value = _heads_widths(plan)
    heads = plan.config.num_heads // plan.strategy.model_parallel
    branch_input = between * hidden + between  # and a number a token, of the norm
    # What is normalised is computed again, but not where it is gathered on its way into the matrices.
    entered = between * hidden + tokens * hidden if between < tokens else 0
    return _Parts(
        input=branch_input,
        norm=branch_input + entered,
        attention=tokens * (2 * query + 2 * key_value + heads),  # and a number a token and head
        scores=0,
        feed_forward=2 * tokens * ffn,  # gate, up
        head=2 * between * hidden + tokens * hidden,  # gradients; the logits are a chunk's, in memory of the kernels
        attention_gradient=tokens * (query + 2 * key_value + hidden),
        feed_forward_gradient=3 * tokens * ffn + tokens * hidden,  # of the product, gate and up; of the input
        # the product and the normalised input, which are not freed between; after a gather they are
        computed_again=0 if entered else tokens * (ffn + hidden),
    )


def _extents(plan: Plan, work: Work) -> tuple[int, int, int, int]:
    """T, T', H and F of one rank."""
    between = work.tokens // plan.strategy.sequence_parts
    ffn = plan.config.intermediate_size // plan.strategy.model_parallel
    return work.tokens, between, plan.config.hidden_size, ffn


def _heads_widths(plan: Plan) -> tuple[int, int]:
    """Numbers of the query and of the key (or value) of one token on one rank."""
    config, ranks = plan.config, plan.strategy.model_parallel
    return config.num_heads * config.head_size // ranks, max(1, config.kv_heads // ranks) * config.head_size
