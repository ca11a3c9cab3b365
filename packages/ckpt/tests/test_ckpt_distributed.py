"""MindFormers' distributed checkpoints against MindSpore's own `merge_pipeline_strategys` and `transform_checkpoints`.

Both directions: MindSpore merges what we write, and we merge what MindSpore splits by our strategy files.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from codellama_ckpt import CheckpointError, open_checkpoint, read_layout, save_sharded, write_distributed
from codellama_ckpt.dtypes import Array
from codellama_ckpt.strategy import Layout, Strategy, encode_strategy, layout_of, read_strategies

random = np.random.default_rng(0)
SHAPES = {
    "model.tok_embeddings.embedding_weight": (16, 8),
    "model.layers.0.attention.wq.weight": (8, 8),
    "model.layers.0.attention.wo.weight": (8, 16),
    "model.layers.0.ffn_norm.weight": (8,),
    "model.layers.1.attention.wq.weight": (8, 8),
    "model.layers.1.attention.wo.weight": (8, 16),
    "model.norm_out.weight": (8,),
    "lm_head.weight": (16, 8),
}
TENSORS: dict[str, Array] = {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
# Which dimension tensor parallel splits; of the others every rank of the group has a copy.
SPLIT = {"embedding_weight": 0, "wq.weight": 0, "wo.weight": 1, "lm_head.weight": 0}


def topology(pp: int, dp: int, tp: int, shard_optimizer: bool = False) -> Iterator[tuple[str, int, list[list[int]]]]:
    """(parameter, rank, box) of pipeline x data x tensor parallel, tensor parallel innermost, as MindFormers has it.

    With `shard_optimizer` (its `enable_parallel_optimizer`) each data-parallel rank keeps a part of dimension 0.
    """
    for name, shape in SHAPES.items():
        first = name.startswith(("model.tok", "model.layers.0"))
        stage = 0 if first else pp - 1
        for data, tensor in itertools.product(range(dp), range(tp)):
            box = [[0, size] for size in shape]
            axis = next((axis for suffix, axis in SPLIT.items() if name.endswith(suffix)), None)
            if axis is not None:
                length = shape[axis] // tp
                box[axis] = [tensor * length, (tensor + 1) * length]
            if shard_optimizer:
                length = (box[0][1] - box[0][0]) // dp
                box[0] = [box[0][0] + data * length, box[0][0] + (data + 1) * length]
            yield name, (stage * dp + data) * tp + tensor, box


def write_layout(path: Path, boxes: Iterator[tuple[str, int, list[list[int]]]], ranks: int) -> Path:
    parameters: dict[str, dict[str, object]] = {name: {"shape": shape, "slices": {}} for name, shape in SHAPES.items()}
    for name, rank, box in boxes:
        parameters[name]["slices"][str(rank)] = box  # type: ignore[index]
    content = {"format": "codellama-layout", "version": 1, "world_size": ranks, "parameters": parameters}
    path.write_text(json.dumps(content))
    return path


TOPOLOGIES: dict[str, tuple[int, int, int, bool]] = {
    "tp2": (1, 1, 2, False),
    "tp4": (1, 1, 4, False),
    "pp2": (2, 1, 1, False),
    "dp2": (1, 2, 1, False),
    "dp2 optimizer": (1, 2, 1, True),
    "dp4 optimizer": (1, 4, 1, True),
    "tp2 pp2": (2, 1, 2, False),
    "tp2 dp2 optimizer": (1, 2, 2, True),
    "tp2 dp2 pp2": (2, 2, 2, False),
    "tp2 dp2 pp2 optimizer": (2, 2, 2, True),
}


@pytest.fixture
def full(tmp_path: Path) -> Path:
    save_sharded(TENSORS, tmp_path / "full")
    return tmp_path / "full"


def distributed(tmp_path: Path, full: Path, name: str) -> Path:
    pp, dp, tp, optimizer = TOPOLOGIES[name]
    layout = write_layout(tmp_path / "layout.json", topology(pp, dp, tp, optimizer), pp * dp * tp)
    write_distributed(open_checkpoint(full), tmp_path / "ranks", read_layout(layout))
    return tmp_path / "ranks"


@pytest.fixture
def ms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.chdir(tmp_path)  # MindSpore writes beside where it runs
    return pytest.importorskip("mindspore", reason="MindSpore is the oracle of this test")


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_mindspore_merges_what_is_written(tmp_path: Path, full: Path, name: str, ms) -> None:  # type: ignore[no-untyped-def]
    ranks = distributed(tmp_path, full, name)
    ms.merge_pipeline_strategys(str(ranks / "strategy"), str(tmp_path / "merged.ckpt"))
    ms.transform_checkpoints(str(ranks), str(tmp_path / "whole"), "whole_", str(tmp_path / "merged.ckpt"), None)
    merged = ms.load_checkpoint(str(tmp_path / "whole/rank_0/whole_0.ckpt"))
    assert merged.keys() == TENSORS.keys()
    assert all(np.array_equal(merged[key].asnumpy(), array) for key, array in TENSORS.items())
    # The merged strategy file explains the ranks to us as the separate ones do.
    for strategy in (None, tmp_path / "merged.ckpt", ranks / "strategy"):
        checkpoint = open_checkpoint(ranks, strategy=strategy)
        assert checkpoint.kind == "distributed"
        assert set(checkpoint) == set(TENSORS)
        assert all(np.array_equal(checkpoint.read(key), array) for key, array in TENSORS.items())


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_what_mindspore_splits_is_merged(tmp_path: Path, full: Path, name: str, ms) -> None:  # type: ignore[no-untyped-def]
    ranks = distributed(tmp_path, full, name)
    ms.merge_pipeline_strategys(str(ranks / "strategy"), str(tmp_path / "merged.ckpt"))
    (tmp_path / "whole/rank_0").mkdir(parents=True)
    saved = [{"name": key, "data": ms.Tensor(array)} for key, array in TENSORS.items()]
    ms.save_checkpoint(saved, str(tmp_path / "whole/rank_0/whole.ckpt"))
    ms.transform_checkpoints(
        str(tmp_path / "whole"), str(tmp_path / "theirs"), "c_", None, str(tmp_path / "merged.ckpt")
    )
    shutil.copytree(ranks / "strategy", tmp_path / "strategy")  # beside the ranks, where MindFormers has it
    checkpoint = open_checkpoint(tmp_path / "theirs")
    assert set(checkpoint) == set(TENSORS)
    for key, array in TENSORS.items():
        assert np.array_equal(checkpoint.read(key), array), key
    for path in ranks.glob("rank_*/*.ckpt"):  # and they split as we do
        ours = open_checkpoint(path)
        theirs = open_checkpoint(next((tmp_path / "theirs" / path.parent.name).glob("*.ckpt")))
        assert set(ours) <= set(theirs)
        for key in ours:
            assert np.array_equal(ours.read(key), theirs.read(key)), (path.parent.name, key)


THEIR_LAYOUTS = {  # device matrix, tensor map, step and size of the optimizer's split
    "data x tensor": ([2, 4], [0, -1], 0, 0),
    "columns": ([2, 4], [-1, 0], 0, 0),
    "rows by the slow axis": ([2, 4], [1, -1], 0, 0),
    "both": ([2, 4], [1, 0], 0, 0),
    "optimizer over the slow axis": ([2, 4], [0, -1], 4, 2),
    "optimizer over the fast axis": ([2, 4], [1, -1], 1, 4),
    "optimizer over part of the fast axis": ([2, 4], [1, -1], 1, 2),
    "optimizer over all copies": ([2, 4], [1, -1], 1, -1),
    "optimizer of what is not split": ([8], [-1, -1], 1, 8),
    "optimizer over two axes": ([2, 2, 2], [1, -1], 1, 4),
    "optimizer over one of two axes": ([2, 2, 2], [1, -1], 1, 2),
    "columns and optimizer": ([2, 4], [-1, 0], 4, 2),
}


@pytest.mark.parametrize("case", THEIR_LAYOUTS)
def test_mindspores_own_strategy_files(tmp_path: Path, case: str, ms) -> None:  # type: ignore[no-untyped-def]
    """Strategy files of MindSpore's own protobuf classes, weights split by MindSpore."""
    from mindspore.train.node_strategy_pb2 import ParallelStrategyMap

    devices, tensor_map, step, size = THEIR_LAYOUTS[case]
    content = ParallelStrategyMap(current_stage=0)
    item = content.parallel_strategy_item.add(node_name="Default/MatMul")
    item.parallel_strategys.stage = 0
    item.parallel_strategys.parallel_strategy.add().dim.extend([1])
    for name in ("w", "v"):
        layout = content.parallel_layout_item.add(param_name=name).parallel_layouts
        layout.dev_matrix.add().dim.extend(devices)
        layout.tensor_map.add().dim.extend(tensor_map)
        layout.param_split_shape.add()
        layout.indices_offset.add()
        layout.field, layout.opt_weight_shard_step, layout.opt_weight_shard_size = 0, step, size
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy/ckpt_strategy_rank_0.ckpt").write_bytes(content.SerializeToString())
    arrays = {"w": random.standard_normal((16, 8)).astype(np.float32), "v": random.standard_normal((32, 4))}
    (tmp_path / "whole/rank_0").mkdir(parents=True)
    saved = [{"name": key, "data": ms.Tensor(array)} for key, array in arrays.items()]
    ms.save_checkpoint(saved, str(tmp_path / "whole/rank_0/whole.ckpt"))
    strategy_file = str(tmp_path / "strategy/ckpt_strategy_rank_0.ckpt")
    ms.transform_checkpoints(str(tmp_path / "whole"), str(tmp_path / "ranks"), "c_", None, strategy_file)
    assert len(list((tmp_path / "ranks").iterdir())) == 8
    checkpoint = open_checkpoint(tmp_path / "ranks")
    for key, array in arrays.items():
        assert np.array_equal(checkpoint.read(key), array), key


def test_strategy_files_are_mindspores_message(tmp_path: Path, full: Path, ms) -> None:  # type: ignore[no-untyped-def]
    from mindspore.train.node_strategy_pb2 import ParallelStrategyMap

    ranks = distributed(tmp_path, full, "tp2 dp2 pp2 optimizer")
    for path in (ranks / "strategy").iterdir():
        content = ParallelStrategyMap.FromString(path.read_bytes())
        assert content.IsInitialized()
        assert content.SerializeToString() == path.read_bytes()


def test_training_state_is_passed_over_and_copies_of_counters_are_no_fault(tmp_path: Path, full: Path, ms) -> None:  # type: ignore[no-untyped-def]
    ranks = distributed(tmp_path, full, "tp2 dp2 pp2 optimizer")
    for path in ranks.glob("rank_*/*.ckpt"):
        content = ms.load_checkpoint(str(path))
        names = [*content]
        saved = [{"name": name, "data": content[name]} for name in names]
        saved += [{"name": f"adam_m.{name}", "data": content[name]} for name in names]
        path.unlink()
        named = path.parent / f"codellama_{path.parent.name}-2_1000.ckpt"
        ms.save_checkpoint(saved, str(named), append_dict={"epoch_num": 2, "step_num": 1000})
        ms.save_checkpoint(saved[:1], str(path.parent / f"codellama_{path.parent.name}-1_9000.ckpt"))
    checkpoint = open_checkpoint(ranks)
    assert set(checkpoint) == set(TENSORS)
    assert all(np.array_equal(checkpoint.read(key), array) for key, array in TENSORS.items())
    assert {"epoch_num", "step_num", "adam_m.lm_head.weight"} <= set(checkpoint.dropped)
    (ranks / "rank_3/codellama_rank_3-2_1000.ckpt").unlink()
    with pytest.raises(CheckpointError, match="is newer than what other ranks have"):
        open_checkpoint(ranks)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_any_slice_reads_only_its_own_bytes(tmp_path: Path, full: Path, name: str) -> None:
    checkpoint = open_checkpoint(distributed(tmp_path, full, name))
    for key, array in TENSORS.items():
        part = tuple(slice(1, size - 2) for size in array.shape)
        assert np.array_equal(checkpoint.read(key, part), array[part])


def strategy(ranks: int, layouts: Mapping[str, Layout]) -> bytes:
    return encode_strategy(Strategy(0, layouts), dict.fromkeys(layouts, (1,)))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a rank is missing": (lambda d: shutil.rmtree(d / "rank_1"), "strategy is of 4 ranks, there are 3 rank_N"),
    "an empty rank": (lambda d: (d / "rank_1/checkpoint_1.ckpt").unlink(), "rank_1 holds no .ckpt file"),
    "no strategy": (lambda d: shutil.rmtree(d / "strategy"), "strategy files .* are needed"),
    "a stage is missing": (lambda d: [p.unlink() for p in d.glob("strategy/*_[01].ckpt")], "stages .1.; one or more"),
    "no protobuf": (lambda d: (d / "strategy/ckpt_strategy_rank_0.ckpt").write_bytes(b"\xff" * 9), "no strategy file"),
    "empty": (lambda d: (d / "strategy/ckpt_strategy_rank_0.ckpt").write_bytes(b""), "holds no layouts"),
    "another rank's file": (
        lambda d: shutil.copy(d / "rank_3/checkpoint_3.ckpt", d / "rank_1/checkpoint_1.ckpt"),
        "lacks tensor",
    ),
    "contradiction": (
        lambda d: (d / "strategy/ckpt_strategy_rank_1.ckpt").write_bytes(strategy(2, {"a": Layout((2,), ((),))})),
        "describe stage 0 differently",
    ),
    "an impossible axis": (
        lambda d: (d / "strategy/ckpt_strategy_rank_0.ckpt").write_bytes(
            strategy(2, {"a": Layout((2,), ((0,), (0,)))})
        ),
        "impossible layout",
    ),
    "terabytes": (
        lambda d: (d / "strategy/ckpt_strategy_rank_0.ckpt").write_bytes(strategy(2, {"a": Layout((2**30,), ((),))})),
        "impossible layout",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_are_reported_in_one_line(tmp_path: Path, full: Path, case: str) -> None:
    ranks = distributed(tmp_path, full, "tp2 pp2")
    FAULTS[case][0](ranks)
    with pytest.raises(CheckpointError, match=FAULTS[case][1]) as caught:
        open_checkpoint(ranks)
    assert "\n" not in str(caught.value)


def test_flipped_bits_in_a_strategy_file_never_escape_as_another_exception(tmp_path: Path) -> None:
    layouts = {"a": Layout((2, 2), ((0,), ()), 2, 2), "b": Layout((4,), ((),))}
    content = strategy(4, layouts)
    path = tmp_path / "s.ckpt"
    path.write_bytes(content)
    assert [dict(s.layouts) for s in read_strategies(path)] == [layouts]
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            list(read_strategies(path))
        except CheckpointError as error:
            assert "\n" not in str(error)


def test_slices_that_mindspore_has_no_strategy_for(tmp_path: Path, full: Path) -> None:
    def uneven() -> Iterator[tuple[str, int, list[list[int]]]]:
        for name, rank, box in topology(1, 1, 2):
            cut = [[0, 5] if rank == 0 else [5, 16], *box[1:]]
            yield name, rank, cut if name == "lm_head.weight" else box

    layout = read_layout(write_layout(tmp_path / "layout.json", uneven(), 2))
    with pytest.raises(CheckpointError, match=r"'lm_head.weight' is split in a way that MindSpore has no strategy for"):
        write_distributed(open_checkpoint(full), tmp_path / "ranks", layout)
    assert not (tmp_path / "ranks").exists()


def test_layouts_of_grids_are_found_again() -> None:
    """Every layout of up to three axes, optimizer split or not: the one found places all ranks the same."""
    for axes in itertools.product((1, 2, 3), repeat=3):
        ranks = int(np.prod(axes))
        for tensor_map in itertools.permutations((0, 1, 2, None), 2):
            for size in (0, -1):
                layout = Layout(axes, tuple(() if a is None else (a,) for a in tensor_map), 1 if size else 0, size)
                parts = layout.parts()
                boxes = [tuple((i * 2, i * 2 + 2) for i in layout.index(rank)) for rank in range(ranks)]
                shape = tuple(count * 2 for count in parts)
                found = layout_of(boxes, shape)
                if found is not None:
                    assert [found.index(rank) for rank in range(ranks)] == [layout.index(rank) for rank in range(ranks)]
                    assert found.parts() == parts
                else:
                    assert size == -1  # a split over axes that are not neighbours has no one step
