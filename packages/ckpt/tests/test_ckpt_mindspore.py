"""`.ckpt` files: byte for byte those of MindSpore, read and written without it."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
from codellama_ckpt import CheckpointError, TensorEntry, open_checkpoint, to_bfloat16, verify
from codellama_ckpt import mindspore_file as module
from codellama_ckpt.dtypes import Array
from codellama_ckpt.mindspore_file import write_mindspore

ms = pytest.importorskip("mindspore", reason="MindSpore is the oracle of these tests")

random = np.random.default_rng(0)
ARRAYS: dict[str, Array] = {
    "model.norm_out.weight": random.standard_normal((3, 5)).astype(np.float32),
    "half": random.standard_normal((7, 2, 3)).astype(np.float16),
    "zero_d": np.array(2.5, np.float32),
    "flags": np.array([True, False, True]),
    "double": random.standard_normal((2, 2)),
    **{dtype: np.arange(200, 204).astype(dtype) for dtype in ("int8", "uint8", "int16", "uint16", "int32", "uint32")},
    "int64": np.array([-(2**63), 2**63 - 1]),
    "uint64": np.array([2**64 - 1], np.uint64),
}
VALUES = random.standard_normal((6, 2)).astype(np.float32)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MindSpore writes beside where it runs


def entries(arrays: dict[str, Array]) -> list[TensorEntry]:
    return [TensorEntry(name, a.dtype.name, a.shape, a.copy) for name, a in arrays.items()]


def save_theirs(path: Path, arrays: dict[str, Array], **options: object) -> None:
    ms.save_checkpoint([{"name": k, "data": ms.Tensor(v)} for k, v in arrays.items()], str(path), **options)


def test_the_same_bytes_as_mindspore(tmp_path: Path) -> None:
    save_theirs(tmp_path / "theirs.ckpt", ARRAYS, crc_check=True)
    write_mindspore(tmp_path / "ours.ckpt", entries(ARRAYS))
    assert (tmp_path / "ours.ckpt").read_bytes() == (tmp_path / "theirs.ckpt").read_bytes()


def test_mindspore_reads_what_is_written(tmp_path: Path) -> None:
    brain = TensorEntry("brain", "bfloat16", VALUES.shape, lambda: to_bfloat16(VALUES))
    write_mindspore(tmp_path / "x.ckpt", [*entries(ARRAYS), brain], {"config": '{"ü": 1}'})
    loaded = ms.load_checkpoint(str(tmp_path / "x.ckpt"), crc_check=True)
    assert loaded.keys() == {*ARRAYS, "brain"}
    for name, array in ARRAYS.items():
        found = loaded[name].asnumpy()
        assert found.dtype == array.dtype and found.shape == array.shape and np.array_equal(found, array), name
    assert loaded["brain"].dtype == ms.bfloat16
    theirs = ms.Tensor(VALUES).astype(ms.bfloat16).astype(ms.float32).asnumpy()
    assert np.array_equal(loaded["brain"].astype(ms.float32).asnumpy(), theirs)


@pytest.mark.parametrize("crc_check", [False, True])
def test_what_mindspore_writes_is_read(tmp_path: Path, crc_check: bool) -> None:
    save_theirs(tmp_path / "x.ckpt", ARRAYS, crc_check=crc_check, append_dict={"epoch_num": 3, "note": "text"})
    checkpoint = open_checkpoint(tmp_path / "x.ckpt")
    assert checkpoint.kind == "full"
    assert set(checkpoint) == set(ARRAYS)
    assert set(checkpoint.dropped) == {"epoch_num", "note"}
    for name, array in ARRAYS.items():
        found = checkpoint.read(name)
        assert found.dtype == array.dtype and found.shape == array.shape and np.array_equal(found, array), name
    assert np.array_equal(checkpoint.read("half", (slice(2, 5), slice(1, 2))), ARRAYS["half"][2:5, 1:2])
    assert ("checksums" in verify(checkpoint)) and ("no checksums" in verify(checkpoint)) != crc_check


def test_tensors_in_several_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MindSpore cuts tensors at 512 MiB; here at 16 bytes."""
    monkeypatch.setattr(module, "_LARGEST_VALUE", 16)
    write_mindspore(tmp_path / "x.ckpt", entries(ARRAYS))
    loaded = ms.load_checkpoint(str(tmp_path / "x.ckpt"))
    checkpoint = open_checkpoint(tmp_path / "x.ckpt")
    for name, array in ARRAYS.items():
        assert np.array_equal(loaded[name].asnumpy(), array)
        assert np.array_equal(checkpoint.read(name), array)
    assert np.array_equal(checkpoint.read("half", (slice(2, 7), slice(1, 2))), ARRAYS["half"][2:7, 1:2])


def test_metadata_comes_back(tmp_path: Path) -> None:
    write_mindspore(tmp_path / "x.ckpt", entries(ARRAYS), {"config": "{}", "note": "ü"})
    assert open_checkpoint(tmp_path / "x.ckpt").metadata == {"config": "{}", "note": "ü"}


def test_every_truncation_and_flipped_bit_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    write_mindspore(path, entries(ARRAYS), {"config": "{}"})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            open_checkpoint(path, verify=True)
    for bit in random.choice(8 * len(content), 400, replace=False):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(path, verify=True)
        assert "\n" not in str(caught.value)


def test_encrypted_files_are_refused(tmp_path: Path) -> None:
    save_theirs(tmp_path / "x.ckpt", ARRAYS, enc_key=b"0123456789ABCDEF", enc_mode="AES-GCM")
    with pytest.raises(CheckpointError, match=r"damaged, encrypted or no .ckpt file"):
        open_checkpoint(tmp_path / "x.ckpt")


def test_hostile_sizes_allocate_nothing(tmp_path: Path) -> None:
    """A tensor of 2**40 elements of which four bytes are there, and contents that reach beyond the file."""
    path = tmp_path / "x.ckpt"
    write_mindspore(path, [TensorEntry("a", "float32", (1,), lambda: np.zeros(1, np.float32))])
    honest = path.read_bytes()[:-17]
    large = b"\x0a\x1b\x0a\x01a\x12\x16\x08\x80\x80\x80\x80\x80\x20" + honest[-15:]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for content, message in ((large, "4 bytes, shape .1099511627776. .* needs"), (honest[:-2], "reaches beyond")):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    twice = [*entries(ARRAYS), *entries({"flags": ARRAYS["flags"]})]
    with pytest.raises(CheckpointError, match="the name 'flags' is taken"):
        write_mindspore(tmp_path / "x.ckpt", twice)
    assert not list(tmp_path.iterdir())
    save_theirs(tmp_path / "x.ckpt", ARRAYS)
    content = (tmp_path / "x.ckpt").read_bytes()
    (tmp_path / "y.ckpt").write_bytes(content + content)
    with pytest.raises(CheckpointError, match=r"'model.norm_out.weight' is there twice"):
        open_checkpoint(tmp_path / "y.ckpt")
