"""Hugging Face directories: single files, shards, its cache's links, and the ways in which they are broken."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from codellama_ckpt import Checkpoint, CheckpointError, open_checkpoint, to_hugging_face, to_mindformers
from codellama_ckpt.dtypes import Array
from safetensors.numpy import load_file, save_file

rng = np.random.default_rng(1)
LAYER = {
    "self_attn.q_proj": (8, 8),
    "self_attn.k_proj": (4, 8),
    "self_attn.v_proj": (4, 8),
    "self_attn.o_proj": (8, 8),
    "mlp.gate_proj": (12, 8),
    "mlp.down_proj": (8, 12),
    "mlp.up_proj": (12, 8),
    "input_layernorm": (8,),
    "post_attention_layernorm": (8,),
}
SHAPES = {
    "model.embed_tokens.weight": (16, 8),
    "model.norm.weight": (8,),
    "lm_head.weight": (16, 8),
    **{f"model.layers.{i}.{name}.weight": shape for i in range(3) for name, shape in LAYER.items()},
}
WEIGHTS: dict[str, Array] = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
EXTRAS: dict[str, Array] = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32) for i in range(3)}


def save_directory(directory: Path, weights: dict[str, Array], max_shard_size: int | None = None) -> dict[str, str]:
    """Write a directory as transformers lays it out; returns the weight map (empty for a single file)."""
    directory.mkdir(exist_ok=True)
    if max_shard_size is None:
        save_file(weights, directory / "model.safetensors", {"format": "pt"})
        return {}
    shards: list[dict[str, Array]] = [{}]
    for name, array in weights.items():
        if shards[-1] and sum(a.nbytes for a in shards[-1].values()) + array.nbytes > max_shard_size:
            shards.append({})
        shards[-1][name] = array
    placed = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, directory / file, {"format": "pt"})
        placed.update(dict.fromkeys(shard, file))
    write_index(directory, placed)
    return placed


def write_index(directory: Path, placed: dict[str, str]) -> None:
    total = sum(array.nbytes for array in WEIGHTS.values())
    content = {"metadata": {"total_size": total}, "weight_map": placed}
    (directory / "model.safetensors.index.json").write_text(json.dumps(content))


def assert_holds(checkpoint: Checkpoint, weights: dict[str, Array]) -> None:
    assert set(checkpoint) == {to_mindformers(name) for name in weights}
    for name, array in weights.items():
        read = checkpoint.read(to_mindformers(name))
        assert read.dtype == array.dtype
        assert np.array_equal(read, array)


@pytest.mark.parametrize("max_shard_size", [None, 700, 1, 1 << 20])
def test_directory_is_read_by_mindformers_names(tmp_path: Path, max_shard_size: int | None) -> None:
    save_directory(tmp_path, WEIGHTS, max_shard_size)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.kind == "hugging_face"
    assert checkpoint.path == tmp_path
    assert checkpoint.metadata == {"format": "pt"}
    assert checkpoint.dropped == ()
    assert_holds(checkpoint, WEIGHTS)
    assert checkpoint.names() == open_checkpoint(str(tmp_path)).names()
    assert len(checkpoint) == len(WEIGHTS)


@pytest.mark.parametrize("max_shard_size", [None, 700])
def test_known_extras_are_dropped_and_named(tmp_path: Path, max_shard_size: int | None) -> None:
    save_directory(tmp_path, {**WEIGHTS, **EXTRAS}, max_shard_size)
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.dropped) == set(EXTRAS)
    assert_holds(checkpoint, WEIGHTS)


def test_known_extras_need_no_place_in_the_index(tmp_path: Path) -> None:
    placed = save_directory(tmp_path, {**WEIGHTS, **EXTRAS}, 700)
    write_index(tmp_path, {name: file for name, file in placed.items() if name not in EXTRAS})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.dropped
    assert set(checkpoint.dropped) <= set(EXTRAS)  # a shard of extras alone is not opened
    assert_holds(checkpoint, WEIGHTS)


def test_tensor_in_two_shards_is_an_error(tmp_path: Path) -> None:
    placed = save_directory(tmp_path, WEIGHTS, 700)
    elsewhere = next(file for file in placed.values() if file != placed["model.norm.weight"])
    tensors = load_file(tmp_path / elsewhere)
    save_file({**tensors, "model.norm.weight": WEIGHTS["model.norm.weight"] + 1}, tmp_path / elsewhere)
    with pytest.raises(CheckpointError, match=r"holds model.norm.weight, which it does not place there"):
        open_checkpoint(tmp_path)


def test_unknown_tensor_is_listed_as_surplus_among_all_other_faults(tmp_path: Path) -> None:
    bias = "model.layers.0.self_attn.q_proj.bias"
    save_directory(tmp_path, {**WEIGHTS, bias: np.ones(8, np.float32)})
    checkpoint = open_checkpoint(tmp_path)
    expected = {name: checkpoint.shape(name) for name in checkpoint if name != bias} | {"model.absent.weight": (1,)}
    with pytest.raises(CheckpointError, match=rf"1 missing: model\.absent\.weight; 1 surplus: {re.escape(bias)}"):
        checkpoint.check(expected)


def test_one_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    norm = WEIGHTS["model.norm.weight"]
    save_directory(tmp_path, {**WEIGHTS, "model.norm_out.weight": norm})
    with pytest.raises(CheckpointError, match=r"1 tensors are there twice: model.norm_out.weight \(again in"):
        open_checkpoint(tmp_path)


def test_single_file_goes_before_shards(tmp_path: Path) -> None:
    save_directory(tmp_path, {name: array + 1 for name, array in WEIGHTS.items()}, 700)
    save_directory(tmp_path, WEIGHTS)
    assert_holds(open_checkpoint(tmp_path), WEIGHTS)


def test_file_itself_may_be_given(tmp_path: Path) -> None:
    save_directory(tmp_path, WEIGHTS)
    checkpoint = open_checkpoint(tmp_path / "model.safetensors")
    assert checkpoint.kind == "hugging_face"
    assert_holds(checkpoint, WEIGHTS)


def test_full_file_keeps_its_names(tmp_path: Path) -> None:
    tensors = {to_mindformers(name): array for name, array in WEIGHTS.items()} | {"adam_m.x": np.ones(2, np.float32)}
    save_file(tensors, tmp_path / "full.safetensors")
    checkpoint = open_checkpoint(tmp_path / "full.safetensors")
    assert checkpoint.kind == "full"
    assert set(checkpoint) == set(tensors)


def test_links_of_hugging_faces_cache_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    save_directory(blobs, WEIGHTS, 700)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(os.path.relpath(path, snapshot))
    assert_holds(open_checkpoint(snapshot), WEIGHTS)


def test_missing_shard(tmp_path: Path) -> None:
    placed = save_directory(tmp_path, WEIGHTS, 700)
    shard = placed["model.norm.weight"]
    (tmp_path / shard).unlink()
    with pytest.raises(CheckpointError, match=f"index.json lists {shard}, which is missing"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("outside", ["../x.safetensors", "/etc/passwd", "a/../../x.safetensors", "", ".", "a\0b"])
def test_shard_outside_of_the_directory_is_refused(tmp_path: Path, outside: str) -> None:
    directory = tmp_path / "model"
    placed = save_directory(directory, WEIGHTS, 700)
    save_file({"lm_head.weight": WEIGHTS["lm_head.weight"]}, tmp_path / "x.safetensors")
    write_index(directory, {**placed, "lm_head.weight": outside})
    with pytest.raises(CheckpointError, match=r"'lm_head.weight' in .* which is not within its directory"):
        open_checkpoint(directory)


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    placed = save_directory(tmp_path, WEIGHTS, 700)
    write_index(tmp_path, {**placed, "lm_head.weight": placed["model.layers.2.mlp.up_proj.weight"]})
    with pytest.raises(CheckpointError, match=r"does not describe its shards: .*lacks lm_head\.weight"):
        open_checkpoint(tmp_path)
    write_index(tmp_path, {name: file for name, file in placed.items() if name != "model.norm.weight"})
    with pytest.raises(CheckpointError, match=r"holds model.norm.weight, which it does not place there"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[]", "not a JSON object"),
        ("{}", "weight_map: expected an object"),
        ('{"weight_map": {}}', "lists no tensors"),
        ('{"weight_map": {"a": 3}}', "weight_map, 'a': expected a string"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "gives 'a' twice"),
    ],
)
def test_bad_index(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


def test_nothing_known_lists_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    for name in ("model.safetensors", "model.safetensors.index.json", "index.json", "COMPLETE"):
        assert name in str(caught.value)
    save_file({"a": np.ones(1)}, tmp_path / "full.safetensors")
    with pytest.raises(CheckpointError, match=r"it holds full\.safetensors: give the file itself"):
        open_checkpoint(tmp_path)


EXPECTED = {to_mindformers(name): shape for name, shape in SHAPES.items()}
UNTIED = {name: shape for name, shape in EXPECTED.items() if name != "lm_head.weight"}


def test_check_accepts_what_fits(tmp_path: Path) -> None:
    save_directory(tmp_path, WEIGHTS)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.check(EXPECTED) == ()
    assert checkpoint.check({name: list(shape) for name, shape in EXPECTED.items()}, tied=True) == ()
    assert checkpoint.check(UNTIED, tied=True) == ("lm_head.weight",)
    with pytest.raises(CheckpointError, match=r"does not fit the network: 1 surplus: lm_head\.weight$"):
        checkpoint.check(UNTIED)


def test_check_lists_every_fault_in_one_error(tmp_path: Path) -> None:
    save_directory(tmp_path, WEIGHTS)
    expected = {**UNTIED, "model.tok_embeddings.embedding_weight": (17, 8), "model.norm_out.weight": (8, 1)}
    expected |= {"model.layers.3.attention.wq.weight": (8, 8), "model.layers.3.attention.wk.weight": (4, 8)}
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path).check(expected)
    assert str(caught.value) == (
        f"{tmp_path} does not fit the network: "
        "2 missing: model.layers.3.attention.wq.weight, model.layers.3.attention.wk.weight; "
        "1 surplus: lm_head.weight; 2 of another shape: "
        "model.tok_embeddings.embedding_weight (found [16, 8], expected [17, 8]), "
        "model.norm_out.weight (found [8], expected [8, 1])"
    )


def test_a_trained_model_of_transformers() -> None:
    root = Path(os.environ.get("CODELLAMA_TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))
    directory = root / "stories260k"
    if not directory.is_dir():
        pytest.skip(f"{directory} is not there; set CODELLAMA_TEST_DATA to the folder with the test data")
    config = json.loads((directory / "config.json").read_text())
    checkpoint = open_checkpoint(directory)
    assert checkpoint.kind == "hugging_face"
    official = load_file(directory / "model.safetensors")
    assert {to_hugging_face(name) for name in checkpoint} == set(official)
    for name in checkpoint:
        assert np.array_equal(checkpoint.read(name), official[to_hugging_face(name)])
    hidden, heads, kv_heads = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    assert checkpoint.shape("model.layers.4.attention.wk.weight") == (hidden // heads * kv_heads, hidden)
    assert config["tie_word_embeddings"]
    assert "lm_head.weight" not in checkpoint
    with pytest.raises(CheckpointError, match=r"1 missing: lm_head\.weight$"):
        checkpoint.check({name: checkpoint.shape(name) for name in checkpoint} | {"lm_head.weight": (512, 64)})
