"""What PyTorch wrote: Meta's original format and `pytorch_model*.bin`, against transformers' own conversion of them."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from codellama_ckpt import Checkpoint, CheckpointError, open_checkpoint, plan, write_full, write_hugging_face
from codellama_ckpt.configuration import CONFIG
from safetensors.numpy import save_file

torch = pytest.importorskip("torch", reason="the files of these tests are PyTorch's, which is needed to read them")

GOLDEN = Path(__file__).parent / "golden"  # made by scripts/make_golden.py
META, AS_HF, BIN = GOLDEN / "meta", GOLDEN / "meta_as_hf", GOLDEN / "bin"


@pytest.fixture
def meta(tmp_path: Path) -> Path:
    return Path(shutil.copytree(META, tmp_path / "meta"))


def assert_same(found: Checkpoint, expected: Checkpoint) -> None:
    assert sorted(found) == sorted(expected)
    for name in expected:
        assert found.dtype(name) == expected.dtype(name)
        assert np.array_equal(found.read(name, dtype="stored"), expected.read(name, dtype="stored")), name


def change(path: Path, **tensors: object) -> None:
    """Save a file of PyTorch again, with some tensors replaced (None: removed)."""
    content = torch.load(path, weights_only=True) | {name.replace("__", "."): value for name, value in tensors.items()}
    torch.save({name: value for name, value in content.items() if value is not None}, path)


def test_meta_is_what_transformers_makes_of_it() -> None:
    checkpoint = open_checkpoint(META)
    assert checkpoint.kind == "meta"
    assert checkpoint.dropped == ("rope.freqs",)
    assert_same(checkpoint, open_checkpoint(AS_HF))


def test_configuration_of_meta_is_what_transformers_makes_of_it() -> None:
    config = json.loads(open_checkpoint(META).metadata[CONFIG])
    theirs = json.loads((AS_HF / "config.json").read_text())
    assert config.pop("rope_parameters") == {"rope_theta": 1e6, "rope_type": "default"}  # transformers 5 reads this
    assert config == {key: theirs[key] for key in config}


def test_any_slice_of_meta_is_that_of_the_whole() -> None:
    """Rows of wq and wk are re-ordered, columns of wo are in two files."""
    checkpoint, whole = open_checkpoint(META), open_checkpoint(AS_HF)
    for kind in ("wq", "wk", "wo"):
        name = f"model.layers.1.attention.{kind}.weight"
        rows, columns = whole.shape(name)
        for part in ((slice(3, 7), slice(5, 12)), (slice(1, rows - 1), slice(0, columns)), (slice(2, 3), slice(9, 10))):
            assert np.array_equal(checkpoint.read(name, part), whole.read(name, part)), (kind, part)


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_meta_through_a_full_file_to_hugging_face(tmp_path: Path, suffix: str) -> None:
    write_full(plan(open_checkpoint(META)), tmp_path / f"full.{suffix}")
    write_hugging_face(plan(open_checkpoint(tmp_path / f"full.{suffix}")), tmp_path / "hf", max_shard_size="8KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    assert_same(open_checkpoint(tmp_path / "hf"), open_checkpoint(AS_HF))


def test_torch_shards_are_read_without_their_rotary_tables() -> None:
    checkpoint = open_checkpoint(BIN)
    assert checkpoint.kind == "hugging_face"
    assert checkpoint.dropped == tuple(f"model.layers.{n}.self_attn.rotary_emb.inv_freq" for n in range(2))
    assert_same(checkpoint, open_checkpoint(AS_HF))


def test_one_torch_file_of_every_type(tmp_path: Path) -> None:
    tensors = {
        "model.norm.weight": torch.arange(5, dtype=torch.float32)[1:4],  # an offset
        "lm_head.weight": torch.arange(12, dtype=torch.float16).reshape(3, 4).T,  # not contiguous
        "brain": torch.tensor(1.5, dtype=torch.bfloat16),
        "long": torch.tensor([-1, 2**40]),
    }
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.read("model.norm_out.weight").tolist() == [1, 2, 3]
    assert np.array_equal(checkpoint.read("lm_head.weight", (slice(1, 3),)), tensors["lm_head.weight"][1:3].numpy())
    assert checkpoint.read("brain") == 1.5
    assert checkpoint.read("long").tolist() == [-1, 2**40]


def test_safetensors_go_before_pickles(tmp_path: Path) -> None:
    torch.save({"model.norm.weight": torch.zeros(3)}, tmp_path / "pytorch_model.bin")
    save_file({"model.norm.weight": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).read("model.norm_out.weight").tolist() == [1, 1, 1]


def test_parts_that_do_not_fit_together(meta: Path) -> None:
    second = meta / "consolidated.01.pth"
    change(second, norm__weight=torch.zeros(16, dtype=torch.bfloat16))
    with pytest.raises(CheckpointError, match=r"01\.pth: tensor 'norm\.weight' differs from that of consolidated\.00"):
        open_checkpoint(meta)
    change(second, norm__weight=None, output__weight=None)
    with pytest.raises(CheckpointError, match=r"hold different tensors: norm\.weight, output\.weight is in one only"):
        open_checkpoint(meta)
    second.rename(meta / "consolidated.02.pth")
    with pytest.raises(CheckpointError, match=r"without a gap, found consolidated\.00\.pth, consolidated\.02\.pth"):
        open_checkpoint(meta)


def test_unknown_missing_and_misshapen_tensors_of_meta_are_listed(meta: Path) -> None:
    for part in meta.glob("*.pth"):
        change(
            part,
            layers__0__ffn_norm__weight=None,
            layers__0__attention__wv__weight=torch.zeros(6, 16, dtype=torch.bfloat16),
            surprise=torch.zeros(1),
        )
    with pytest.raises(CheckpointError) as caught:
        plan(open_checkpoint(meta))
    assert "1 missing: model.layers.0.ffn_norm.weight" in str(caught.value)
    assert "1 surplus: surprise" in str(caught.value)
    assert "model.layers.0.attention.wv.weight (found [12, 16], expected [8, 16])" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"), [("dim", 0), ("n_layers", 10**12), ("n_heads", "4"), ("norm_eps", None), ("rope_theta", -1)]
)
def test_impossible_parameters_of_meta(meta: Path, key: str, value: object) -> None:
    params = json.loads((meta / "params.json").read_text())
    (meta / "params.json").write_text(json.dumps({**params, key: value}))
    with pytest.raises(CheckpointError) as caught:
        plan(open_checkpoint(meta))
    assert "\n" not in str(caught.value)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return (Path.touch, (self.path,))


def as_torch_file(path: Path, content: object) -> None:
    """A file as `torch.save` lays it out, around any pickle."""
    pickled = io.BytesIO()
    pickle.dump(content, pickled, protocol=2)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled.getvalue())
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
def test_pickles_that_run_code_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "params.json").write_text((META / "params.json").read_text())
    mark = tmp_path / "it ran"
    as_torch_file(tmp_path / name, {"model.norm.weight": Evil(mark)})
    with pytest.raises(
        CheckpointError, match="holds more than tensors, which is refused as it could run code"
    ) as caught:
        open_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)
    assert not mark.exists()
    with zipfile.ZipFile(tmp_path / name) as archive:  # the trap works: an ordinary unpickling springs it
        pickle.loads(archive.read("archive/data.pkl"))
    assert mark.exists()


def test_what_is_no_file_of_tensors(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    for content in ([torch.zeros(2)], {"a": 3}, {}, {1: torch.zeros(2)}):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
            open_checkpoint(tmp_path)
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"no file of PyTorch 1\.6 or later"):
        open_checkpoint(tmp_path)
    torch.save({"a": torch.zeros(2, dtype=torch.complex64)}, path)
    with pytest.raises(CheckpointError, match=r"'a': torch\.complex64"):
        open_checkpoint(tmp_path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    content = (BIN / "pytorch_model-00002-of-00002.bin").read_bytes()
    for length in range(0, len(content), 397):
        (tmp_path / "pytorch_model.bin").write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            open_checkpoint(tmp_path)


def test_flipped_bits_never_escape_as_another_exception(tmp_path: Path) -> None:
    content = (BIN / "pytorch_model-00002-of-00002.bin").read_bytes()
    random = np.random.default_rng(0)
    for position in random.integers(0, len(content), 150):
        flipped = bytearray(content)
        flipped[position] ^= 1 << int(random.integers(8))
        (tmp_path / "pytorch_model.bin").write_bytes(flipped)
        try:
            checkpoint = open_checkpoint(tmp_path)
            for name in checkpoint:
                checkpoint.read(name)
        except CheckpointError as error:
            assert "\n" not in str(error)
