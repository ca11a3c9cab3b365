"""Thirty-odd wrong configurations: each refused before anything is loaded, naming key, value and what is allowed."""

from __future__ import annotations

import re

import pytest
from codellama_app.config import load_config
from codellama_model.config import ConfigError

# key, value, the parts that the message must have: the key, what was found, what is allowed
CASES = [
    ("max_steps", "0", ("max_steps", "greater than 0", "found '0'")),
    ("max_steps", "-5", ("max_steps", "greater than 0", "found '-5'")),
    ("max_steps", "1.5", ("max_steps", "integer", "found '1.5'")),
    ("max_steps", "many", ("max_steps", "integer", "found 'many'")),
    ("epochs", "0", ("epochs", "greater than 0", "found '0'")),
    ("save_steps", "0", ("save_steps", "greater than 0", "found '0'")),
    ("save_minutes", "0", ("save_minutes", "greater than 0", "found '0'")),
    ("keep_last", "0", ("keep_last", "greater than 0", "found '0'")),
    ("keep_best", "-1", ("keep_best", "greater than or equal to 0", "found '-1'")),
    ("keep_best", "1", ("keep_best 1", "eval_steps, found None")),
    ("eval_steps", "0", ("eval_steps", "greater than 0", "found '0'")),
    ("seed", "-1", ("seed", "greater than or equal to 0", "found '-1'")),
    ("gradient_accumulation_steps", "0", ("gradient_accumulation_steps", "greater than 0", "found '0'")),
    ("run_mode", "sing", ("run_mode", "'train', 'finetune' or 'predict'", "found 'sing'")),
    ("run_mode", "finetune", ("run_mode finetune", "give load_checkpoint")),
    ("compute_dtype", "int8", ("compute_dtype", "'float32', 'float16' or 'bfloat16'", "found 'int8'")),
    ("recompute", "perhaps", ("recompute", "boolean", "found 'perhaps'")),
    ("z_loss", "-0.1", ("z_loss", "greater than or equal to 0", "found '-0.1'")),
    ("z_loss", "inf", ("z_loss", "finite", "found 'inf'")),
    ("dataset.seq_length", "0", ("dataset.seq_length", "greater than 0", "found '0'")),
    ("dataset.seq_length", "4096", ("dataset.seq_length 4096", "model.max_position_embedding 1024")),
    ("dataset.batch_size", "two", ("dataset.batch_size", "integer", "found 'two'")),
    ("dataset.fim_rate", "1.5", ("dataset.fim_rate", "less than or equal to 1", "found '1.5'")),
    ("dataset.eval_share", "1", ("dataset.eval_share", "less than 1", "found '1'")),
    ("optimizer.learning_rate", "0", ("optimizer.learning_rate", "greater than 0", "found '0'")),
    ("optimizer.learning_rate", "nan", ("optimizer.learning_rate", "finite", "found 'nan'")),
    ("optimizer.beta2", "1", ("optimizer.beta2", "less than 1", "found '1'")),
    ("optimizer.max_grad_norm", "0", ("optimizer.max_grad_norm", "greater than 0", "found '0'")),
    ("optimizer.lr", "1", ("unknown key 'optimizer.lr'", "known: learning_rate, beta1")),
    ("lr_schedule.type", "cosin", ("lr_schedule.type", "'cosine', 'linear' or 'constant'", "found 'cosin'")),
    ("lr_schedule.warmup_ratio", "2", ("lr_schedule.warmup_ratio", "less than or equal to 1", "found '2'")),
    ("lr_schedule.warmup_steps", "9999", ("lr_schedule.warmup_steps 9999", "max_steps 1400")),
    ("loss_scale.factor", "1", ("loss_scale.factor", "greater than 1", "found '1'")),
    ("lora.rank", "0", ("lora.rank", "greater than 0", "found '0'")),
    ("lora.rank", "8", ("lora.rank 8", "run_mode finetune")),
    ("lora.targets", "wq,wz", ("lora.targets", "'wq', 'wk', 'wv', 'wo', 'w1', 'w2' or 'w3'", "found 'wz'")),
    ("lora.adapter_path", "x", ("lora.adapter_path", "lora.rank")),
    ("model.preset", "codellama_8b", ("codellama_8b", "codellama_7b")),
    ("model.preset", "checkpoint", ("model.preset checkpoint", "load_checkpoint None")),
    ("model.num_layers", "3.5", ("model.num_layers", "int", "found '3.5'")),
    ("model.num_heads", "7", ("num_heads 7", "hidden_size 256")),
    ("dataset", "here", ("dataset must be a table of keys", "found 'here'")),
]


@pytest.mark.parametrize(("key", "value", "parts"), CASES, ids=[f"{key}={value}" for key, value, _ in CASES])
def test_a_wrong_value_is_refused_by_name(key, value, parts):
    with pytest.raises(ConfigError) as refused:
        load_config("codellama_tiny", [(key, value)])
    message = str(refused.value)
    for part in parts:
        assert part in message, message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("max_steps: 1\nmax_steps: 2\n", "key 'max_steps' stands twice"),
        ("dataset: {batch_size: 1, batch_size: 2}\nmax_steps: 1\n", "key 'batch_size' stands twice"),
        ("max_steps: true\n", "max_steps must be a number, found True"),
        ("optimizer: {learning_rate: yes}\nmax_steps: 1\n", "optimizer.learning_rate must be a number, found True"),
        ("optimizer:\nmax_steps: 1\n", "optimizer must be a table of keys, found None"),
        ("max_steps: .nan\n", "max_steps: .*finite"),
    ],
)
def test_a_wrong_file_is_refused_by_name(text, named, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(text + "model: {preset: codellama_tiny}\n")
    with pytest.raises(ConfigError) as refused:
        load_config(str(path), [("dataset.seq_length", "64")] if "dataset" not in text else [])
    assert re.search(named, str(refused.value)), refused.value
    assert "\n" not in str(refused.value)
