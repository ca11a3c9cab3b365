"""Converting: round trips are bit-exact, faults are all listed, and what is written is complete and checked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from codellama_ckpt import (
    Checkpoint,
    CheckpointError,
    TensorEntry,
    open_checkpoint,
    plan,
    save_sharded,
    to_bfloat16,
    to_hugging_face,
    verify,
    write_full,
    write_hugging_face,
    write_safetensors,
)
from codellama_ckpt.configuration import expected_shapes
from codellama_ckpt.dtypes import Array
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

GOLDEN = Path(__file__).parent / "golden/meta_as_hf"  # saved by transformers: scripts/make_golden.py
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 20,
    "hidden_size": 12,
    "intermediate_size": 18,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
}


def make_directory(path: Path, config: dict[str, object] | None = None, seed: int = 0) -> dict[str, Array]:
    """A Hugging Face directory of random float32 weights; its tensors by Hugging Face's names."""
    random = np.random.default_rng(seed)
    config = {**CONFIG, **(config or {})}
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    save_file({}, path / "model.safetensors")
    shapes = expected_shapes(open_checkpoint(path), config)
    tensors = {to_hugging_face(n): random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return tensors


def weights(path: Path) -> dict[str, tuple[str, bytes]]:
    checkpoint = open_checkpoint(path)
    return {n: (checkpoint.dtype(n), checkpoint.read(n, dtype="stored").tobytes()) for n in checkpoint}


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_transformers_own_directory_comes_back_bit_by_bit(tmp_path: Path, suffix: str) -> None:
    full = tmp_path / f"full.{suffix}"
    write_full(plan(open_checkpoint(GOLDEN)), full)
    assert open_checkpoint(full).kind == "full"
    assert weights(full) == weights(GOLDEN)
    write_hugging_face(plan(open_checkpoint(full)), tmp_path / "hf")
    assert sorted(p.name for p in (tmp_path / "hf").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    assert weights(tmp_path / "hf") == weights(GOLDEN)
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (GOLDEN, tmp_path / "hf"))
    assert after == {**before, "torch_dtype": "bfloat16"}
    generation = "generation_config.json"
    assert json.loads((tmp_path / "hf" / generation).read_text()) == json.loads((GOLDEN / generation).read_text())


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_random_models_come_back_bit_by_bit(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("round")
    kv_heads = data.draw(st.integers(1, 3))
    heads = kv_heads * data.draw(st.integers(1, 3))
    config = {
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_size": heads * data.draw(st.sampled_from([2, 4])),
        "intermediate_size": data.draw(st.integers(1, 20)),
        "vocab_size": data.draw(st.integers(1, 20)),
        "num_hidden_layers": data.draw(st.integers(1, 3)),
        "tie_word_embeddings": data.draw(st.booleans()),
    }
    suffix = data.draw(st.sampled_from(["safetensors", "ckpt"]))
    tensors = make_directory(folder / "hf", config)
    write_full(plan(open_checkpoint(folder / "hf")), folder / f"full.{suffix}")
    size = data.draw(st.integers(1, 3000))
    write_hugging_face(plan(open_checkpoint(folder / f"full.{suffix}")), folder / "back", max_shard_size=size)
    found: dict[str, Array] = {}
    files = sorted((folder / "back").glob("*.safetensors"))
    for file in files:
        held = load_file(file)
        assert len(held) == 1 or sum(array.nbytes for array in held.values()) <= size
        found |= held
    assert found.keys() == tensors.keys()
    assert all(np.array_equal(found[name], array) for name, array in tensors.items())
    if len(files) > 1:
        index = json.loads((folder / "back/model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(array.nbytes for array in tensors.values())
        assert all(name in load_file(folder / "back" / file) for name, file in index["weight_map"].items())
    shutil.rmtree(folder)


def test_all_faults_are_listed_and_nothing_is_written(tmp_path: Path) -> None:
    tensors = make_directory(tmp_path / "hf")
    del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.0.self_attn.k_proj.weight"] = np.zeros((12, 12), np.float32)
    tensors["model.layers.0.self_attn.q_proj.bias"] = tensors["stranger"] = np.zeros(12, np.float32)
    save_file(tensors, tmp_path / "hf/model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        plan(open_checkpoint(tmp_path / "hf"))
    assert str(caught.value) == (
        f"{tmp_path}/hf does not fit the network: "
        "2 missing: model.layers.1.feed_forward.w3.weight, model.norm_out.weight; "
        "2 surplus: model.layers.0.self_attn.q_proj.bias, stranger; "
        "1 of another shape: model.layers.0.attention.wk.weight (found [12, 12], expected [4, 12])"
    )


def test_all_duplicates_are_listed(tmp_path: Path) -> None:
    tensors = make_directory(tmp_path / "hf")
    doubles = {"model.norm_out.weight": tensors["model.norm.weight"], "lm_head.weight": tensors["lm_head.weight"]}
    save_file({**doubles, "model.layers.0.ffn_norm.weight": np.zeros(12, np.float32)}, tmp_path / "hf/b.safetensors")
    (tmp_path / "hf/model.safetensors").rename(tmp_path / "hf/a.safetensors")
    placed = dict.fromkeys(tensors, "a.safetensors") | {
        "model.norm_out.weight": "b.safetensors",
        "model.layers.0.ffn_norm.weight": "b.safetensors",
    }
    (tmp_path / "hf/model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    with pytest.raises(CheckpointError, match=r"b.safetensors holds lm_head.weight, which it does not place there"):
        open_checkpoint(tmp_path / "hf")
    del doubles["lm_head.weight"]
    save_file({**doubles, "model.layers.0.ffn_norm.weight": np.zeros(12, np.float32)}, tmp_path / "hf/b.safetensors")
    with pytest.raises(CheckpointError, match=r"2 tensors are there twice: .*ffn_norm.weight .*model.norm_out.weight"):
        open_checkpoint(tmp_path / "hf")


def test_without_a_configuration_the_tensors_say_the_sizes(tmp_path: Path) -> None:
    tensors = make_directory(tmp_path / "hf")
    (tmp_path / "hf/config.json").unlink()
    job = plan(open_checkpoint(tmp_path / "hf"))
    assert len(job.names) == len(tensors)
    write_full(job, tmp_path / "full.safetensors")
    with pytest.raises(CheckpointError, match=r"does not say the network's sizes, .* put its config\.json beside it"):
        write_hugging_face(plan(open_checkpoint(tmp_path / "full.safetensors")), tmp_path / "back")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    write_hugging_face(plan(open_checkpoint(tmp_path / "full.safetensors")), tmp_path / "back")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "hf/model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing: model\.layers\.1\.feed_forward\.w3\.weight"):
        plan(open_checkpoint(tmp_path / "hf"))


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_size", 0), ("num_hidden_layers", 10**12), ("vocab_size", "20"), ("num_attention_heads", None)],
)
def test_impossible_configurations(tmp_path: Path, key: str, value: object) -> None:
    make_directory(tmp_path / "hf")
    (tmp_path / "hf/config.json").write_text(json.dumps({**CONFIG, key: value}))
    with pytest.raises(CheckpointError, match=r"its configuration"):
        plan(open_checkpoint(tmp_path / "hf"))


def test_rotary_tables_are_dropped_and_named(tmp_path: Path) -> None:
    tensors = make_directory(tmp_path / "hf")
    extra = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file({**tensors, extra: np.ones(3, np.float32)}, tmp_path / "hf/model.safetensors")
    job = plan(open_checkpoint(tmp_path / "hf"))
    assert job.dropped == (extra,)
    assert len(job.names) == len(tensors)


def test_a_tied_output_projection_is_dropped_and_named(tmp_path: Path) -> None:
    """Old releases saved it beside the embedding that it is."""
    tensors = make_directory(tmp_path / "hf", {"tie_word_embeddings": True})
    assert "lm_head.weight" not in tensors
    whole = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}
    save_file(whole, tmp_path / "hf/model.safetensors")
    job = plan(open_checkpoint(tmp_path / "hf"))
    assert job.dropped == ("lm_head.weight",)
    write_full(job, tmp_path / "full.ckpt")
    write_hugging_face(plan(open_checkpoint(tmp_path / "full.ckpt")), tmp_path / "back")
    assert load_file(tmp_path / "back/model.safetensors").keys() == tensors.keys()


def cast(values: Array, stored: str, dtype: str, folder: Path) -> Array:
    """Values through a file of type `stored`, read as `dtype`; bfloat16 as its bits."""
    folder.mkdir(exist_ok=True)
    bits = to_bfloat16(values) if stored == "bfloat16" else values
    write_safetensors(folder / "x.safetensors", [TensorEntry("x", stored, values.shape, lambda: bits)])
    return open_checkpoint(folder / "x.safetensors").read("x", dtype=dtype)  # type: ignore[arg-type]


def nearest_bfloat16(value: float) -> int:
    """The bits of the bfloat16 nearest to a float64, ties to even, found by looking at its neighbours in float64."""
    if np.isnan(value):
        return 0x7FC0
    sign, size = int(np.signbit(value)) << 15, abs(value)
    with np.errstate(over="ignore"):
        start = int(np.float32(size).view(np.uint32)) >> 16
    neighbours = [bits for bits in range(max(0, start - 1), start + 3) if bits <= 0x7F80]
    values = [2.0**128 if bits == 0x7F80 else float(np.uint32(bits << 16).view(np.float32)) for bits in neighbours]
    if size >= 2.0**128:
        return sign | 0x7F80
    return sign | min(zip(neighbours, values, strict=True), key=lambda pair: (abs(pair[1] - size), pair[0] & 1))[0]


@settings(max_examples=300, deadline=None)
@given(value=st.floats(width=64), scale=st.sampled_from([0.0, 2.0**-8, -(2.0**-8), 2.0**-40, -(2.0**-60)]))
def test_float64_is_rounded_once(tmp_path_factory: pytest.TempPathFactory, value: float, scale: float) -> None:
    values = np.array([value, 1 + 2.0**-8 + scale, 1 + 3 * 2.0**-8 + scale])
    found = cast(values, "float64", "bfloat16", tmp_path_factory.getbasetemp() / "float64")
    expected = [nearest_bfloat16(float(v)) for v in values]
    is_nan = np.isnan(values)
    assert [b for b, n in zip(found.tolist(), is_nan, strict=True) if not n] == [
        b for b, n in zip(expected, is_nan, strict=True) if not n
    ]
    assert all((bits & 0x7FFF) > 0x7F80 for bits in found[is_nan].tolist())


def test_a_value_just_above_a_tie_of_both_types(tmp_path: Path) -> None:
    """Through float32 it would become the tie, and then round down to even."""
    values = np.array([1 + 2.0**-8 + 2.0**-40])
    assert to_bfloat16(values.astype(np.float32)).tolist() == [0x3F80]
    assert cast(values, "float64", "bfloat16", tmp_path).tolist() == [0x3F81]


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_cast_rounds_to_nearest(tmp_path: Path, stored: str, dtype: str) -> None:
    values = np.random.default_rng(0).standard_normal(5000).astype(np.float32) * 10
    if stored == "float16":
        values = values.astype(np.float16)
    elif stored == "bfloat16":
        values = (to_bfloat16(values).astype(np.uint32) << 16).view(np.float32)
    found = cast(values, stored, dtype, tmp_path)
    if dtype == "bfloat16":
        assert found.tolist() == [nearest_bfloat16(float(v)) for v in values]
    else:
        assert np.array_equal(found, values.astype(dtype))


@pytest.mark.parametrize(("dtype", "name"), [("fp32", "float32"), ("fp16", "float16"), ("bf16", "bfloat16")])
def test_dtype_of_a_converted_file_and_of_its_configuration(tmp_path: Path, dtype: str, name: str) -> None:
    write_full(plan(open_checkpoint(GOLDEN), dtype), tmp_path / "full.safetensors")
    checkpoint = open_checkpoint(tmp_path / "full.safetensors")
    assert {checkpoint.dtype(key) for key in checkpoint} == {name}
    write_hugging_face(plan(checkpoint), tmp_path / "hf")
    assert json.loads((tmp_path / "hf/config.json").read_text())["torch_dtype"] == name
    if dtype != "fp16":  # bfloat16 -> float32 -> bfloat16 loses nothing
        write_full(plan(open_checkpoint(tmp_path / "hf"), "bf16"), tmp_path / "again.ckpt")
        assert weights(tmp_path / "again.ckpt") == weights(GOLDEN)


def test_what_float16_can_not_hold_is_refused(tmp_path: Path) -> None:
    tensors = make_directory(tmp_path / "hf")
    tensors["model.norm.weight"][3] = 70000
    save_file(tensors, tmp_path / "hf/model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"'model\.norm_out\.weight' holds values that float16 has only infinity for"
    ):
        write_full(plan(open_checkpoint(tmp_path / "hf"), "fp16"), tmp_path / "full.safetensors")
    assert not (tmp_path / "full.safetensors").exists()


def test_a_sharded_checkpoint_is_converted_without_its_training_state(tmp_path: Path) -> None:
    make_directory(tmp_path / "hf")
    checkpoint = open_checkpoint(tmp_path / "hf")
    tree = {name: checkpoint.read(name) for name in checkpoint}
    config = {"config": json.dumps(CONFIG), "step": "3"}
    save_sharded({**tree, "training/exp_avg/lm_head.weight": tree["lm_head.weight"]}, tmp_path / "s", metadata=config)
    job = plan(open_checkpoint(tmp_path / "s"))
    assert job.dropped == ("training/exp_avg/lm_head.weight",)
    for suffix in ("safetensors", "ckpt"):
        write_full(job, tmp_path / f"full.{suffix}")
        found = open_checkpoint(tmp_path / f"full.{suffix}")
        assert weights(found.path) == weights(tmp_path / "hf")
        assert found.metadata == {**config, "format": "ms"}
        assert "agree with their checksums" in verify(found)


def test_unusable_outputs_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    job = plan(open_checkpoint(GOLDEN))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    for path, message in (
        (tmp_path / "x.bin", r"name ends in \.safetensors or \.ckpt"),
        (tmp_path / "none/x.ckpt", "the directory .*none does not exist"),
    ):
        with pytest.raises(CheckpointError, match=message):
            write_full(job, path)
    with pytest.raises(CheckpointError, match=r"the directory .*none does not exist"):
        write_hugging_face(job, tmp_path / "none/hf")
    for path in (tmp_path / "full", tmp_path / "full/file"):
        with pytest.raises(CheckpointError, match="is not an empty directory"):
            write_hugging_face(job, path)
    for size in ("0", "5 apples", "-1", "", "GB"):
        with pytest.raises(CheckpointError, match="a size is a number of bytes"):
            write_hugging_face(job, tmp_path / "hf", max_shard_size=size)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "full"]
    write_hugging_face(job, tmp_path / "full", overwrite=True)
    assert weights(tmp_path / "full") == weights(GOLDEN)
    assert not (tmp_path / "full/file").exists()


def test_a_failing_read_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Checkpoint.blocks

    def blocks(self: Checkpoint, name: str, *args: object, **kwargs: object) -> Iterator[Array]:
        if name == "model.norm_out.weight":
            raise CheckpointError("gone")
        yield from real(self, name, *args, **kwargs)  # type: ignore[arg-type]

    (tmp_path / "full.safetensors").write_bytes(b"old")
    job = plan(open_checkpoint(GOLDEN))
    monkeypatch.setattr(Checkpoint, "blocks", blocks)
    with pytest.raises(CheckpointError, match="gone"):
        write_full(job, tmp_path / "full.safetensors")
    with pytest.raises(CheckpointError, match="gone"):
        write_hugging_face(job, tmp_path / "hf", max_shard_size=3000)
    assert [p.name for p in tmp_path.iterdir()] == ["full.safetensors"]
    assert (tmp_path / "full.safetensors").read_bytes() == b"old"
