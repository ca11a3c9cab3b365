"""Configurations: published sizes, refusals by name, Hugging Face's spelling, no MindSpore needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from codellama_model.config import PRESETS, ConfigError, LlamaConfig, preset

DATA = Path(os.environ.get("CODELLAMA_TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))

# Parameters of the published checkpoints, counted from their tensors' shapes on Hugging Face.
PUBLISHED = {
    "codellama_7b": 6_738_546_688,
    "codellama_7b_python": 6_738_415_616,
    "codellama_13b_instruct": 13_016_028_160,
    "codellama_34b": 33_743_970_304,
    "codellama_34b_python": 33_743_970_304,
}


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_presets_have_the_published_number_of_parameters(name, count):
    assert preset(name).num_parameters() == count


def test_every_size_comes_as_base_python_and_instruct():
    for size in ("7b", "13b", "34b"):
        for variant in ("", "_python", "_instruct"):
            config = preset(f"codellama_{size}{variant}")
            infilling = size != "34b" and variant != "_python"
            assert config.vocab_size == (32016 if infilling else 32000)
            assert config.theta == 1e6 and config.max_position_embedding == 16384


def test_the_tiny_preset_is_small_and_grouped():
    tiny = preset("codellama_tiny")
    assert 5e6 < tiny.num_parameters() < 15e6
    assert tiny.kv_heads < tiny.num_heads


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"hidden_size": 100, "num_heads": 3}, "num_heads 3 does not divide hidden_size 100"),
        ({"num_heads": 32, "n_kv_heads": 5}, "n_kv_heads 5 does not divide num_heads 32"),
        ({"num_layers": 0}, "num_layers"),
        ({"vocab_size": 32000.0}, "vocab_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"theta": float("inf")}, "theta"),
        ({"head_dim": 7}, "head_dim"),
        ({"eos_token_id": 32000}, "eos_token_id"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"num_layer": 3}, "unknown key 'num_layer'"),
    ],
)
def test_impossible_and_unknown_values_are_named(keys, named):
    with pytest.raises(ConfigError, match=named):
        LlamaConfig.from_dict(keys)


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(ConfigError, match="codellama_34b_python"):
        preset("codellama_3b")


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_hugging_face_and_dict_round_trips(name):
    config = preset(name)
    again = LlamaConfig.from_hugging_face(config.to_hugging_face())
    assert again.parameter_shapes() == config.parameter_shapes() and again.theta == config.theta
    assert LlamaConfig.from_dict(config.to_dict()) == config


def test_the_published_7b_configuration_is_the_7b_preset():
    path = DATA / "codellama-7b-hf" / "config.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    config = LlamaConfig.from_hugging_face(json.loads(path.read_text()))
    assert config == preset("codellama_7b")


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"model_type": "mistral"}, "model_type"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type 'linear'"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "rope_type 'llama3'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_what_is_no_code_llama_is_refused(keys, named):
    values = preset("codellama_7b").to_hugging_face()
    values.pop("rope_parameters")
    with pytest.raises(ConfigError, match=named):
        LlamaConfig.from_hugging_face({**values, **keys})


def test_configuration_imports_without_mindspore():
    code = "import sys; sys.modules['mindspore'] = None; import codellama_model; codellama_model.preset('codellama_7b')"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
