"""A small core of `scripts/all.py`: jobs of two processes train as one process does, and send what was predicted.

Every rank checks by itself that its parameters, gradients, optimizer state and traffic are those of the estimate.
"""

from __future__ import annotations

import pytest


@pytest.mark.usefixtures("graph_mode")
def test_two_processes_train_as_one(tmp_path, port):
    from parity import TOLERANCE, deviations, run
    from parity_job import Case

    cases = [
        Case(
            "tensor",
            {"model_parallel": 2, "use_seq_parallel": True, "micro_batch_num": 2},
            n_kv_heads=1,
            num_layers=1,
            steps=5,
            operations="cpu",
        ),
        # the fused update writes unseen by its graph
        Case(
            "zero",
            {"data_parallel": 2, "optimizer_shard": True},
            num_layers=1,
            n_kv_heads=1,
            steps=5,
            operations="cpu",
        ),
        Case("pipeline", {"pipeline_stage": 2, "micro_batch_num": 4}, num_layers=2, n_kv_heads=1, tied=True, steps=5),
    ]
    run(cases, 2, tmp_path, port)
    for case in cases:
        for what, deviation in deviations(case, tmp_path).items():
            assert deviation < TOLERANCE, f"{case.name}: {what}"
