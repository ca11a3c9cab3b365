"""Fifty steps against transformers with torch's AdamW, and against peft's LoRA (goldens/make_training_goldens.py)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

GOLDENS = Path(__file__).parent / "goldens"
sys.path.insert(0, str(GOLDENS))
import training_case as case  # noqa: E402

STEP_TOLERANCE = 1e-4  # relative, on losses and norms: float32 on either side, rounding that fifty updates carry on


def run(micro_batches: int, lora: bool, loss_scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    import mindspore as ms
    from codellama_app.config import ScheduleConfig
    from codellama_app.lora import add_adapters
    from codellama_app.schedule import learning_rate
    from codellama_app.training_step import TrainingStep
    from codellama_model import AdamW, CausalLMLoss, LlamaConfig, LlamaForCausalLM

    ms.set_context(mode=ms.GRAPH_MODE)
    config = LlamaConfig(**case.MODEL)
    network = LlamaForCausalLM(config)
    tree = case.weights(config.parameter_shapes())
    for parameter in network.get_parameters():
        parameter.set_data(ms.Tensor(tree[parameter.name]))
    if lora:
        add_adapters(network, case.adapters(), case.LORA["alpha"] / case.LORA["rank"])
    optimizer = AdamW(network.trainable_params(), weight_decay=case.WEIGHT_DECAY)
    step = TrainingStep(CausalLMLoss(network), optimizer, case.MAX_GRAD_NORM, micro_batches)
    schedule = ScheduleConfig(type="cosine", warmup_steps=case.WARMUP_STEPS)
    peak = case.LORA_LEARNING_RATE if lora else case.LEARNING_RATE
    results = [
        step(learning_rate(number, case.STEPS, peak, schedule), loss_scale, batch)
        for number, batch in enumerate(case.batches(), start=1)
    ]
    return np.array([one.loss for one in results]), np.array([one.grad_norm for one in results])


@pytest.mark.parametrize(
    ("micro_batches", "lora", "loss_scale"),
    [(1, False, 1.0), (2, False, 65536.0), (1, True, 1.0)],
    ids=["whole batch", "two micro-batches, scaled loss", "LoRA"],
)
def test_fifty_losses_and_norms_equal_those_of_torch(micro_batches, lora, loss_scale):
    golden = np.load(GOLDENS / "training.npz")
    losses, norms = run(micro_batches, lora, loss_scale)
    prefix = "lora_" if lora else ""
    np.testing.assert_allclose(losses, golden[f"{prefix}losses"], rtol=STEP_TOLERANCE)
    np.testing.assert_allclose(norms, golden[f"{prefix}norms"], rtol=STEP_TOLERANCE)
