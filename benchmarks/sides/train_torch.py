"""The peer's side of the training benchmark: torch and transformers, scaled-dot-product attention, float32.

AdamW is torch's fused or its foreach form, whichever takes a step in less time here.
"""

import numpy as np
import torch
import train_protocol as protocol
import transformers
from machine import best_seconds, torch_product_rate
from torch.nn import functional


def make(size: dict[str, int]) -> tuple[protocol.Step, str]:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=size["vocab_size"],
        hidden_size=size["hidden_size"],
        num_hidden_layers=size["num_layers"],
        num_attention_heads=size["num_heads"],
        num_key_value_heads=size["n_kv_heads"],
        intermediate_size=size["intermediate_size"],
        max_position_embeddings=size["sequence"],
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        use_cache=False,
        attn_implementation="sdpa",
    )
    network = transformers.LlamaForCausalLM(config).train()
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": protocol.WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    seconds = {kind: update_seconds(kind) for kind in ("fused", "foreach")}
    kind = min(seconds, key=seconds.__getitem__)
    optimizer = torch.optim.AdamW(groups, lr=protocol.LEARNING_RATE, betas=(0.9, 0.95), eps=1e-8, **{kind: True})

    def run(ids: np.ndarray) -> float:
        tokens = torch.from_numpy(ids).long()
        logits = network(input_ids=tokens[:, :-1]).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, protocol.MAX_GRAD_NORM, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    about = f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads"
    return run, f"{about}, {kind} AdamW"


def update_seconds(kind: str) -> float:
    """An update of four million parameters, at best."""
    parameter = torch.nn.Parameter(torch.zeros(2048, 2048))
    parameter.grad = torch.ones_like(parameter)
    return best_seconds(torch.optim.AdamW([parameter], **{kind: True}).step)


if __name__ == "__main__":
    protocol.run(make, {"product_rate": torch_product_rate})
