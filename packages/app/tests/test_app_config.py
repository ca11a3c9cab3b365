"""Run configurations: what ships loads, what is wrong is named, what is saved reads back."""

from __future__ import annotations

from pathlib import Path

import pytest
from codellama_app.config import config_names, load_config
from codellama_model import preset
from codellama_model.config import ConfigError


@pytest.mark.parametrize("name", config_names())
def test_every_shipped_configuration_loads_and_survives_its_own_yaml(name, tmp_path):
    config = load_config(name)
    saved = tmp_path / "config.yaml"
    saved.write_text(config.to_yaml())
    again = load_config(str(saved))
    assert again.llama() == config.llama()
    assert again.to_yaml() == config.to_yaml()


def test_the_tiny_configuration_trains_the_tiny_preset():
    config = load_config("codellama_tiny")
    assert config.llama() == preset("codellama_tiny")
    assert config.dataset.corpus == "stdlib"


def test_overrides_convert_text_by_the_type_of_the_key():
    overrides = [
        ("max_steps", "7"),
        ("optimizer.learning_rate", "1e-4"),
        ("model.num_layers", "3"),
        ("model.theta", "1e4"),
        ("model.tie_word_embeddings", "True"),
        ("dataset.train_dataset_dir", "/rows"),
    ]
    config = load_config("codellama_tiny", overrides)
    assert (config.max_steps, config.optimizer.learning_rate) == (7, 1e-4)
    assert (config.llama().num_layers, config.llama().theta, config.llama().tie_word_embeddings) == (3, 1e4, True)
    assert config.dataset.train_dataset_dir == "/rows"


def test_yaml_without_a_dot_in_its_exponent_is_a_number(tmp_path):
    path = tmp_path / "c.yaml"
    lines = (
        "optimizer: {learning_rate: 1e-4}",
        "model: {preset: codellama_tiny, theta: 1e5}",
        "dataset: {seq_length: 64}",
    )
    path.write_text("\n".join(lines))
    config = load_config(str(path))
    assert config.optimizer.learning_rate == 1e-4
    assert config.llama().theta == 1e5


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("optimizer.lr", "1", "unknown key 'optimizer.lr'; known: learning_rate"),
        ("max_step", "1", "unknown key 'max_step'"),
        ("a.b", "1", "unknown key 'a'"),
        ("max_steps.x", "1", "unknown key 'max_steps.x'"),
        ("max_steps", "many", "max_steps: .* found 'many'"),
        ("max_steps", "0", "max_steps"),
        ("dataset.fim_rate", "1.5", r"dataset\.fim_rate"),
        ("lr_schedule.type", "cosin", r"lr_schedule\.type"),
        ("run_mode", "finetune", "give load_checkpoint"),
        ("load_checkpoint", "x", "needs run_mode finetune"),
        ("model.num_layer", "3", r"unknown key 'model\.num_layer'"),
        ("model.num_layers", "3.5", r"model\.num_layers must be int, found '3\.5'"),
        ("model.num_heads", "7", "num_heads 7 does not divide hidden_size 256"),
        ("model.preset", "codellama_8b", "no preset 'codellama_8b'"),
        ("dataset.seq_length", "4096", r"exceeds model\.max_position_embedding 1024"),
    ],
)
def test_what_is_wrong_is_named(key, value, named):
    with pytest.raises(ConfigError, match=named):
        load_config("codellama_tiny", [(key, value)])


@pytest.mark.parametrize(
    ("content", "named"),
    [(b"a: [", "is no YAML"), (b"- 1\n", "must be a table of keys"), (b"\xff\xfe\xfa", "no UTF-8 text")],
)
def test_a_file_that_is_no_configuration_is_refused(content, named, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=named):
        load_config(str(path))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match="codellama_tiny"):
        load_config(str(Path("codellama_small")))
