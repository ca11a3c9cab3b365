"""Adapters: PEFT's own directory read, ours read back, merging equals adapting, what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import training_case as case
from codellama_app.adapters import (
    LORA_KEY,
    AdapterConfig,
    adapter_shapes,
    merge_adapters,
    open_adapters,
    random_adapters,
    read_adapters,
    write_peft,
)
from codellama_app.command import UserError
from codellama_ckpt import open_checkpoint, save_sharded
from codellama_model.config import LlamaConfig

GOLDENS = Path(__file__).parent / "goldens"
LOGITS_TOLERANCE = 2e-4  # absolute, on logits of about 5: float32 on either side
CONFIG = LlamaConfig(**case.MODEL)
SCALE = case.LORA["alpha"] / case.LORA["rank"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "base"
    save_sharded(
        case.weights(CONFIG.parameter_shapes()), folder, metadata={"config": json.dumps(CONFIG.to_hugging_face())}
    )
    return folder


def saved(folder: Path, base: Path) -> Path:
    """Our own kind of file, with the adapters that peft started from."""
    metadata = AdapterConfig(case.LORA["rank"], case.LORA["alpha"], case.LORA["targets"], str(base)).to_json()
    save_sharded(case.adapters(), folder, metadata={LORA_KEY: metadata})
    return folder


def test_a_directory_that_peft_wrote_gives_its_logits_when_merged(base, tmp_path):
    """peft trained and saved it; its logits are the golden."""
    from codellama_app import CodeLlama

    adapters = open_adapters(GOLDENS / "peft_adapter")
    assert (adapters.config.rank, adapters.config.alpha) == (case.LORA["rank"], case.LORA["alpha"])
    assert set(adapters.config.targets) == set(case.LORA["targets"])
    assert dict(adapters.shapes) == adapter_shapes(CONFIG, case.LORA["rank"], case.LORA["targets"])
    merge_adapters(base, adapters, tmp_path / "merged.safetensors")
    lm = CodeLlama.from_pretrained(tmp_path / "merged.safetensors")
    golden = np.load(GOLDENS / "peft_logits.npz")["logits"]
    np.testing.assert_allclose(lm.logits(case.batches()[0]["input_ids"]), golden, atol=LOGITS_TOLERANCE, rtol=0)


def test_merged_matrices_are_the_sum_and_all_others_stay(base, tmp_path):
    adapters = open_adapters(saved(tmp_path / "run", base))
    merge_adapters(base, adapters, tmp_path / "merged.safetensors")
    before, after = open_checkpoint(base), open_checkpoint(tmp_path / "merged.safetensors")
    tree = case.adapters()
    for name in before:
        expected = before.read(name)
        stem = name.removesuffix(".weight")
        if f"{stem}.lora_a" in tree:
            expected = expected + SCALE * (tree[f"{stem}.lora_b"].astype(np.float64) @ tree[f"{stem}.lora_a"])
            np.testing.assert_allclose(after.read(name), expected, atol=1e-6)
        else:
            np.testing.assert_array_equal(after.read(name), expected)


def test_what_is_exported_to_peft_reads_back_bit_for_bit(base, tmp_path):
    adapters = open_adapters(saved(tmp_path / "run", base))
    write_peft(adapters, tmp_path / "peft")
    again = open_adapters(tmp_path / "peft")
    assert again.config == AdapterConfig(adapters.config.rank, adapters.config.alpha, again.config.targets, str(base))
    assert set(again.config.targets) == set(adapters.config.targets)
    for name, value in case.adapters().items():
        np.testing.assert_array_equal(again.read(name), value)
    theirs = json.loads((GOLDENS / "peft_adapter" / "adapter_config.json").read_text())
    ours = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert {key: theirs[key] for key in ours if key not in {"base_model_name_or_path", "target_modules"}} == {
        key: value for key, value in ours.items() if key not in {"base_model_name_or_path", "target_modules"}
    }
    assert sorted(theirs["target_modules"]) == sorted(ours["target_modules"])


def test_fresh_adapters_change_nothing_and_start_like_those_of_peft(base):
    shapes = adapter_shapes(CONFIG, 4, ("wq", "w2"))
    tree = random_adapters(shapes, seed=1)
    assert {name: value.shape for name, value in tree.items()} == shapes
    for name, value in tree.items():
        if name.endswith("lora_b"):
            assert not value.any()
        else:
            bound = shapes[name][1] ** -0.5
            assert np.abs(value).max() <= bound and value.std() == pytest.approx(bound / np.sqrt(3), rel=0.2)


@pytest.mark.parametrize(
    ("rank", "targets", "alpha", "message"),
    [
        (8, ("wq", "wv", "w2"), 24.0, r"lora_a is \(4, 40\), lora\.rank and lora\.targets make it \(8, 40\)"),
        (4, ("wq", "wv"), 12.0, r"w2\.lora_a is .*, lora\.rank and lora\.targets make it none"),
        (4, ("wq", "wv", "w2"), 16.0, r"give lora\.alpha 12"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(rank, targets, alpha, message):
    with pytest.raises(UserError, match=message):
        read_adapters(GOLDENS / "peft_adapter", adapter_shapes(CONFIG, rank, targets), alpha / rank)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora of PEFT is not supported"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"peft_type": "IA3"}, "IA3 of PEFT is not supported"),
        ({"bias": "all"}, "not supported"),
        ({"r": "many"}, "no configuration of PEFT's"),
    ],
)
def test_kinds_of_adapters_that_mean_something_else_are_refused(change, message, tmp_path):
    folder = tmp_path / "peft"
    folder.mkdir()
    values = json.loads((GOLDENS / "peft_adapter" / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(values | change))
    (folder / "adapter_model.safetensors").write_bytes(
        (GOLDENS / "peft_adapter" / "adapter_model.safetensors").read_bytes()
    )
    with pytest.raises(UserError, match=message):
        open_adapters(folder)


def test_adapters_of_another_network_are_not_merged(tmp_path):
    small = LlamaConfig(**{**case.MODEL, "hidden_size": 32})
    save_sharded(case.weights(small.parameter_shapes()), tmp_path / "small")
    with pytest.raises(UserError, match=r"w2\.weight is not \[40, 56\]"):
        merge_adapters(tmp_path / "small", open_adapters(GOLDENS / "peft_adapter"), tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
