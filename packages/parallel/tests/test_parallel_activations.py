"""The estimate of activations against MindSpore's own statistics; all cases: `scripts/activations.py`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor


def test_activations_are_within_what_is_promised():
    from activations import TOLERANCE, Case, fused, measured, predicted

    # the plain operations keep everything; what is installed for this device computes layers again
    chosen = ((Case(2, 8), "composed"), (Case(2, 8, {"recompute": "full"}), "cpu"))
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda one: measured(*one), chosen))
    for (case, operations), (theirs,) in zip(chosen, found, strict=True):
        (ours,) = predicted(case, fused(operations))
        assert abs(ours / theirs - 1) < TOLERANCE, f"{operations}, {case}: {ours:.1f} predicted, {theirs} measured"
