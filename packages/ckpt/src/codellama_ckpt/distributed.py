"""MindFormers' distributed checkpoints: `rank_N/*.ckpt`, one file a device, and the strategy files that explain them.

Pipeline stages are consecutive blocks of ranks of equal size. Within a stage a strategy file's layouts say which slice
of each parameter a rank holds. What is not in any layout (counters of the training) every rank has a copy of.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from codellama_ckpt.boxes import Box, Shape, extent, tiling_fault
from codellama_ckpt.checkpoint import Checkpoint, Piece, StoredTensor
from codellama_ckpt.configuration import CONFIG, as_metadata, configurations, is_tied
from codellama_ckpt.dtypes import Array
from codellama_ckpt.errors import CheckpointError
from codellama_ckpt.files import atomic_directory, write_file
from codellama_ckpt.layout import Layout
from codellama_ckpt.mindspore_file import MindSporeFile, write_mindspore
from codellama_ckpt.names import is_training_extra
from codellama_ckpt.safetensors_writer import TensorEntry
from codellama_ckpt.strategy import Layout as DeviceLayout
from codellama_ckpt.strategy import Strategy, encode_strategy, layout_of, read_strategies
from codellama_ckpt.tensor_file import TensorInfo

STRATEGIES = "strategy"
_RANK = re.compile(r"rank_(0|[1-9][0-9]{0,6})")
_STRATEGY_FILES = "*strategy*.ckpt"


def is_distributed(directory: Path) -> bool:
    """Whether a directory holds `rank_N` directories with `.ckpt` files."""
    return any(_RANK.fullmatch(path.parent.name) for path in directory.glob("rank_*/*.ckpt"))


def read_distributed(directory: Path, strategy: Path | None = None) -> Checkpoint:
    """Open MindFormers' distributed checkpoint as the one that it is a part of.

    Args:
        directory: holds `rank_0`, `rank_1`, ... Of several checkpoints in them the newest is taken, by the numbers in
            the names (`..._rank_0-2_1000.ckpt`: epoch 2, step 1000).
        strategy: directory of the strategy files, or one merged file. By default: `strategy` in or beside the
            directory, the directory itself, or each `rank_N`.

    Raises:
        CheckpointError: ranks or strategy files are missing, or contradict each other.
    """
    stages = _stages(directory, strategy)
    size = next(iter(next(iter(stages.values())).layouts.values())).device_count
    if any(layout.device_count != size for stage in stages.values() for layout in stage.layouts.values()):
        raise CheckpointError(f"{directory}: the strategy files disagree on how many devices a stage has")
    if sorted(stages) != list(range(len(stages))):
        raise CheckpointError(f"{directory}: strategy files for the stages {sorted(stages)}; one or more are missing")
    files = _rank_files(directory, size * len(stages))
    tensors: dict[str, StoredTensor] = {}
    dropped: dict[str, None] = {}
    for stage, content in sorted(stages.items()):
        held = files[stage * size : (stage + 1) * size]
        for name in dict.fromkeys(name for file in held for name in file.tensors):
            if is_training_extra(name):
                dropped[name] = None
            elif name not in tensors:  # a parameter of several stages is the same in each
                layout = content.layouts.get(name, DeviceLayout((size,), ((),) * len(_info(held[0], name).shape)))
                tensors[name] = _united(name, layout, held)
    for file in files:
        dropped |= dict.fromkeys(file.texts)
    return Checkpoint("distributed", directory, tensors, files[0].metadata, tuple(dropped))


def write_distributed(
    checkpoint: Checkpoint,
    directory: Path,
    layout: Layout,
    *,
    overwrite: bool = False,
    progress: Callable[[int], object] = lambda _: None,
) -> None:
    """Write a checkpoint as MindFormers' distributed one: `rank_N/checkpoint_N.ckpt` and `strategy/`.

    Args:
        checkpoint: of any kind.
        directory: to appear; its parent must exist.
        layout: which rank holds what.
        overwrite: replace what is at `directory`.
        progress: is told the bytes of each part of a slice when it was written.

    Raises:
        CheckpointError: the layout does not fit the checkpoint, or is one that MindSpore has no strategy for (uneven
            slices, for example); or the directory can not be written. Then it is as it was.
    """
    found = configurations(checkpoint)
    layout.check(checkpoint, is_tied(found.get(CONFIG)))
    strategies = _strategies(layout)
    size = layout.world_size // len(strategies)
    metadata = {**as_metadata(found), "format": "ms"}
    with atomic_directory(directory, overwrite) as temporary:
        (temporary / STRATEGIES).mkdir()
        for rank in range(layout.world_size):
            held = layout.held(rank)
            shapes = {name: extent(layout.parameters[name].boxes[rank]) for name in held}
            strategy = strategies[rank // size]
            write_file(temporary / STRATEGIES / f"ckpt_strategy_rank_{rank}.ckpt", encode_strategy(strategy, shapes))
            folder = temporary / f"rank_{rank}"
            folder.mkdir()
            entries = _entries(checkpoint, held, shapes, progress)
            write_mindspore(folder / f"checkpoint_{rank}.ckpt", entries, metadata)


def _entries(
    checkpoint: Checkpoint,
    held: Mapping[str, tuple[slice, ...]],
    shapes: Mapping[str, Shape],
    progress: Callable[[int], object],
) -> Iterator[TensorEntry]:
    for name, slices in held.items():

        def load(name: str = name, slices: tuple[slice, ...] = slices) -> Iterator[Array]:
            for block in checkpoint.blocks(name, slices, dtype="stored"):
                yield block
                progress(block.nbytes)

        yield TensorEntry(name, checkpoint.dtype(name), shapes[name], load)


def _strategies(layout: Layout) -> list[Strategy]:
    """The strategy of every pipeline stage of a layout."""
    names = [frozenset(layout.held(rank)) for rank in range(layout.world_size)]
    stages = list(dict.fromkeys(names))
    size = layout.world_size // len(stages)
    if any(held != stages[min(rank // size, len(stages) - 1)] for rank, held in enumerate(names)):
        raise CheckpointError(
            f"{layout.path}: MindSpore's strategies need pipeline stages of consecutive ranks and of one size, "
            "whose ranks hold parts of the same parameters"
        )
    strategies = []
    for stage, held in enumerate(stages):
        layouts = {}
        for name in layout.parameters:
            if name not in held:
                continue
            placement = layout.parameters[name]
            boxes = [placement.boxes[rank] for rank in range(stage * size, (stage + 1) * size)]
            found = layout_of(boxes, placement.shape)
            if found is None:
                raise CheckpointError(
                    f"{layout.path}: parameter {name!r} is split in a way that MindSpore has no strategy for: "
                    "it needs equal slices on a regular grid of ranks"
                )
            layouts[name] = found
        strategies.append(Strategy(stage, layouts))
    return strategies


def _stages(directory: Path, strategy: Path | None) -> dict[int, Strategy]:
    if strategy is not None and strategy.is_file():
        paths = [strategy]
    else:
        places = [strategy] if strategy else [directory / STRATEGIES, directory.parent / STRATEGIES, directory]
        found = [sorted(place.glob(_STRATEGY_FILES)) for place in places]
        if strategy is None:
            found.append(sorted(directory.glob(f"rank_*/{_STRATEGY_FILES}")))
        paths = next((paths for paths in found if paths), [])
    if not paths:
        where = strategy or f"{directory / STRATEGIES} and beside it"
        raise CheckpointError(
            f"{directory}: its strategy files (ckpt_strategy_rank_N.ckpt) are needed and not in {where}; "
            "say where they are (--strategy)"
        )
    stages: dict[int, Strategy] = {}
    for path in paths:
        for content in read_strategies(path):
            if stages.setdefault(content.stage, content) != content:
                raise CheckpointError(f"{path} and another file describe stage {content.stage} differently")
    return stages


def _rank_files(directory: Path, count: int) -> list[MindSporeFile]:
    """The newest checkpoint file of every rank; all must be of the same step."""
    ranks = {int(match[1]) for path in directory.iterdir() if (match := _RANK.fullmatch(path.name))}
    if ranks != set(range(count)):
        raise CheckpointError(
            f"{directory}: the strategy is of {count} ranks, there are {len(ranks)} rank_N directories: "
            f"{', '.join(map(str, sorted(ranks)))}"
        )
    paths = []
    for rank in range(count):
        found = [path for path in (directory / f"rank_{rank}").glob("*.ckpt") if "strategy" not in path.name]
        if not found:
            raise CheckpointError(f"{directory / f'rank_{rank}'} holds no .ckpt file")
        paths.append(max(found, key=lambda path: (_step(path), path.name)))
    if len({_step(path) for path in paths}) > 1:
        newest = max(paths, key=_step)
        raise CheckpointError(f"{newest} is newer than what other ranks have; remove it, or add theirs")
    return [MindSporeFile(path) for path in paths]


def _step(path: Path) -> tuple[int, ...]:
    """Epoch and step of `PREFIX_rank_0-EPOCH_STEP.ckpt`; nothing of other names."""
    match = re.search(r"-([0-9]+)_([0-9]+)\.ckpt$", path.name)
    return (int(match[1]), int(match[2])) if match else ()


def _united(name: str, layout: DeviceLayout, files: list[MindSporeFile]) -> StoredTensor:
    """One parameter of the slices of all ranks of its stage; of copies the first is taken."""
    first = _info(files[0], name)
    if len(layout.tensor_map) != len(first.shape):
        raise CheckpointError(
            f"{files[0].path}: tensor {name!r} {list(first.shape)} and its layout differ in the number of dimensions"
        )
    shape = tuple(size * parts for size, parts in zip(first.shape, layout.parts(), strict=True))
    pieces: dict[Box, Piece] = {}
    for rank, file in enumerate(files):
        info = _info(file, name)
        if (info.dtype, info.shape) != (first.dtype, first.shape):
            raise CheckpointError(
                f"{file.path}: tensor {name!r} is {info.dtype.name} {list(info.shape)}, "
                f"in {files[0].path.parent.name} {first.dtype.name} {list(first.shape)}"
            )
        index = layout.index(rank)
        box = tuple((place * size, (place + 1) * size) for place, size in zip(index, info.shape, strict=True))
        pieces.setdefault(box, Piece(box, file, name, f"{file.path.parent.name}/{file.path.name}"))
    if fault := tiling_fault(list(pieces), shape) if math.prod(shape) else None:
        raise CheckpointError(f"{files[0].path}: tensor {name!r}: {fault}")
    return StoredTensor(first.dtype, shape, tuple(pieces.values()))


def _info(file: MindSporeFile, name: str) -> TensorInfo:
    try:
        return file.tensors[name]
    except KeyError:
        raise CheckpointError(f"{file.path} lacks tensor {name!r}, which other ranks of its stage have") from None
