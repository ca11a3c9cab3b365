"""Files written here are read by the official library, and the other way round, bit by bit."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from codellama_ckpt import CheckpointError, TensorEntry, open_checkpoint, to_bfloat16, write_safetensors
from codellama_ckpt.dtypes import BY_NAME, Array
from safetensors.numpy import load_file, save_file

rng = np.random.default_rng(0)
ARRAYS: dict[str, Array] = {
    "one": rng.standard_normal((3, 5)).astype(np.float32),
    "half": rng.standard_normal((7,)).astype(np.float16),
    "zero_d": np.array(2.5, np.float32),
    "empty": np.zeros((4, 0, 3), np.float32),
    "bytes": np.arange(5, dtype=np.uint8),
    "flags": np.array([True, False, True]),
    "long": np.array([-(2**63), 2**63 - 1]),
    "double": rng.standard_normal((2, 2)),
    "naïve.名": np.array([np.nan, -0.0, np.inf], np.float32),
}
BRAIN = to_bfloat16(rng.standard_normal((6, 2)).astype(np.float32))


def entry(name: str, array: Array, dtype: str | None = None) -> TensorEntry:
    return TensorEntry(name, dtype or array.dtype.name, array.shape, lambda: array)


def official(path: Path) -> dict[str, dict[str, Any]]:
    """What the official library's own parser makes of a file: `dtype`, `shape` and `data` by name."""
    return dict(safetensors.deserialize(path.read_bytes()))  # type: ignore[no-untyped-call]


def same_bits(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_official_library_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, [entry(name, array) for name, array in ARRAYS.items()], {"made by": "a test, ü"})
    read = load_file(path)
    assert read.keys() == ARRAYS.keys()
    assert all(same_bits(read[name], array) for name, array in ARRAYS.items())
    with safetensors.safe_open(path, framework="np") as file:
        metadata = file.metadata()
    assert metadata.pop("crc32").count(" ") == len(ARRAYS)
    assert metadata.pop("crc32_of") == "header, tensors"
    assert metadata == {"made by": "a test, ü"}


def test_official_library_reads_bfloat16(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, [("pad", "uint8", (3,), lambda: np.zeros(3, np.uint8)), entry("b", BRAIN, "bfloat16")])
    tensors = official(path)
    assert tensors["b"]["dtype"] == "BF16"
    assert tensors["b"]["shape"] == [6, 2]
    assert bytes(tensors["b"]["data"]) == BRAIN.tobytes()


def test_official_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(ARRAYS, path, {"a": "b"})
    checkpoint = open_checkpoint(path)
    assert checkpoint.kind == "full"
    assert checkpoint.metadata == {"a": "b"}
    assert set(checkpoint) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert checkpoint.shape(name) == array.shape
        assert checkpoint.dtype(name) == array.dtype.name
        assert same_bits(checkpoint.read(name), array)
        assert same_bits(checkpoint.read(name, dtype="stored"), array)


def test_official_bfloat16_is_read(tmp_path: Path) -> None:
    spec = safetensors.TensorSpec(
        dtype="bfloat16", shape=BRAIN.shape, data_ptr=BRAIN.ctypes.data, data_len=BRAIN.nbytes
    )
    path = tmp_path / "x.safetensors"
    path.write_bytes(bytes(safetensors.serialize({"b": spec})))
    checkpoint = open_checkpoint(path)
    assert checkpoint.dtype("b") == "bfloat16"
    assert same_bits(checkpoint.read("b", dtype="stored"), BRAIN)
    values = (BRAIN.astype(np.uint32) << 16).view(np.float32)
    assert same_bits(checkpoint.read("b"), values)
    assert same_bits(checkpoint.read("b", dtype="float32"), values)


def test_strided_and_big_endian_arrays_are_written_by_value(tmp_path: Path) -> None:
    square = np.arange(12, dtype=np.float32).reshape(3, 4)
    path = tmp_path / "x.safetensors"
    write_safetensors(path, [entry("t", square.T), entry("b", square.astype(">f4")), entry("s", square[::2, ::-1])])
    read = load_file(path)
    assert np.array_equal(read["t"], square.T)
    assert np.array_equal(read["b"], square)
    assert np.array_equal(read["s"], square[::2, ::-1])


def test_tensors_are_aligned_to_their_element(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, [entry("a", np.zeros(3, np.uint8)), entry("b", BRAIN, "bfloat16"), entry("c", np.ones(3))])
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    checkpoint = open_checkpoint(path)
    assert checkpoint.names() == ("c", "b", "a")
    assert header % 8 == 0


def test_no_entries_make_an_empty_file(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", [])
    assert load_file(tmp_path / "x.safetensors") == {}
    assert open_checkpoint(tmp_path / "x.safetensors").names() == ()


def test_one_tensor_in_memory_at_a_time(tmp_path: Path) -> None:
    size = 1 << 20

    def maker(value: int) -> Callable[[], Array]:
        return lambda: np.full(size, value, np.uint8)

    tracemalloc.start()
    write_safetensors(tmp_path / "x.safetensors", [(f"t{i}", "uint8", (size,), maker(i)) for i in range(8)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * size  # the largest tensor, and half of it for everything else


@pytest.mark.parametrize(
    ("promised", "returned"),
    [
        (("float32", (2, 3)), np.zeros((3, 2), np.float32)),
        (("float32", (2, 3)), np.zeros((2, 3), np.float64)),
        (("bfloat16", (2, 3)), np.zeros((2, 3), np.float32)),
        (("float32", ()), np.zeros((1,), np.float32)),
    ],
)
def test_broken_promise_is_named_and_leaves_the_old_file(
    tmp_path: Path, promised: tuple[str, tuple[int, ...]], returned: Array
) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(CheckpointError, match=r"x\.safetensors: tensor 'w' was announced as"):
        write_safetensors(path, [TensorEntry("w", *promised, lambda: returned)])
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_impossible_requests(tmp_path: Path) -> None:
    path, one = tmp_path / "x.safetensors", np.ones(1, np.float32)
    with pytest.raises(CheckpointError, match="'w' is taken"):
        write_safetensors(path, [entry("w", one), entry("w", one)])
    with pytest.raises(CheckpointError, match="'__metadata__' is taken"):
        write_safetensors(path, [entry("__metadata__", one)])
    with pytest.raises(CheckpointError, match="unknown dtype 'float8'"):
        write_safetensors(path, [("w", "float8", (1,), lambda: one)])
    with pytest.raises(CheckpointError, match="strings to strings"):
        write_safetensors(path, [], {"step": 3})  # type: ignore[dict-item]
    with pytest.raises(CheckpointError, match="No such file or directory"):
        write_safetensors(tmp_path / "missing" / "x.safetensors", [])
    assert list(tmp_path.iterdir()) == []


def test_every_type_goes_through_the_official_library(tmp_path: Path) -> None:
    bits = {name: rng.integers(0, 2, 6).astype(dtype.storage) for name, dtype in BY_NAME.items()}
    path = tmp_path / "x.safetensors"
    write_safetensors(path, [entry(name, array, name) for name, array in bits.items()])
    for name, tensor in official(path).items():
        assert tensor["dtype"] == BY_NAME[name].code
        assert bytes(tensor["data"]) == bits[name].tobytes()
    checkpoint = open_checkpoint(path)
    assert all(same_bits(checkpoint.read(name, dtype="stored"), array) for name, array in bits.items())
