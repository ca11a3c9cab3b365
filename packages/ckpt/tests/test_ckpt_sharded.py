"""Sharded checkpoints: any topology reads any other's, bit by bit; contradictions and damage are refused."""

from __future__ import annotations

import json
import shutil
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from codellama_ckpt import (
    Checkpoint,
    CheckpointError,
    GlobalSlice,
    LazyTensor,
    finalize,
    open_checkpoint,
    save_sharded,
    to_bfloat16,
    verify_sharded,
)
from codellama_ckpt.dtypes import Array
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

rng = np.random.default_rng(2)
TREE: dict[str, Array] = {
    "model.tok_embeddings.embedding_weight": rng.standard_normal((12, 6)).astype(np.float32),
    "model.layers.0.attention.wo.weight": rng.standard_normal((6, 9)).astype(np.float16),
    "model.norm_out.weight": rng.standard_normal(7).astype(np.float32),
    "step": np.array(30),
    "empty": np.zeros((0, 4), np.float32),
}
BRAIN = to_bfloat16(rng.standard_normal((8, 5)).astype(np.float32))
EVERYTHING: dict[str, Array | LazyTensor] = {**TREE, "brain": LazyTensor("bfloat16", (8, 5), lambda: BRAIN)}


def same_bits(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def assert_holds_everything(checkpoint: Checkpoint) -> None:
    assert checkpoint.kind == "sharded"
    assert set(checkpoint) == set(EVERYTHING)
    for name, array in TREE.items():
        assert same_bits(checkpoint.read(name), array)
        assert checkpoint.dtype(name) == array.dtype.name
    assert checkpoint.dtype("brain") == "bfloat16"
    assert same_bits(checkpoint.read("brain", dtype="stored"), BRAIN)


def test_round_trip_of_one_writer(tmp_path: Path) -> None:
    directory = tmp_path / "step_000030"
    save_sharded(EVERYTHING, directory, metadata={"step": "30"})
    assert sorted(path.name for path in directory.iterdir()) == [
        "COMPLETE",
        "index.json",
        "part_00000_of_00001.safetensors",
    ]
    assert list(tmp_path.iterdir()) == [directory]
    checkpoint = open_checkpoint(directory)
    assert checkpoint.metadata == {"step": "30"}
    assert_holds_everything(checkpoint)
    assert verify_sharded(directory) == sum(array.nbytes for array in TREE.values()) + BRAIN.nbytes


def test_parts_are_ordinary_safetensors_files(tmp_path: Path) -> None:
    save_sharded(TREE, tmp_path / "c")
    official = load_file(tmp_path / "c" / "part_00000_of_00001.safetensors")
    assert all(same_bits(official[name], array) for name, array in TREE.items())


def test_index_says_what_is_where(tmp_path: Path) -> None:
    save_sharded(TREE, tmp_path / "c", metadata={"a": "b"}, token="t0")
    index = json.loads((tmp_path / "c" / "index.json").read_text())
    assert index["format"] == "codellama-sharded"
    assert index["version"] == 1
    assert index["metadata"] == {"a": "b"}
    file = "part_00000_of_00001.safetensors"
    assert index["files"] == {file: (tmp_path / "c" / file).stat().st_size}
    array = TREE["model.norm_out.weight"]
    assert index["tensors"]["model.norm_out.weight"] == {
        "dtype": "float32",
        "shape": [7],
        "slices": [{"file": file, "box": [[0, 7]], "bytes": 28, "crc32": f"{zlib.crc32(array.tobytes()):08x}"}],
    }


def save_by_three(directory: Path, token: str = "run1") -> None:
    """Rows of the embedding on writers 0 and 1, columns of wo on all three, the rest here and there."""
    embedding, wo = TREE["model.tok_embeddings.embedding_weight"], TREE["model.layers.0.attention.wo.weight"]
    columns = [slice(0, 2), slice(2, 3), slice(3, 9)]
    trees: list[dict[str, Array | LazyTensor]] = [{}, {}, {}]
    places: list[dict[str, GlobalSlice]] = [{}, {}, {}]
    for writer, part in enumerate(columns):
        trees[writer]["model.layers.0.attention.wo.weight"] = wo[:, part]
        places[writer]["model.layers.0.attention.wo.weight"] = GlobalSlice(wo.shape, (slice(None), part))
    for writer, rows in enumerate([slice(0, 5), slice(5, 12)]):
        trees[writer]["model.tok_embeddings.embedding_weight"] = embedding[rows]
        places[writer]["model.tok_embeddings.embedding_weight"] = GlobalSlice((12, 6), (rows,))
        block = (slice(0, 8), slice(0, 2) if writer else slice(2, 5))
        trees[writer]["brain"] = LazyTensor("bfloat16", BRAIN[block].shape, BRAIN[block].copy)
        places[writer]["brain"] = GlobalSlice((8, 5), block)
    trees[2] |= {name: TREE[name] for name in ("model.norm_out.weight", "step", "empty")}
    for writer in (2, 0, 1):  # in any order
        save_sharded(
            trees[writer],
            directory,
            slices=places[writer],
            metadata={"step": "30"} if writer == 0 else None,
            writer=writer,
            writers=3,
            token=token,
        )
        assert not directory.exists()
    finalize(directory, 3, token=token)


def test_what_three_writers_saved_is_one_checkpoint(tmp_path: Path) -> None:
    save_by_three(tmp_path / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert len(list((tmp_path / "c").iterdir())) == 5
    checkpoint = open_checkpoint(tmp_path / "c")
    assert checkpoint.metadata == {"step": "30"}
    assert_holds_everything(checkpoint)
    assert verify_sharded(tmp_path / "c") == sum(array.nbytes for array in TREE.values()) + BRAIN.nbytes


@pytest.fixture(scope="module")
def by_three(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory = tmp_path_factory.mktemp("three") / "c"
    save_by_three(directory)
    return open_checkpoint(directory)


bound = st.none() | st.integers(-13, 13)


@settings(max_examples=200)
@given(name=st.sampled_from(sorted(EVERYTHING)), data=st.data())
def test_any_slices_of_any_topology_equal_numpys(by_three: Checkpoint, name: str, data: st.DataObject) -> None:
    whole = TREE.get(name, BRAIN)
    slices = tuple(data.draw(st.lists(st.builds(slice, bound, bound), max_size=whole.ndim)))
    assert np.array_equal(by_three.read(name, slices, dtype="stored"), whole[slices])
    if name == "brain":
        values = np.left_shift(whole, 16, dtype=np.uint32).view(np.float32)
        assert np.array_equal(by_three.read(name, slices), values[slices])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_grid_of_writers(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    shape = (data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6)))
    array = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape)
    cuts = [sorted({0, size, *data.draw(st.lists(st.integers(0, size), max_size=2))}) for size in shape]
    grid = [
        (slice(a, b), slice(c, d))
        for a, b in zip(cuts[0], cuts[0][1:], strict=False)
        for c, d in zip(cuts[1], cuts[1][1:], strict=False)
    ]
    directory = tmp_path_factory.mktemp("grid") / "c"
    for writer, place in enumerate(grid):
        save_sharded(
            {"w": array[place]},
            directory,
            slices={"w": GlobalSlice(shape, place)},
            writer=writer,
            writers=len(grid),
            token="t",
        )
    if len(grid) > 1:
        finalize(directory, len(grid), token="t")
    assert np.array_equal(open_checkpoint(directory).read("w"), array)


def test_lazy_tensors_are_loaded_once_and_one_at_a_time(tmp_path: Path) -> None:
    size, loads = 1 << 20, []

    def lazy(name: str) -> Callable[[], Array]:
        return lambda: loads.append(name) or np.ones(size, np.uint8)  # type: ignore[func-returns-value]

    names = [f"t{i}" for i in range(6)]
    tree = {name: LazyTensor("uint8", (size,), lazy(name)) for name in names}
    tracemalloc.start()
    save_sharded(tree, tmp_path / "c")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert loads == names
    assert peak < 1.5 * size  # the largest tensor, and half of it for everything else


def test_bare_callables_are_saved(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_sharded({"w": lambda: array[:, :2]}, tmp_path / "c")
    assert np.array_equal(open_checkpoint(tmp_path / "c").read("w"), array[:, :2])


# What contradicts itself


def test_writers_must_cover_every_tensor_exactly_once(tmp_path: Path) -> None:
    def save(token: str, rows: list[slice]) -> None:
        for writer, part in enumerate(rows):
            array = np.zeros(len(range(4)[part]), np.float32)
            save_sharded(
                {"w": array},
                tmp_path / "c",
                slices={"w": GlobalSlice((4,), (part,))},
                writer=writer,
                writers=2,
                token=token,
            )
        finalize(tmp_path / "c", 2, token=token)

    with pytest.raises(CheckpointError, match="'w': its slices hold 3 of its 4 elements"):
        save("a", [slice(0, 2), slice(2, 3)])
    with pytest.raises(CheckpointError, match=r"'w': its slices \[0:2\] and \[1:4\] overlap"):
        save("b", [slice(0, 2), slice(1, 4)])
    with pytest.raises(CheckpointError, match=r"'w': its slices .* overlap"):
        save("c", [slice(0, 4), slice(0, 4)])
    assert list(tmp_path.iterdir()) == []


def test_writers_must_agree(tmp_path: Path) -> None:
    def pair(token: str, first: dict[str, object], second: dict[str, object]) -> None:
        for writer, arguments in enumerate([first, second]):
            save_sharded(directory=tmp_path / "c", writer=writer, writers=2, token=token, **arguments)  # type: ignore[arg-type]
        finalize(tmp_path / "c", 2, token=token)

    half = {"w": GlobalSlice((4,), (slice(0, 2),))}, {"w": GlobalSlice((4,), (slice(2, 4),))}
    single, double = {"w": np.zeros(2, np.float32)}, {"w": np.zeros(2, np.float64)}
    with pytest.raises(CheckpointError, match=r"disagree on tensor 'w': float32 \[4\] and float64 \[4\]"):
        pair("a", {"tree": single, "slices": half[0]}, {"tree": double, "slices": half[1]})
    with pytest.raises(CheckpointError, match=r"disagree on tensor 'w': float32 \[4\] and float32 \[2\]"):
        pair("b", {"tree": single, "slices": half[0]}, {"tree": single})
    with pytest.raises(CheckpointError, match="disagree on metadata 'step': '1' and '2'"):
        pair("c", {"tree": {}, "metadata": {"step": "1"}}, {"tree": {}, "metadata": {"step": "2"}})
    assert list(tmp_path.iterdir()) == []


def test_writers_of_two_saves_never_mix(tmp_path: Path) -> None:
    save_sharded(TREE, tmp_path / "c", writer=0, writers=2, token="one")
    save_sharded({}, tmp_path / "c", writer=1, writers=2, token="two")
    with pytest.raises(CheckpointError, match="writer 1 of 2 left no part"):
        finalize(tmp_path / "c", 2, token="one")
    with pytest.raises(CheckpointError, match="writer 0 of 2 left no part"):
        finalize(tmp_path / "c", 2, token="two")
    with pytest.raises(CheckpointError, match="no writer of the save 'two'"):
        finalize(tmp_path / "c", 2, token="two")
    assert list(tmp_path.iterdir()) == []


def test_a_part_is_written_once(tmp_path: Path) -> None:
    save_sharded(TREE, tmp_path / "c", writer=0, writers=2, token="t")
    with pytest.raises(CheckpointError, match="each save needs a token of its own"):
        save_sharded({}, tmp_path / "c", writer=0, writers=2, token="t")
    save_sharded({}, tmp_path / "c", writer=1, writers=2, token="t")
    finalize(tmp_path / "c", 2, token="t")
    assert set(open_checkpoint(tmp_path / "c")) == set(TREE)


def test_impossible_arguments(tmp_path: Path) -> None:
    array = np.zeros((2, 3), np.float32)
    with pytest.raises(CheckpointError, match="writer 2 of 2: expected a writer from 0 to 1"):
        save_sharded({}, tmp_path / "c", writer=2, writers=2, token="t")
    with pytest.raises(CheckpointError, match="2 writers need one token"):
        save_sharded({}, tmp_path / "c", writer=0, writers=2)
    with pytest.raises(CheckpointError, match=r"a token is 1 to 64 letters.*found '\.\./x'"):
        save_sharded({}, tmp_path / "c", token="../x")
    with pytest.raises(CheckpointError, match="does not exist"):
        save_sharded({}, tmp_path / "none" / "c")
    with pytest.raises(CheckpointError, match="slices are given for 'v'"):
        save_sharded({"w": array}, tmp_path / "c", slices={"v": GlobalSlice((2, 3), ())})
    with pytest.raises(CheckpointError, match=r"'w': the slice given is \[1, 3\], its array \[2, 3\]"):
        save_sharded({"w": array}, tmp_path / "c", slices={"w": GlobalSlice((4, 3), (slice(0, 1),))})
    with pytest.raises(CheckpointError, match=r"'w' .*has a step"):
        save_sharded({"w": array}, tmp_path / "c", slices={"w": GlobalSlice((4, 3), (slice(0, 4, 2),))})
    with pytest.raises(CheckpointError, match="complex64 is not an element type"):
        save_sharded({"w": array.astype(np.complex64)}, tmp_path / "c")
    with pytest.raises(CheckpointError, match="unknown dtype 'float8'"):
        save_sharded({"w": LazyTensor("float8", (1,), lambda: array)}, tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


# What is in the way


def test_existing_checkpoint_is_replaced_only_on_request(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    save_sharded({"w": np.zeros(2, np.float32)}, directory)
    with pytest.raises(CheckpointError, match="is a checkpoint already"):
        save_sharded({"w": np.ones(2, np.float32)}, directory)
    assert not open_checkpoint(directory).read("w").any()
    save_sharded({"w": np.ones(2, np.float32)}, directory, overwrite=True)
    assert open_checkpoint(directory).read("w").all()
    assert list(tmp_path.iterdir()) == [directory]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_checkpoint_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "file").write_text("thesis")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis").write_text("thesis")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "folder", "link"):
        with pytest.raises(CheckpointError, match="is no sharded checkpoint; move it away"):
            save_sharded({}, tmp_path / name, overwrite=overwrite)
    assert (tmp_path / "folder" / "thesis").read_text() == "thesis"
    assert len(list(tmp_path.iterdir())) == 3


def test_empty_directory_is_filled(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    save_sharded(EVERYTHING, tmp_path / "c")
    assert_holds_everything(open_checkpoint(tmp_path / "c"))


# What is damaged


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_by_three(tmp_path / "c")
    return tmp_path / "c"


def rewrite_index(directory: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Change the index and keep the marker consistent, so that the change itself has to be noticed."""
    index = json.loads((directory / "index.json").read_text())
    change(index)
    content = json.dumps(index).encode()
    (directory / "index.json").write_bytes(content)
    (directory / "COMPLETE").write_text(f"{zlib.crc32(content):08x}\n")


def test_without_its_marker_it_is_not_complete(saved: Path) -> None:
    (saved / "COMPLETE").unlink()
    with pytest.raises(CheckpointError, match="is not complete: it has no COMPLETE marker"):
        open_checkpoint(saved)


def test_damaged_index_is_noticed(saved: Path) -> None:
    content = (saved / "index.json").read_bytes()
    (saved / "index.json").write_bytes(content.replace(b"[12,6]", b"[12,7]"))
    with pytest.raises(CheckpointError, match=r"index\.json is damaged: its checksum"):
        open_checkpoint(saved)
    (saved / "index.json").unlink()
    with pytest.raises(CheckpointError, match="No such file"):
        open_checkpoint(saved)


def test_missing_and_truncated_parts(saved: Path) -> None:
    part = saved / "part_00001_of_00003.safetensors"
    content = part.read_bytes()
    part.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=r"part_00001_of_00003\.safetensors has .* bytes, index\.json says"):
        open_checkpoint(saved)
    part.unlink()
    with pytest.raises(CheckpointError, match=r"part_00001_of_00003\.safetensors is missing"):
        open_checkpoint(saved)


def test_part_of_another_save_is_noticed(tmp_path: Path, saved: Path) -> None:
    save_by_three(tmp_path / "d", token="run2")  # the same tensors and sizes
    part = "part_00001_of_00003.safetensors"
    shutil.copy(tmp_path / "d" / part, saved / part)
    with pytest.raises(CheckpointError, match=r"belongs to another save: 'd.run2', index\.json is of 'c.run1'"):
        open_checkpoint(saved)


def test_flipped_bit_is_found_by_verify(saved: Path) -> None:
    part = saved / "part_00001_of_00003.safetensors"
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    open_checkpoint(saved)  # costs no reading
    with pytest.raises(CheckpointError, match=r"is damaged: 1 checksums differ: \S+ in part_00001_of_00003\.safet"):
        verify_sharded(saved)


WO = "model.layers.0.attention.wo.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i.update(version=2), "expected format 'codellama-sharded', version 1, found .* version 2"),
        (lambda i: i.update(format="x"), "found format 'x'"),
        (lambda i: i.update(save=3), "save: expected a string"),
        (lambda i: i.update(metadata={"a": 1}), "metadata, 'a': expected a string"),
        (lambda i: i["files"].update({"../x": 1}), "'../x' is not the name of a file beside it"),
        (lambda i: i["files"].update({"y": -1}), "expected a whole number from 0"),
        (lambda i: i["tensors"][WO].update(dtype="int3"), "unknown dtype 'int3'"),
        (lambda i: i["tensors"][WO].update(dtype="float32"), "bytes do not make"),
        (lambda i: i["tensors"][WO].update(dtype="bfloat16"), "is not what index.json says it is"),
        (lambda i: i["tensors"][WO].update(shape=[6, 10]), "its slices hold 54 of its 60 elements"),
        (lambda i: i["tensors"][WO].update(slices=[]), "its slices hold 0 of its 54"),
        (lambda i: i["tensors"][WO]["slices"][0].update(file="z"), "file 'z' is not among the index's files"),
        (lambda i: i["tensors"][WO]["slices"][0].update(box=[[0, 6]]), "1 dimensions, expected 2"),
        (lambda i: i["tensors"][WO]["slices"][0].update(box=[[6, 0], [0, 2]]), r"expected \[start, stop\]"),
        (
            lambda i: i["tensors"][WO]["slices"][1].update(file=i["tensors"][WO]["slices"][0]["file"]),
            "has two slices in part_00000_of_00003.safetensors",
        ),
        (lambda i: i["tensors"].pop(WO), "is not what index.json says it is"),
    ],
)
def test_inconsistent_index_is_refused(saved: Path, change: Callable[[dict[str, object]], None], message: str) -> None:
    rewrite_index(saved, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(saved)
    assert len(str(caught.value).splitlines()) == 1
