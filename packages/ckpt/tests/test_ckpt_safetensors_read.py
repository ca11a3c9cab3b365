"""Damaged and hostile safetensors files: each is refused with one line that names the file and what is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from codellama_ckpt import CheckpointError, open_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

Entry = dict[str, object]


def content(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(shape: object, begin: object, end: object, dtype: object = "F32") -> Entry:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


BAD = {
    "empty file": (b"", "truncated or no safetensors file: 0 bytes"),
    "seven bytes": (b"\0" * 7, "7 bytes"),
    "header beyond the end": (content(b"{}", length=500), "truncated: 10 bytes, its header alone takes 508"),
    "absurd header": (b"\xff" * 16, "no safetensors file: a header of"),
    "pickle": (b"\x80\x02}q\x00" + b"\0" * 50, "no safetensors file"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    "list": (content([]), "does not start with"),
    "no json": (content(b"{nonsense"), "header is not valid JSON"),
    "no utf-8": (content(b'{"\xff": 1}'), "header is not valid JSON"),
    "deep nesting": (content(b'{"a":' + b"[" * 200_000), "header is not valid JSON"),
    "name twice": (
        content(b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{}}', b"\0"),
        "header gives 'w' twice",
    ),
    "data truncated": (content({"w": tensor([4], 0, 16)}, b"\0" * 15), "its header promises"),
    "data too long": (content({"w": tensor([4], 0, 16)}, b"\0" * 17), "has 1 bytes too many"),
    "overlap": (content({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, b"\0" * 12), "'b' overlaps"),
    "hole": (content({"a": tensor([1], 0, 4), "b": tensor([1], 8, 12)}, b"\0" * 12), "'b' leaves a hole"),
    "hole in front": (content({"a": tensor([1], 4, 8)}, b"\0" * 8), "'a' leaves a hole"),
    "out of range": (content({"a": tensor([2**40], 0, 2**42)}, b"\0" * 8), "is truncated"),
    "backwards": (content({"a": tensor([1], 8, 4)}, b"\0" * 8), "'a': data_offsets must be"),
    "negative offset": (content({"a": tensor([1], -4, 0)}), "'a': data_offsets: expected a whole number"),
    "three offsets": (content({"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0, 0]}}), "must be"),
    "unknown dtype": (content({"a": tensor([4], 0, 4, "F8_E4M3")}, b"\0" * 4), "'a': unknown dtype 'F8_E4M3'"),
    "dtype a number": (content({"a": tensor([4], 0, 4, 7)}, b"\0" * 4), "'a': dtype: expected a string"),
    "size against shape": (content({"a": tensor([3], 0, 16)}, b"\0" * 16), "16 bytes at its data_offsets"),
    "negative dimension": (content({"a": tensor([-1], 0, 4)}, b"\0" * 4), "expected a whole number from 0, found -1"),
    "boolean dimension": (content({"a": tensor([True], 0, 4)}, b"\0" * 4), "found True"),
    "fractional dimension": (content({"a": tensor([1.0], 0, 4)}, b"\0" * 4), "found 1.0"),
    "huge dimensions": (content({"a": tensor([0, 2**62, 2**62], 0, 0)}), "no array has the shape"),
    "too many dimensions": (content({"a": tensor([1] * 40, 0, 4)}, b"\0" * 4), "no array has the shape"),
    "shape a number": (content({"a": tensor(4, 0, 16)}, b"\0" * 16), "'a': shape: expected a list"),
    "entry a list": (content({"a": []}), "'a': expected an object"),
    "field missing": (content({"a": {"dtype": "F32"}}), "expected dtype, shape and data_offsets"),
    "field surplus": (content({"a": {**tensor([0], 0, 0), "x": 1}}), "expected dtype, shape and data_offsets"),
    "metadata a number": (content({"__metadata__": {"a": 1}}), "__metadata__, 'a': expected a string"),
    "name over two lines": (content({"a\nb": []}), "tensor 'a\\nb': expected an object"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_file_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    data, message = BAD[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    text = str(caught.value)
    assert message in text
    assert str(path) in text
    assert len(text.splitlines()) == 1
    assert len(text) < 500


GOOD = save({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(3, dtype=np.uint8)})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.integers(0, len(GOOD) - 1))
def test_every_truncation_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(GOOD[:length])
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        open_checkpoint(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.integers(0, len(GOOD) - 10), st.integers(1, 255))
def test_a_flipped_byte_never_escapes_as_another_exception(tmp_path: Path, position: int, flip: int) -> None:
    data = bytearray(GOOD)
    data[position] ^= flip
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    try:
        checkpoint = open_checkpoint(path)
        for name in checkpoint:
            checkpoint.read(name)
    except CheckpointError as error:
        assert len(str(error).splitlines()) == 1


def test_file_changed_after_opening_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(GOOD)
    checkpoint = open_checkpoint(path)
    other = tmp_path / "y"
    other.write_bytes(save({"b": np.ones(3, np.uint8), "a": np.zeros((2, 3), np.float32)}))
    other.replace(path)
    with pytest.raises(CheckpointError, match="changed while it was being read"):
        checkpoint.read("a")
    path.unlink()
    with pytest.raises(CheckpointError, match="No such file"):
        checkpoint.read("a")


def test_file_cut_short_during_a_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(GOOD)
    checkpoint = open_checkpoint(path)
    monkeypatch.setattr(os, "preadv", lambda *_: 0)
    with pytest.raises(CheckpointError, match=r"x\.safetensors ends within tensor 'a'"):
        checkpoint.read("a")


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(GOOD)
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: real(fd, [buffers[0][:5]], offset))
    assert np.array_equal(open_checkpoint(path).read("a"), np.arange(6, dtype=np.float32).reshape(2, 3))


def test_unreadable_paths(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(tmp_path / "none.safetensors")
    (tmp_path / "weights.npz").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="not a checkpoint of a known kind; expected a Hugging Face directory"):
        open_checkpoint(tmp_path / "weights.npz")
