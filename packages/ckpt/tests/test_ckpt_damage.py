"""A thousand flipped bits and truncations, and files made by somebody who means harm: all are reported, none loads."""

from __future__ import annotations

import json
import resource
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from codellama_ckpt import (
    CheckpointError,
    GlobalSlice,
    TensorEntry,
    finalize,
    open_checkpoint,
    save_sharded,
    to_bfloat16,
    training_name,
    verify,
    write_safetensors,
)
from codellama_ckpt.dtypes import Array

random = np.random.default_rng(0)
TREE: dict[str, Array] = {
    "model.tok_embeddings.embedding_weight": random.standard_normal((12, 6)).astype(np.float32),
    "model.norm_out.weight": random.standard_normal(7).astype(np.float16),
    training_name("exp_avg", "model.norm_out.weight"): random.standard_normal(7),
    training_name("rng"): np.arange(5),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sound") / "c"
    for writer, rows in enumerate([slice(0, 5), slice(5, 12)]):
        name = "model.tok_embeddings.embedding_weight"
        others = {key: array for key, array in TREE.items() if key != name and writer == 1}
        save_sharded(
            {name: TREE[name][rows], **others},
            directory,
            slices={name: GlobalSlice((12, 6), (rows,))},
            metadata={"config": '{"hidden_size": 6}'},
            state={"step": 30},
            writer=writer,
            writers=2,
            token="t",
        )
    finalize(directory, 2, token="t")
    return directory


def read_all(path: Path) -> None:
    checkpoint = open_checkpoint(path, verify=True)
    for name in (*checkpoint.names(), *checkpoint.training_names()):
        checkpoint.read(name)


def damaged(content: bytes, kind: str, draw: np.random.Generator) -> bytes:
    if kind == "truncated":
        return content[: int(draw.integers(len(content)))]
    changed = bytearray(content)
    bit = int(draw.integers(8 * len(content)))
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_a_thousand_damages_of_a_sharded_checkpoint(tmp_path: Path, sound: Path) -> None:
    files = sorted(sound.iterdir())
    sizes = np.array([file.stat().st_size for file in files])
    draw = np.random.default_rng(1)
    shutil.copytree(sound, tmp_path / "c")
    read_all(tmp_path / "c")
    verify(open_checkpoint(tmp_path / "c"))
    for number in range(1000):
        # By size, so that every byte of the checkpoint is as likely; each tenth the smallest file, COMPLETE.
        file = files[0] if number % 10 == 0 else draw.choice(files, p=sizes / sizes.sum())
        content = damaged(file.read_bytes(), "truncated" if number % 4 == 0 else "flipped", draw)
        target = tmp_path / "c" / file.name
        target.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            verify(open_checkpoint(tmp_path / "c"))
        assert "\n" not in str(caught.value)
        with pytest.raises(CheckpointError):
            read_all(tmp_path / "c")
        shutil.copyfile(file, target)
    read_all(tmp_path / "c")


def test_damages_of_a_full_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    brain = to_bfloat16(random.standard_normal((3, 4)).astype(np.float32))
    entries = [TensorEntry(name, array.dtype.name, array.shape, array.copy) for name, array in TREE.items()]
    write_safetensors(path, [*entries, TensorEntry("b", "bfloat16", (3, 4), brain.copy)], {"config": '{"a": 8}'})
    content = path.read_bytes()
    read_all(path)
    draw = np.random.default_rng(2)
    for number in range(400):
        path.write_bytes(damaged(content, "truncated" if number % 4 == 0 else "flipped", draw))
        with pytest.raises(CheckpointError):
            verify(open_checkpoint(path))
        with pytest.raises(CheckpointError):
            read_all(path)


def test_damage_is_named(tmp_path: Path, sound: Path) -> None:
    shutil.copytree(sound, tmp_path / "c")
    for part in (tmp_path / "c").glob("*.safetensors"):
        content = bytearray(part.read_bytes())
        content[-1] ^= 1
        part.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        verify(open_checkpoint(tmp_path / "c"))
    assert str(caught.value).endswith(
        "is damaged: 2 checksums differ: model.tok_embeddings.embedding_weight in part_00000_of_00002.safetensors, "
        "model.norm_out.weight in part_00001_of_00002.safetensors"
    )


def test_only_what_is_read_is_verified_and_only_once(tmp_path: Path, sound: Path) -> None:
    shutil.copytree(sound, tmp_path / "c")
    part = tmp_path / "c/part_00000_of_00002.safetensors"
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    checkpoint = open_checkpoint(tmp_path / "c", verify=True)
    name = "model.tok_embeddings.embedding_weight"
    assert np.array_equal(checkpoint.read("model.norm_out.weight"), TREE["model.norm_out.weight"])
    assert np.array_equal(checkpoint.read(name, (slice(5, 12),)), TREE[name][5:])
    with pytest.raises(CheckpointError, match=r"part_00000_of_00002\.safetensors is damaged: the checksum of tensor"):
        checkpoint.read(name, (slice(0, 1),))
    assert open_checkpoint(tmp_path / "c").read(name, (slice(0, 1),)).shape == (1, 6)  # without verification


def sign(directory: Path, change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    """Change the index and make COMPLETE agree with it, as somebody who knows the format would."""
    index = json.loads((directory / "index.json").read_text())
    change(index)
    content = json.dumps(index).encode()
    (directory / "index.json").write_bytes(content)
    (directory / "COMPLETE").write_text(f"{zlib.crc32(content):08x}\n")


def renamed(index: dict, to: str) -> None:  # type: ignore[type-arg]
    old = next(iter(index["files"]))
    index["files"][to] = index["files"].pop(old)
    for tensor in index["tensors"].values():
        for piece in tensor["slices"]:
            piece["file"] = to if piece["file"] == old else piece["file"]


def enlarged(index: dict) -> None:  # type: ignore[type-arg]
    tensor = index["tensors"]["model.norm_out.weight"]
    tensor["shape"] = [2**40]
    tensor["slices"][0] |= {"box": [[0, 2**40]], "bytes": 2 * 2**40}


def crowded(index: dict) -> None:  # type: ignore[type-arg]
    """Slices enough that comparing each with each in one go would take 2 GB."""
    count = 12_000
    piece = index["tensors"]["model.norm_out.weight"]["slices"][0]
    files = {f"f{n}": 1 for n in range(count)}
    slices = [{**piece, "file": file, "box": [[0, 7]]} for file in files]
    index["files"] |= files
    index["tensors"]["model.norm_out.weight"]["slices"] = slices


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: renamed(i, "../part.safetensors"), "is not the name of a file beside it"),
        (lambda i: renamed(i, "/etc/passwd"), "is not the name of a file beside it"),
        (lambda i: renamed(i, ".."), "is not the name of a file beside it"),
        (lambda i: renamed(i, "part\0"), "is not the name of a file beside it"),
        (enlarged, "is not what index.json says it is"),
        (crowded, "overlap"),
        (lambda i: i.update(state=[1]), "state: expected an object"),
    ],
)
def test_a_hostile_index(tmp_path: Path, sound: Path, change: Callable[[dict], object], message: str) -> None:  # type: ignore[type-arg]
    shutil.copytree(sound, tmp_path / "c")
    shutil.copy(tmp_path / "c/part_00000_of_00002.safetensors", tmp_path / "part.safetensors")
    sign(tmp_path / "c", change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "c")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_a_link_out_of_the_directory_is_refused(tmp_path: Path, sound: Path) -> None:
    shutil.copytree(sound, tmp_path / "c")
    part = tmp_path / "c/part_00000_of_00002.safetensors"
    part.rename(tmp_path / "elsewhere")
    part.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="is a link; the files of a sharded checkpoint lie in its directory"):
        open_checkpoint(tmp_path / "c")


def safetensors(path: Path, header: object, data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            {
                "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
            },
            "overlaps the tensor before it",
        ),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, "is truncated"),
        ({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, "is truncated"),
        ({"a": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 2**63]}}, "no array has the shape"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, "expected a whole number from 0"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}, "leaves a hole"),
    ],
)
def test_a_hostile_safetensors_header(tmp_path: Path, header: object, message: str) -> None:
    safetensors(tmp_path / "x.safetensors", header, bytes(8))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "x.safetensors")


def test_a_hostile_configuration_allocates_nothing(tmp_path: Path) -> None:
    from codellama_ckpt import plan

    (tmp_path / "hf").mkdir()
    safetensors(
        tmp_path / "hf/model.safetensors",
        {
            "model.layers.999999999.self_attn.q_proj.weight": {"dtype": "U8", "shape": [1, 1], "data_offsets": [0, 1]},
            "model.layers.0.self_attn.k_proj.weight": {"dtype": "U8", "shape": [1, 1], "data_offsets": [1, 2]},
            "model.layers.0.mlp.gate_proj.weight": {"dtype": "U8", "shape": [1, 1], "data_offsets": [2, 3]},
            "model.embed_tokens.weight": {"dtype": "U8", "shape": [1, 1], "data_offsets": [3, 4]},
        },
        bytes(4),
    )
    with pytest.raises(CheckpointError, match="a layer 999,999,999 among 4 tensors"):
        plan(open_checkpoint(tmp_path / "hf"))


def test_checksums_that_do_not_match_their_header(tmp_path: Path) -> None:
    for value in ("", "xyz", "00000000", "00000000 11111111 22222222", "0000000g 00000000"):
        header = {
            "__metadata__": {"crc32": value},
            "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        }
        safetensors(tmp_path / "x.safetensors", header, bytes(8))
        with pytest.raises(CheckpointError, match="its header's checksum differs"):
            open_checkpoint(tmp_path / "x.safetensors")
