"""The name tables: complete, inverse to each other, and deaf to everything else."""

from __future__ import annotations

import pytest
from codellama_ckpt import CheckpointError, to_hugging_face, to_mindformers
from codellama_ckpt.names import are_hugging_face, is_known_extra

# Written out once more, so that a slip in the tables shows.
PAIRS = {
    "model.embed_tokens.weight": "model.tok_embeddings.embedding_weight",
    "model.layers.0.self_attn.q_proj.weight": "model.layers.0.attention.wq.weight",
    "model.layers.0.self_attn.k_proj.weight": "model.layers.0.attention.wk.weight",
    "model.layers.11.self_attn.v_proj.weight": "model.layers.11.attention.wv.weight",
    "model.layers.11.self_attn.o_proj.weight": "model.layers.11.attention.wo.weight",
    "model.layers.47.mlp.gate_proj.weight": "model.layers.47.feed_forward.w1.weight",
    "model.layers.47.mlp.down_proj.weight": "model.layers.47.feed_forward.w2.weight",
    "model.layers.47.mlp.up_proj.weight": "model.layers.47.feed_forward.w3.weight",
    "model.layers.100.input_layernorm.weight": "model.layers.100.attention_norm.weight",
    "model.layers.100.post_attention_layernorm.weight": "model.layers.100.ffn_norm.weight",
    "model.norm.weight": "model.norm_out.weight",
    "lm_head.weight": "lm_head.weight",
}


@pytest.mark.parametrize(("hugging_face", "mindformers"), PAIRS.items())
def test_names_translate_both_ways(hugging_face: str, mindformers: str) -> None:
    assert to_mindformers(hugging_face) == mindformers
    assert to_hugging_face(mindformers) == hugging_face


@pytest.mark.parametrize(
    "name",
    [
        "",
        "weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers..self_attn.q_proj.weight",
        "model.layers.01.self_attn.q_proj.weight",
        "model.layers.-1.self_attn.q_proj.weight",
        "model.layers.٣.self_attn.q_proj.weight",
        "model.layers.0.self_attn.q_proj.weight\n",
        "layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.0.attention.wq.weight",
    ],
)
def test_unknown_name_is_refused_by_name(name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        to_mindformers(name)
    assert repr(name) in str(caught.value) or not name.isprintable()
    assert "\n" not in str(caught.value)


def test_hugging_face_name_is_no_mindformers_name() -> None:
    with pytest.raises(CheckpointError, match="MindFormers"):
        to_hugging_face("model.norm.weight")


def test_known_extras() -> None:
    assert is_known_extra("model.layers.3.self_attn.rotary_emb.inv_freq")
    assert is_known_extra("model.rotary_emb.inv_freq")
    assert not is_known_extra("model.layers.3.self_attn.q_proj.weight")
    assert not is_known_extra("model.norotary_emb.inv_freq")


def test_which_spelling_a_file_uses() -> None:
    assert are_hugging_face(["lm_head.weight", "model.norm.weight"])
    assert are_hugging_face(["model.layers.0.mlp.up_proj.weight"])
    assert not are_hugging_face(["lm_head.weight"])
    assert not are_hugging_face(PAIRS.values())
