"""Makes `training.npz`: losses and gradient norms of 50 steps of transformers with torch's AdamW, and of peft's LoRA.

pip install torch==2.13.0 transformers==5.24.0 peft 'numpy<2'
PYTHONPATH=packages/model/src:packages/ckpt/src python packages/app/tests/goldens/make_training_goldens.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import peft
import torch
import training_case as case
import transformers
from codellama_ckpt import to_hugging_face
from codellama_model.config import LlamaConfig

HERE = Path(__file__).parent
PEFT_NAMES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wv": "self_attn.v_proj",
    "feed_forward.w2": "mlp.down_proj",
}


def network() -> transformers.LlamaForCausalLM:
    config = LlamaConfig(**case.MODEL)
    theirs = transformers.LlamaConfig(**config.to_hugging_face(), attn_implementation="eager")
    model = transformers.LlamaForCausalLM(theirs).to(torch.float32)
    tree = case.weights(config.parameter_shapes())
    model.load_state_dict({to_hugging_face(name): torch.tensor(value) for name, value in tree.items()})
    return model


def train(model: torch.nn.Module, peak: float) -> tuple[list[float], list[float]]:
    """Losses and norms before clipping; the loss is the mean over all tokens under loss of the step."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": case.WEIGHT_DECAY},
        {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95), eps=1e-8)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, case.WARMUP_STEPS, case.STEPS)
    losses, norms = [], []
    for batch in case.batches():
        schedule.step()  # before the update: the first step has a rate above 0
        logits = model(input_ids=torch.tensor(batch["input_ids"][:, :-1].astype(np.int64))).logits
        labels = torch.tensor(batch["labels"][:, 1:].astype(np.int64))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(trained, case.MAX_GRAD_NORM).item())
        optimizer.step()
        losses.append(loss.item())
    return losses, norms


def main() -> None:
    torch.manual_seed(0)
    losses, norms = train(network(), case.LEARNING_RATE)

    settings = peft.LoraConfig(
        r=case.LORA["rank"],
        lora_alpha=case.LORA["alpha"],
        target_modules=[name.rsplit(".", 1)[-1] for name in PEFT_NAMES.values()],
        task_type="CAUSAL_LM",
    )
    adapted = peft.get_peft_model(network(), settings)
    state = dict(adapted.named_parameters())
    tree = case.adapters()
    for name, value in tree.items():
        stem, part = name.rsplit(".", 1)
        layer, matrix = stem.removeprefix("model.layers.").split(".", 1)
        side = {"lora_a": "lora_A", "lora_b": "lora_B"}[part]
        theirs = f"base_model.model.model.layers.{layer}.{PEFT_NAMES[matrix]}.{side}.default.weight"
        state[theirs].data = torch.tensor(value)
    assert sum(p.requires_grad for p in adapted.parameters()) == len(tree)
    lora_losses, lora_norms = train(adapted, case.LORA_LEARNING_RATE)

    np.savez_compressed(
        HERE / "training.npz", losses=losses, norms=norms, lora_losses=lora_losses, lora_norms=lora_norms
    )
    adapted.save_pretrained(HERE / "peft_adapter")
    (HERE / "peft_adapter" / "README.md").unlink(missing_ok=True)
    ids = torch.tensor(case.batches()[0]["input_ids"].astype(np.int64))
    with torch.no_grad():
        np.savez_compressed(HERE / "peft_logits.npz", logits=adapted(input_ids=ids).logits.numpy())
    versions = {one.__name__: one.__version__ for one in (torch, transformers, peft, np)}
    (HERE / "training_versions.json").write_text(json.dumps(versions, indent=2) + "\n")
    print(losses[0], losses[-1], norms[0], norms[-1], lora_losses[0], lora_losses[-1], lora_norms[0], lora_norms[-1])


if __name__ == "__main__":
    main()
