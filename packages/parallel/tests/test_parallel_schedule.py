"""One forward, one backward: what the schedule promises, found by letting the stages wait for each other."""

from __future__ import annotations

import pytest
from codellama_parallel.schedule import Kind, bubble, in_flight, one_forward_one_backward

CASES = [(stages, micro) for stages in (1, 2, 3, 4, 6) for micro in (1, 2, 3, 5, 8)]


@pytest.mark.parametrize(("stages", "micro_batches"), CASES)
def test_stages_meet_at_every_border_and_compute_everything_once(stages, micro_batches):
    """Runs the stages against each other: a border is crossed only when both sides stand at it, with equal contents."""
    left = [list(one_forward_one_backward(stage, stages, micro_batches)) for stage in range(stages)]
    done = [{Kind.FORWARD: [], Kind.BACKWARD: []} for _ in range(stages)]
    held = [set() for _ in range(stages)]  # whose states a stage has
    gradients = [set() for _ in range(stages)]
    while any(left):
        moved = False
        for stage in range(stages):
            if not left[stage]:
                continue
            action = left[stage][0]
            if action.kind is Kind.FORWARD:
                assert stage == 0 or action.sent in held[stage]
                held[stage].add(action.sent)
                assert len(held[stage]) <= in_flight(stage, stages, micro_batches) <= stages
            elif action.kind is Kind.BACKWARD:
                assert stage == stages - 1 or action.sent in gradients[stage]
                held[stage].remove(action.sent)
            elif action.kind is Kind.TO_NEXT:
                if not left[stage + 1]:
                    continue
                other = left[stage + 1][0]
                if other.kind is not Kind.TO_PREVIOUS:
                    continue
                assert (other.sent, other.received) == (action.received, action.sent)
                if action.sent is not None:
                    assert action.sent in done[stage][Kind.FORWARD]
                    held[stage + 1].add(action.sent)
                if action.received is not None:
                    assert action.received in done[stage + 1][Kind.BACKWARD]
                    gradients[stage].add(action.received)
                left[stage + 1].pop(0)
            else:
                continue  # the stage before moves both
            if action.kind in done[stage]:
                done[stage][action.kind].append(action.sent)
            left[stage].pop(0)
            moved = True
        assert moved, "the stages wait for each other"
    for one in done:
        assert one[Kind.FORWARD] == one[Kind.BACKWARD] == list(range(micro_batches))


def test_the_bubble_is_that_of_the_paper():
    assert bubble(1, 8) == 0
    assert bubble(4, 1) == 3 / 4
    assert bubble(2, 128) == 1 / 129
