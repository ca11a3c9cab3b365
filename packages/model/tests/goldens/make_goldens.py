"""Makes the goldens beside this file: transformers' logits, loss and gradients of the cases in `golden_cases.py`.

pip install torch==2.13.0 transformers==5.24.0 'numpy<2'
PYTHONPATH=packages/model/src python packages/model/tests/goldens/make_goldens.py
"""

from __future__ import annotations

import json
from pathlib import Path

import golden_cases as cases
import numpy as np
import torch
import transformers
from codellama_model.config import LlamaConfig

HERE = Path(__file__).parent
LAYER_NAMES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "tok_embeddings.embedding_weight": "embed_tokens.weight",
    "norm_out": "norm",
}


def their_name(name: str) -> str:
    for ours, theirs in LAYER_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def adamw() -> None:
    """Five steps of `torch.optim.AdamW` on a matrix (with decay) and a vector (without)."""
    weights, gradients, rates = cases.adamw_problem()
    parameters = [torch.nn.Parameter(torch.tensor(value)) for value in weights]
    groups = [
        {"params": parameters[:1], "weight_decay": cases.WEIGHT_DECAY},
        {"params": parameters[1:], "weight_decay": 0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    for rate, step in zip(rates, gradients, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = torch.tensor(gradient)
        optimizer.step()
    np.savez_compressed(HERE / "adamw.npz", **{str(i): p.detach().numpy() for i, p in enumerate(parameters)})


def main() -> None:
    adamw()
    ids, labels = cases.batch()
    mask = torch.tensor(np.arange(ids.shape[1]) < np.array(cases.LENGTHS)[:, None])
    for case, keys in cases.CASES.items():
        config = LlamaConfig(**cases.COMMON, **keys)
        theirs = transformers.LlamaConfig(**config.to_hugging_face(), attn_implementation="eager")
        network = transformers.LlamaForCausalLM(theirs).to(torch.float32)
        tree = cases.weights(config.parameter_shapes())
        state = {their_name(name): torch.tensor(value) for name, value in tree.items()}
        missing, unexpected = network.load_state_dict(state, strict=False)
        assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
        network.tie_weights()
        out = network(
            input_ids=torch.tensor(ids.astype(np.int64)),
            attention_mask=mask,
            labels=torch.tensor(labels.astype(np.int64)),
        )
        out.loss.backward()
        gradients = dict(network.named_parameters())
        np.savez_compressed(
            HERE / f"{case}.npz",
            logits=out.logits.detach().numpy(),
            loss=out.loss.detach().numpy(),
            **{f"grad:{name}": gradients[their_name(name)].grad.numpy() for name in tree},
        )
        print(case, out.loss.item())
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__}
    (HERE / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main()
