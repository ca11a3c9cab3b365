"""Parameter names: Hugging Face's Llama spelling <-> MindFormers', as tables. No tensor changes its shape or its order.

Hugging Face's layout of `q_proj` and `k_proj` is the half-split rotary layout that MindFormers' Llama uses too.
Source: MindFormers release 1.2, `convert_weight.py` of the llama model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from codellama_ckpt.errors import CheckpointError

# Hugging Face -> MindFormers
_TOP = {
    "model.embed_tokens.weight": "model.tok_embeddings.embedding_weight",
    "model.norm.weight": "model.norm_out.weight",
    "lm_head.weight": "lm_head.weight",
}
# What follows "model.layers.N." in both.
_LAYER = {
    "self_attn.q_proj.weight": "attention.wq.weight",
    "self_attn.k_proj.weight": "attention.wk.weight",
    "self_attn.v_proj.weight": "attention.wv.weight",
    "self_attn.o_proj.weight": "attention.wo.weight",
    "mlp.gate_proj.weight": "feed_forward.w1.weight",
    "mlp.down_proj.weight": "feed_forward.w2.weight",
    "mlp.up_proj.weight": "feed_forward.w3.weight",
    "input_layernorm.weight": "attention_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
}
# Buffers that older releases of transformers saved beside the weights: they follow from the configuration.
_EXTRAS = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")

# What MindSpore's training saves beside the weights: optimizer moments by prefix, counters by name.
_TRAINING_PREFIXES = ("adam_m.", "adam_v.", "accu_grads.", "moments.", "moment1.", "moment2.")
_TRAINING_NAMES = frozenset(
    (
        "beta1_power",
        "beta2_power",
        "current_iterator_step",
        "epoch_num",
        "global_step",
        "last_overflow_iterator_step",
        "learning_rate",
        "loss_scale",
        "scale_sense",
        "step_num",
    )
)

_TOP_BACK = {mindformers: hugging_face for hugging_face, mindformers in _TOP.items()}
_LAYER_BACK = {mindformers: hugging_face for hugging_face, mindformers in _LAYER.items()}
_IN_LAYER = re.compile(r"(model\.layers\.(?:0|[1-9][0-9]*)\.)(.+)")


def to_mindformers(hf_name: str) -> str:
    """Hugging Face's name of a Llama parameter -> MindFormers'; CheckpointError for any other name."""
    return _translate(hf_name, _TOP, _LAYER, "Hugging Face")


def to_hugging_face(ms_name: str) -> str:
    """MindFormers' name of a Llama parameter -> Hugging Face's; CheckpointError for any other name."""
    return _translate(ms_name, _TOP_BACK, _LAYER_BACK, "MindFormers")


def is_known_extra(hf_name: str) -> bool:
    """Whether a tensor of a Hugging Face file is a known buffer that is no parameter and may be dropped."""
    return any(hf_name == extra or hf_name.endswith("." + extra) for extra in _EXTRAS)


def is_training_extra(ms_name: str) -> bool:
    """Whether a tensor of MindSpore's checkpoint belongs to the training, not to the network, and may be dropped."""
    return ms_name in _TRAINING_NAMES or ms_name.startswith(_TRAINING_PREFIXES)


def are_hugging_face(names: Iterable[str]) -> bool:
    """Whether any of the names is written in Hugging Face's way only."""
    return any((name in _TOP and name not in _TOP_BACK) or _layer_suffix(name) in _LAYER for name in names)


def _translate(name: str, top: dict[str, str], layer: dict[str, str], whose: str) -> str:
    if name in top:
        return top[name]
    match = _IN_LAYER.fullmatch(name)
    if match and match[2] in layer:
        return match[1] + layer[match[2]]
    raise CheckpointError(f"{name!r} is not {whose}'s name of any parameter of a Llama network")


def _layer_suffix(name: str) -> str | None:
    match = _IN_LAYER.fullmatch(name)
    return match[2] if match else None
