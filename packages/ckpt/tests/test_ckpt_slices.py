"""Slices read equal NumPy's, and cost exactly the bytes they hold."""

from __future__ import annotations

import math
import os
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from codellama_ckpt import Checkpoint, CheckpointError, open_checkpoint, write_safetensors
from codellama_ckpt import checkpoint as checkpoint_module
from codellama_ckpt.boxes import runs, tiling_fault
from codellama_ckpt.dtypes import Array
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

SHAPES = [(), (7,), (5, 6), (3, 4, 5), (2, 3, 1, 4), (0, 3), (3, 0), (1, 1)]
DTYPES = ["float32", "float16", "bfloat16", "int64", "float64"]


def values(shape: Sequence[int], dtype: str) -> Array:
    """Distinct values of a shape; for bfloat16 its bits."""
    count = np.arange(math.prod(shape)).reshape(shape)
    return (0x3F80 + count).astype(np.uint16) if dtype == "bfloat16" else count.astype(dtype)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("slices") / "x.safetensors"
    arrays = {(shape, dtype): values(shape, dtype) for shape in SHAPES for dtype in DTYPES}
    write_safetensors(
        path, [(f"{dtype} {shape}", dtype, shape, array.copy) for (shape, dtype), array in arrays.items()]
    )
    return open_checkpoint(path)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Sizes of the reads that happen."""
    sizes: list[int] = []
    real = os.preadv

    def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        sizes.append(real(descriptor, buffers, offset))
        return sizes[-1]

    monkeypatch.setattr(os, "preadv", preadv)
    yield sizes


bound = st.none() | st.integers(-9, 9)


@settings(max_examples=400)
@given(shape=st.sampled_from(SHAPES), dtype=st.sampled_from(DTYPES), data=st.data())
def test_slices_equal_numpys(stored: Checkpoint, shape: tuple[int, ...], dtype: str, data: st.DataObject) -> None:
    slices = tuple(data.draw(st.lists(st.builds(slice, bound, bound), max_size=len(shape))))
    whole = values(shape, dtype)
    read = stored.read(f"{dtype} {shape}", slices, dtype="stored")
    assert read.dtype == whole.dtype
    assert read.shape == whole[slices].shape
    assert np.array_equal(read, whole[slices])
    assert read.flags.c_contiguous
    assert read.flags.writeable
    assert read.flags.owndata
    if dtype != "int64":
        exact = (
            np.asarray(np.left_shift(whole, 16, dtype=np.uint32)).view(np.float32)
            if dtype == "bfloat16"
            else whole.astype(np.float32)
        )
        wide = stored.read(f"{dtype} {shape}", slices, dtype="float32")
        assert wide.dtype == np.float32
        assert wide.shape == exact[slices].shape
        assert np.array_equal(wide, exact[slices])


@settings(max_examples=100, deadline=None)
@given(scratch=st.integers(1, 64), data=st.data())
def test_widening_in_small_steps_changes_nothing(stored: Checkpoint, scratch: int, data: st.DataObject) -> None:
    slices = tuple(data.draw(st.lists(st.builds(slice, bound, bound), max_size=3)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_module, "_SCRATCH", scratch)
        read = stored.read("float16 (3, 4, 5)", slices, dtype="float32")
    assert np.array_equal(read, values((3, 4, 5), "float32")[slices])


@pytest.mark.parametrize("as_type", ["stored", "float32"])
@pytest.mark.parametrize(
    ("slices", "calls"),
    [
        (None, 1),
        ((slice(10, 20),), 1),  # neighbouring rows are one run
        ((slice(10, 20), slice(0, 64)), 1),
        ((slice(10, 20), slice(8, 24)), 10),  # columns: one run a row
        ((slice(None), slice(63, None)), 100),
        ((slice(5, 5),), 0),
    ],
)
def test_exactly_the_bytes_of_the_slice_are_read(
    tmp_path: Path, counted: list[int], slices: tuple[slice, ...] | None, calls: int, as_type: str
) -> None:
    array = np.arange(6400, dtype=np.float16).reshape(100, 64)
    save_file({"before": array, "w": array, "behind": array}, tmp_path / "x.safetensors")
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    assert counted == []  # opening reads headers only
    read = checkpoint.read("w", slices, dtype=as_type)  # type: ignore[arg-type]
    assert sum(counted) == read.size * array.itemsize
    assert len(counted) == calls


def test_three_dimensions_merge_into_the_longest_runs(tmp_path: Path, counted: list[int]) -> None:
    array = np.arange(4 * 6 * 8, dtype=np.float32).reshape(4, 6, 8)
    save_file({"w": array}, tmp_path / "x.safetensors")
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    read = checkpoint.read("w", (slice(1, 4), slice(2, 5)))
    assert counted == [3 * 8 * 4] * 3
    assert np.array_equal(read, array[1:4, 2:5])


@pytest.mark.parametrize(("dtype", "as_type", "allowed"), [("float32", None, 1.0), ("float16", "float32", 2.0)])
def test_peak_memory_is_the_result_and_a_bounded_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, as_type: object, allowed: float
) -> None:
    array = np.ones((1024, 1024), dtype)
    save_file({"w": array}, tmp_path / "x.safetensors")
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    monkeypatch.setattr(checkpoint_module, "_SCRATCH", 1 << 16)
    tracemalloc.start()
    checkpoint.read("w", dtype=as_type)  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < allowed * array.nbytes + (1 << 18)  # scratch, NumPy's conversion buffer, Python objects


def test_impossible_slices_and_types_are_refused(stored: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match="'float32 \\(7,\\)' \\[7\\] has no such slice: 2 slices for 1 dim"):
        stored.read("float32 (7,)", (slice(None), slice(None)))
    with pytest.raises(CheckpointError, match="has a step"):
        stored.read("float32 (7,)", (slice(0, 7, 2),))
    with pytest.raises(CheckpointError, match="3 is not a slice"):
        stored.read("float32 (7,)", (3,))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="is int64, which is not read as float32"):
        stored.read("int64 (7,)", dtype="float32")
    with pytest.raises(CheckpointError, match="found 'float8'"):
        stored.read("float32 (7,)", dtype="float8")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="has no tensor 'nothing' among its"):
        stored.read("nothing")


@given(data=st.data())
def test_runs_copy_a_box_between_any_two_arrays(data: st.DataObject) -> None:
    source = data.draw(st.lists(st.integers(1, 5), max_size=4))
    box, target, at = [], [], []
    for size in source:
        start = data.draw(st.integers(0, size - 1))
        stop = data.draw(st.integers(start + 1, size))
        at.append(data.draw(st.integers(0, 2)))
        target.append(at[-1] + stop - start + data.draw(st.integers(0, 2)))
        box.append((start, stop))
    original = np.arange(1, math.prod(source) + 1).reshape(source)
    expected = np.zeros(target, int)
    expected[tuple(slice(i, i + b - a) for i, (a, b) in zip(at, box, strict=True))] = original[
        tuple(slice(a, b) for a, b in box)
    ]
    copied = np.zeros(target, int)
    length, sources, targets = runs(tuple(source), tuple(box), tuple(target), at)
    for first, to in zip(sources, targets, strict=True):
        copied.reshape(-1)[to : to + length] = original.reshape(-1)[first : first + length]
    assert np.array_equal(copied, expected)


def test_tiling_faults() -> None:
    top, bottom = ((0, 2), (0, 4)), ((2, 4), (0, 4))
    assert tiling_fault([top, bottom], (4, 4)) is None
    assert tiling_fault([bottom, top, ((2, 2), (0, 4))], (4, 4)) is None
    assert tiling_fault([()], ()) is None
    assert tiling_fault([((0, 0), (0, 3))], (0, 3)) is None
    assert tiling_fault([top], (4, 4)) == "its slices hold 8 of its 16 elements"
    assert tiling_fault([top, ((1, 4), (0, 4))], (4, 4)) == "its slices [0:2, 0:4] and [1:4, 0:4] overlap"
    # The right number of elements, held twice here and not at all there.
    assert "overlap" in (tiling_fault([top, top], (4, 4)) or "")
    assert "outside" in (tiling_fault([top, ((2, 5), (0, 4))], (4, 4)) or "")
    assert "outside" in (tiling_fault([((0, 4),)], (4, 4)) or "")
    assert tiling_fault([(), ()], ()) == "it is held 2 times"
    assert tiling_fault([], ()) == "its slices hold 0 of its 1 elements"
    assert tiling_fault([], (0,)) == "its slices hold 0 of its 0 elements"


@settings(max_examples=150, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    kind=st.sampled_from([("float32", None), ("float32", "bfloat16"), ("bfloat16", None), ("float16", "float32")]),
    scratch=st.integers(1, 64),
    data=st.data(),
)
def test_blocks_joined_are_what_read_returns(
    stored: Checkpoint, shape: tuple[int, ...], kind: tuple[str, Any], scratch: int, data: st.DataObject
) -> None:
    stored_as, dtype = kind
    name = f"{stored_as} {shape}"
    slices = tuple(data.draw(st.lists(st.builds(slice, bound, bound), max_size=len(shape))))
    whole = stored.read(name, slices, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_module, "_SCRATCH", scratch)
        blocks = [block.copy() for block in stored.blocks(name, slices, dtype)]
    joined = np.concatenate(blocks) if blocks and shape else blocks[0] if blocks else whole[:0]
    assert joined.dtype == whole.dtype
    assert joined.tobytes() == whole.tobytes()
