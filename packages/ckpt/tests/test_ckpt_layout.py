"""Layout files, `shard` and `load`: every topology reads every other's directory, by the bytes that it needs alone."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from codellama_ckpt import (
    CheckpointError,
    GlobalSlice,
    Layout,
    finalize,
    load,
    open_checkpoint,
    plan,
    read_layout,
    save_sharded,
    shard,
    training_name,
    verify,
    write_full,
    write_hugging_face,
)
from codellama_ckpt.boxes import Box, Shape
from codellama_ckpt.configuration import expected_shapes
from codellama_ckpt.dtypes import Array
from hypothesis import given, settings
from hypothesis import strategies as st

PIPELINE, DATA, TENSOR, OPTIMIZER = "pipeline", "data", "tensor", "optimizer"
# Pipeline stages, data and tensor parallel ranks, and whether data-parallel ranks share the optimizer's state.
TOPOLOGIES: dict[str, tuple[int, int, int, bool]] = {
    "1": (1, 1, 1, False),
    "tp2": (1, 1, 2, False),
    "tp4": (1, 1, 4, False),
    "pp2": (2, 1, 1, False),
    "dp2 with sharded optimizer": (1, 2, 1, True),
    "tp2 x pp2": (2, 1, 2, False),
    "tp2 x dp2 x pp2": (2, 2, 2, True),
}
MOMENT = training_name("exp_avg")


def cut(size: int, parts: int, part: int) -> tuple[int, int]:
    """Where a part begins and ends; the first ones are longer where it does not come out even."""
    return part * (size // parts) + min(part, size % parts), (part + 1) * (size // parts) + min(part + 1, size % parts)


def boxes(topology: str, shapes: dict[str, Shape], split: dict[str, int | None]) -> Iterator[tuple[str, int, Box, Box]]:
    """(parameter, rank, what the rank holds of it, what it holds of its optimizer's state)."""
    pp, dp, tp, shards_optimizer = TOPOLOGIES[topology]
    for number, (name, shape) in enumerate(shapes.items()):
        stage = number * pp // len(shapes)
        for data, tensor in itertools.product(range(dp), range(tp)):
            box = [(0, size) for size in shape]
            axis = split[name]
            if axis is not None:
                box[axis] = cut(shape[axis], tp, tensor)
            moment = list(box)
            if shards_optimizer and box:
                start, stop = box[0]
                first, last = cut(stop - start, dp, data)
                moment[0] = (start + first, start + last)
            yield name, (stage * dp + data) * tp + tensor, tuple(box), tuple(moment)


def as_slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in box)


def holds(box: Box) -> bool:
    return all(start < stop for start, stop in box)


def held(topology: str, shapes: dict[str, Shape], split: dict[str, int | None]) -> list[dict[str, tuple[slice, ...]]]:
    """What every rank holds, parameters and moments."""
    pp, dp, tp, _ = TOPOLOGIES[topology]
    ranks: list[dict[str, tuple[slice, ...]]] = [{} for _ in range(pp * dp * tp)]
    for name, rank, box, moment in boxes(topology, shapes, split):
        for key, part in ((name, box), (training_name("exp_avg", name), moment)):
            if holds(part):
                ranks[rank][key] = as_slices(part)
    return ranks


def save_as(topology: str, tree: dict[str, Array], split: dict[str, int | None], directory: Path) -> None:
    """Every rank saves what it holds; of copies only the first rank's."""
    ranks = held(topology, {n: a.shape for n, a in tree.items() if not n.startswith(MOMENT)}, split)
    seen = set()
    for rank, parts in enumerate(ranks):
        own = {name: part for name, part in parts.items() if (name, str(part)) not in seen}
        seen |= {(name, str(part)) for name, part in own.items()}
        save_sharded(
            {name: tree[name][part] for name, part in own.items()},
            directory,
            slices={name: GlobalSlice(tree[name].shape, part) for name, part in own.items()},
            state={"step": 7, "loss_scale": 65536.0},
            writer=rank,
            writers=len(ranks),
            token="t",
        )
    if len(ranks) > 1:
        finalize(directory, len(ranks), token="t")


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_every_topology_to_every_other(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Random shapes, with tensor-parallel splits that do not come out even: all 49 pairs read equal tensors."""
    folder = tmp_path_factory.mktemp("topologies")
    names = [f"model.layers.{n}.attention.wq.weight" for n in range(data.draw(st.integers(2, 4)))]
    shapes: dict[str, Shape] = {
        name: tuple(data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=3), label=name)) for name in names
    }
    split = {name: data.draw(st.none() | st.integers(0, len(shape) - 1)) for name, shape in shapes.items()}
    random = np.random.default_rng(0)
    tree: dict[str, Array] = {}
    for name, shape in shapes.items():
        tree[name] = random.standard_normal(shape).astype(data.draw(st.sampled_from(["float32", "float16"])))
        tree[training_name("exp_avg", name)] = random.standard_normal(shape)
    for source in TOPOLOGIES:
        save_as(source, tree, split, folder / source)
        checkpoint = open_checkpoint(folder / source)
        assert set(checkpoint) == set(names)
        assert set(checkpoint.training_names()) == set(tree) - set(names)
        assert checkpoint.state == {"step": 7, "loss_scale": 65536.0}
        for target in TOPOLOGIES:
            for parts in held(target, shapes, split):
                found = load(folder / source, parts)
                assert found.keys() == parts.keys()
                for name, part in parts.items():
                    assert found[name].dtype == tree[name].dtype
                    assert np.array_equal(found[name], tree[name][part]), (source, target, name)


CONFIG = {
    "model_type": "llama",
    "vocab_size": 10,
    "hidden_size": 12,
    "intermediate_size": 14,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A full checkpoint of a small network."""
    random = np.random.default_rng(0)
    save_sharded({}, tmp_path / "empty")
    shapes = expected_shapes(open_checkpoint(tmp_path / "empty"), dict(CONFIG))
    tree = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    save_sharded(tree, tmp_path / "made", metadata={"config": json.dumps(CONFIG)})
    write_full(plan(open_checkpoint(tmp_path / "made")), tmp_path / "full.safetensors")
    return tmp_path / "full.safetensors"


def layout_of(full: Path, topology: str) -> dict[str, object]:
    """A layout file's content, as codellama-plan writes it."""
    checkpoint = open_checkpoint(full)
    shapes = {name: checkpoint.shape(name) for name in checkpoint}
    split = {name: 0 if len(shape) == 2 else None for name, shape in shapes.items()}
    parameters: dict[str, dict[str, object]] = {n: {"shape": list(s), "slices": {}} for n, s in shapes.items()}
    pp, dp, tp, _ = TOPOLOGIES[topology]
    for name, rank, box, _ in boxes(topology, shapes, split):
        parameters[name]["slices"][str(rank)] = [list(bounds) for bounds in box]  # type: ignore[index]
    return {"format": "codellama-layout", "version": 1, "world_size": pp * dp * tp, "parameters": parameters}


def read(path: Path, content: object) -> Layout:
    path.write_text(json.dumps(content))
    return read_layout(path)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_shard_and_merge_come_back_bit_by_bit(tmp_path: Path, full: Path, topology: str) -> None:
    layout = read(tmp_path / "layout.json", layout_of(full, topology))
    shard(plan(open_checkpoint(full)), tmp_path / "shards", layout)
    checkpoint = open_checkpoint(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) == layout.world_size
    assert "agree with their checksums" in verify(checkpoint)
    for rank in range(layout.world_size):  # each rank's file holds what that rank writes
        for name, part in layout.written(rank).items():
            box = tuple((s.start, s.stop) for s in part)
            assert any(p.box == box and f"part_{rank:05d}" in p.file for p in checkpoint.pieces(name))
        assert layout.written(rank).items() <= layout.held(rank).items()
    write_full(plan(checkpoint), tmp_path / "merged.safetensors")
    assert (tmp_path / "merged.safetensors").read_bytes() == full.read_bytes()


def test_one_door_for_sharded_full_and_hugging_face(tmp_path: Path, full: Path) -> None:
    shard(plan(open_checkpoint(full)), tmp_path / "shards", read(tmp_path / "l.json", layout_of(full, "tp4")))
    write_full(plan(open_checkpoint(full)), tmp_path / "full.ckpt")
    write_hugging_face(plan(open_checkpoint(full)), tmp_path / "hf", max_shard_size=2000)
    wanted = {
        "model.layers.1.attention.wo.weight": (slice(2, 9), slice(3, 5)),
        "lm_head.weight": (),
        "model.norm_out.weight": (slice(1, 2),),
    }
    expected = load(full, wanted)
    for path in ("shards", "full.ckpt", "hf"):
        found = load(tmp_path / path, wanted, verify=True)
        assert all(np.array_equal(found[name], expected[name]) for name in wanted), path


def test_another_topology_reads_only_the_bytes_it_needs(
    tmp_path: Path, full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved by 4 tensor-parallel ranks, read by the 8 of tp2 x dp2 x pp2: each reads its own slices and no more."""
    shard(plan(open_checkpoint(full)), tmp_path / "shards", read(tmp_path / "l.json", layout_of(full, "tp4")))
    wanted = read(tmp_path / "m.json", layout_of(full, "tp2 x dp2 x pp2"))
    real, counted = os.preadv, [0]

    def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        counted[0] += (done := real(descriptor, buffers, offset))
        return done

    monkeypatch.setattr(os, "preadv", preadv)
    for rank in range(wanted.world_size):
        counted[0] = 0
        arrays = load(tmp_path / "shards", wanted.held(rank))
        assert counted[0] == sum(array.nbytes for array in arrays.values()) > 0


def test_what_a_layout_says(tmp_path: Path, full: Path) -> None:
    layout = read(tmp_path / "l.json", layout_of(full, "tp2 x dp2 x pp2"))
    assert layout.world_size == 8
    name = "model.tok_embeddings.embedding_weight"
    assert [rank for rank in range(8) if name in layout.held(rank)] == [0, 1, 2, 3]
    assert layout.held(2)[name] == (slice(0, 5), slice(0, 12))
    assert [rank for rank in range(8) if name in layout.written(rank)] == [0, 1]


FAULTS: dict[str, tuple[Callable[[dict], object], str]] = {  # type: ignore[type-arg]
    "format": (lambda c: c.update(format="x"), "expected format 'codellama-layout', version 1, found format 'x'"),
    "version": (lambda c: c.update(version=2), "version 2"),
    "a key": (lambda c: c.update(ranks=4), "unknown key 'ranks'"),
    "no ranks": (lambda c: c.update(world_size=0), "world_size must be from 1"),
    "too many ranks": (lambda c: c.update(world_size=2**40), "world_size must be from 1"),
    "a rank beyond": (lambda c: first(c)["slices"].update({"4": [[0, 1], [0, 12]]}), "a rank is from 0 to 3"),
    "a rank with zeros": (lambda c: first(c)["slices"].update({"00": [[0, 1], [0, 12]]}), "found '00'"),
    "a rank of another script": (lambda c: first(c)["slices"].update({"٣": [[0, 1], [0, 12]]}), "a rank is from 0"),
    "a word": (lambda c: first(c)["slices"].update({"one": [[0, 1], [0, 12]]}), "found 'one'"),
    "dimensions": (lambda c: first(c)["slices"].update({"0": [[0, 3]]}), "1 dimensions, expected 2"),
    "backwards": (lambda c: first(c)["slices"].update({"0": [[3, 0], [0, 12]]}), r"expected \[start, stop\]"),
    "negative": (lambda c: first(c)["slices"].update({"0": [[-1, 3], [0, 12]]}), "expected a whole number from 0"),
    "outside": (lambda c: first(c)["slices"].update({"3": [[8, 11], [0, 12]]}), "reaches outside"),
    "a gap": (lambda c: first(c)["slices"].pop("2"), "hold 96 of its 120 elements"),
    "half an overlap": (lambda c: first(c)["slices"].update({"2": [[5, 8], [0, 12]]}), "overlap"),
    "empty": (lambda c: first(c)["slices"].update({"0": [[0, 0], [0, 12]], "1": [[0, 6], [0, 12]]}), "empty slice"),
    "a field": (lambda c: first(c).update(dtype="float32"), "expected shape and slices, found dtype"),
    "no object": (lambda c: c.update(parameters=[]), "parameters: expected an object"),
    "terabytes": (lambda c: first(c).update(shape=[2**40, 2**20]), "elements"),
}


def first(content: dict) -> dict:  # type: ignore[type-arg]
    return content["parameters"]["model.tok_embeddings.embedding_weight"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("case", FAULTS)
def test_faults_of_a_layout_are_reported_in_one_line(tmp_path: Path, full: Path, case: str) -> None:
    content = layout_of(full, "tp4")
    FAULTS[case][0](content)
    with pytest.raises(CheckpointError, match=FAULTS[case][1]) as caught:
        read(tmp_path / "l.json", content)
    assert "\n" not in str(caught.value)


def test_layout_and_checkpoint_must_be_of_one_network(tmp_path: Path, full: Path) -> None:
    content = layout_of(full, "tp2")
    parameters = content["parameters"]
    assert isinstance(parameters, dict)
    parameters["stranger"] = parameters.pop("lm_head.weight")
    with pytest.raises(CheckpointError, match=r"l\.json: 1 missing: stranger; 1 surplus: lm_head\.weight"):
        shard(plan(open_checkpoint(full)), tmp_path / "shards", read(tmp_path / "l.json", content))
    assert not (tmp_path / "shards").exists()


def test_a_failing_shard_leaves_nothing(tmp_path: Path, full: Path) -> None:
    job = plan(open_checkpoint(full))
    layout = read(tmp_path / "l.json", layout_of(full, "tp2"))
    seen = sorted(tmp_path.iterdir())
    calls = [0]

    def progress(_: int) -> None:
        calls[0] += 1
        if calls[0] == 40:  # within the second rank
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shard(job, tmp_path / "shards", layout, progress=progress)
    assert sorted(tmp_path.iterdir()) == seen


def test_training_state_is_beside_the_parameters(tmp_path: Path) -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    generator = np.random.default_rng(3)
    state = {"step": 3, "data": {"epoch": 1, "row": 17}, "random": generator.bit_generator.state, "loss_scale": 2.0**16}
    moment = training_name("exp_avg", "w")
    save_sharded({"w": weight, moment: weight * 2, training_name("rng"): np.arange(4)}, tmp_path / "c", state=state)
    checkpoint = open_checkpoint(tmp_path / "c")
    assert checkpoint.names() == ("w",)
    assert set(checkpoint.training_names()) == {"training/exp_avg/w", "training/rng"}
    assert len(checkpoint) == 1 and moment not in checkpoint
    assert checkpoint.check({"w": (2, 3)}) == ()
    assert np.array_equal(checkpoint.read(moment, (slice(1, 2),)), weight[1:] * 2)
    assert checkpoint.state == state
    again = np.random.default_rng()
    again.bit_generator.state = checkpoint.state["random"]  # type: ignore[assignment]
    assert again.random() == generator.random()


def test_states_that_can_not_be_saved_or_differ(tmp_path: Path) -> None:
    for state in ({"x": np.float32(1)}, {"x": float("nan")}, {"x": {1, 2}}):
        with pytest.raises(CheckpointError, match="the state can not be written as JSON"):
            save_sharded({}, tmp_path / "c", state=state)
    assert not list(tmp_path.iterdir())
    save_sharded({}, tmp_path / "c", state={"step": 1}, writer=0, writers=2, token="t")
    save_sharded({}, tmp_path / "c", state={"step": 2}, writer=1, writers=2, token="t")
    with pytest.raises(CheckpointError, match="writers disagree on state 'step': 1 and 2"):
        finalize(tmp_path / "c", 2, token="t")
