"""One forward, one backward: the order in which a pipeline stage computes its micro-batches. Plain Python.

PipeDream-Flush (arXiv:2006.09503), as Megatron-LM runs it: after a warm-up of as many forward passes as there are
stages behind, every forward pass is followed by a backward pass, so at most `stages` micro-batches are in flight.
Sending forwards and receiving backwards over the same border is one action, an exchange: two ranks that both wanted to
send first would wait for each other.
"""

from __future__ import annotations

import enum
from typing import NamedTuple


class Kind(enum.Enum):
    """What a stage does next."""

    FORWARD = enum.auto()
    BACKWARD = enum.auto()
    TO_NEXT = enum.auto()  # send states, receive a gradient, or both
    TO_PREVIOUS = enum.auto()  # send a gradient, receive states, or both


class Action(NamedTuple):
    """One thing to do; computing names its micro-batch in `sent`, which is what it yields."""

    kind: Kind
    sent: int | None = None
    received: int | None = None


def one_forward_one_backward(stage: int, stages: int, micro_batches: int) -> tuple[Action, ...]:
    """The actions of one stage in one step."""
    first, last = stage == 0, stage == stages - 1
    warm_up = min(stages - 1 - stage, micro_batches)
    actions: list[Action] = []

    def next_stage(sent: int | None, received: int | None) -> None:
        if not last:
            actions.append(Action(Kind.TO_NEXT, sent, received))

    def previous_stage(sent: int | None, received: int | None) -> None:
        if not first and (sent is not None or received is not None):
            actions.append(Action(Kind.TO_PREVIOUS, sent, received))

    for micro in range(warm_up):
        previous_stage(None, micro)
        actions.append(Action(Kind.FORWARD, micro))
        next_stage(micro, None)
    if warm_up < micro_batches:
        previous_stage(None, warm_up)
    for micro in range(micro_batches - warm_up):
        ahead = micro + warm_up
        actions.append(Action(Kind.FORWARD, ahead))
        next_stage(ahead, micro)
        actions.append(Action(Kind.BACKWARD, micro))
        previous_stage(micro, ahead + 1 if ahead + 1 < micro_batches else None)
    for micro in range(micro_batches - warm_up, micro_batches):
        next_stage(None, micro)
        actions.append(Action(Kind.BACKWARD, micro))
        previous_stage(micro, None)
    return tuple(actions)


def in_flight(stage: int, stages: int, micro_batches: int) -> int:
    """Micro-batches whose states a stage keeps at most at one time."""
    return min(stages - stage, micro_batches)


def bubble(stages: int, micro_batches: int) -> float:
    """Share of a step in which a stage waits, for equal stages: (p - 1) / (m + p - 1) (arXiv:2104.04473, 2.2)."""
    return (stages - 1) / (micro_batches + stages - 1)
