"""MindSpore's strategy files (`ckpt_strategy_rank_N.ckpt`): which slice of a parameter each device of a stage holds.

A layout gives the device matrix (the devices of one pipeline stage as a grid, the last axis fastest), the tensor map
(for each dimension of the parameter the axis that splits it, counted from the right, or -1), and how far the optimizer
parallel splits what is left of dimension 0 again among devices that would hold copies of it.
Source: MindSpore 2.10, `node_strategy.proto` and `mindspore/parallel/_tensor.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from codellama_ckpt import protobuf
from codellama_ckpt.boxes import Box, Shape
from codellama_ckpt.errors import CheckpointError
from codellama_ckpt.files import reported

# Field numbers of node_strategy.proto.
_STAGE, _ITEM, _LAYOUT = 1, 2, 3  # ParallelStrategyMap
_NODE, _STRATEGIES = 1, 2  # ParallelStrategyItem
_ITEM_STAGE, _STRATEGY = 1, 2  # ParallelStrategys
_PARAMETER, _LAYOUTS = 1, 2  # ParallelLayoutItem
_DEVICES, _MAP, _SHAPE, _OFFSET, _FIELD, _STEP, _SIZE = 1, 2, 3, 4, 5, 6, 7  # ParallelLayouts
_DIM = 1  # of every list of whole numbers

_LARGEST = 1 << 28  # bytes of a strategy file
_MOST_DEVICES = 1 << 20


@dataclass(frozen=True)
class Layout:
    """How one parameter lies on the devices of its stage.

    Attributes:
        devices: the device matrix.
        tensor_map: axes of the device matrix, counted from the right, that split each dimension, outermost first; none
            where it is whole.
        shard_step: distance of the ranks that share an optimizer-parallel split; 0 without one.
        shard_size: into how many parts it splits; 0 without one, -1 for as many as there are copies.
    """

    devices: tuple[int, ...]
    tensor_map: tuple[tuple[int, ...], ...]
    shard_step: int = 0
    shard_size: int = 0

    @property
    def device_count(self) -> int:
        """Devices of the stage."""
        return math.prod(self.devices)

    def parts(self) -> Shape:
        """Into how many parts each dimension is split, optimizer parallel included."""
        parts = [math.prod(self.devices[-axis - 1] for axis in axes) for axes in self.tensor_map]
        if parts:
            parts[0] *= self._shards()
        return tuple(parts)

    def index(self, rank: int) -> tuple[int, ...]:
        """Which part of each dimension a device holds; `rank` counts within the stage."""
        coordinates = []
        for size in reversed(self.devices):
            coordinates.append(rank % size)
            rank //= size
        places = []
        for axes in self.tensor_map:
            place = 0
            for axis in axes:
                place = place * self.devices[-axis - 1] + coordinates[axis]
            places.append(place)
        if places and self._shards() > 1:
            places[0] = places[0] * self._shards() + self._shard(coordinates)
        return tuple(places)

    def _shard(self, coordinates: Sequence[int]) -> int:
        """The part of the optimizer-parallel split: counted along the axes that hold copies, the last one fastest."""
        index, seen = 0, 1
        for axis in self._copying_axes():
            size = min(self.devices[-axis - 1], self._shards() // seen)
            index += coordinates[axis] % size * seen
            seen *= size
        return index

    def _shards(self) -> int:
        if not self.shard_step or not self.shard_size:
            return 1
        copies = math.prod(self.devices[-axis - 1] for axis in self._copying_axes())
        return copies if self.shard_size == -1 else self.shard_size

    def _copying_axes(self) -> list[int]:
        split = {axis for axes in self.tensor_map for axis in axes}
        return [axis for axis in range(len(self.devices)) if axis not in split]


@dataclass(frozen=True)
class Strategy:
    """The layouts of all parameters of one pipeline stage."""

    stage: int
    layouts: Mapping[str, Layout]


def read_strategies(path: Path) -> Iterator[Strategy]:
    """The stages of a strategy file: one, or several where `merge_pipeline_strategys` wrote it.

    Raises:
        CheckpointError: no strategy file, or a layout that is impossible.
    """
    with reported(f"read {path}"):
        if path.stat().st_size > _LARGEST:
            raise CheckpointError(f"{path} is no strategy file: {path.stat().st_size:,} bytes")
        content = path.read_bytes()
    try:
        stages = {
            number
            for item in protobuf.parts(content, _ITEM)
            for strategies in protobuf.parts(item, _STRATEGIES)
            for number in protobuf.varints(strategies, _ITEM_STAGE)
        }
        found: dict[int, dict[str, Layout]] = {}
        for item in protobuf.parts(content, _LAYOUT):
            (name,) = (part.decode() for part in protobuf.parts(item, _PARAMETER))
            (layouts,) = protobuf.parts(item, _LAYOUTS)
            stage, _, rest = name.partition("-")  # "0-lm_head.weight" in a merged file
            merged = stage.isascii() and stage.isdigit() and rest != ""
            number = int(stage) if merged else min(stages, default=0)
            found.setdefault(number, {})[rest if merged else name] = _layout(layouts, f"{path}: {name!r}")
    except ValueError as error:  # of the wire format, of text that is none, of a count that is not one
        raise CheckpointError(f"{path} is damaged or no strategy file of MindSpore: {error}") from None
    if not found:
        raise CheckpointError(f"{path} holds no layouts; is it a strategy file of MindSpore?")
    return (Strategy(stage, layouts) for stage, layouts in sorted(found.items()))


def encode_strategy(strategy: Strategy, shapes: Mapping[str, Shape]) -> bytes:
    """The content of a strategy file; `shapes` are those of the slices, by name.

    `tensor_map` entries of several axes are not written: MindFormers' layouts have none.
    """
    parallel = protobuf.encode_numbers(_ITEM_STAGE, [strategy.stage])
    first = next(iter(strategy.layouts.values()))
    parallel += protobuf.encode_bytes(_STRATEGY, protobuf.encode_numbers(_DIM, first.parts()))
    # MindSpore takes the stage from the first operator's strategy; what else it says is not used for checkpoints.
    item = protobuf.encode_bytes(_NODE, b"Default/parameters") + protobuf.encode_bytes(_STRATEGIES, parallel)
    content = protobuf.encode_numbers(_STAGE, [strategy.stage]) + protobuf.encode_bytes(_ITEM, item)
    for name, layout in strategy.layouts.items():
        axes = [axes[0] if axes else -1 for axes in layout.tensor_map]
        layouts = b"".join(
            protobuf.encode_bytes(number, protobuf.encode_numbers(_DIM, values))
            for number, values in ((_DEVICES, layout.devices), (_MAP, axes), (_SHAPE, shapes[name]), (_OFFSET, ()))
        )
        for number, value in ((_FIELD, 0), (_STEP, layout.shard_step), (_SIZE, layout.shard_size)):
            layouts += protobuf.encode_numbers(number, [value])
        entry = protobuf.encode_bytes(_PARAMETER, name.encode()) + protobuf.encode_bytes(_LAYOUTS, layouts)
        content += protobuf.encode_bytes(_LAYOUT, entry)
    return content


def layout_of(boxes: Sequence[Box], shape: Shape) -> Layout | None:
    """The layout by which the devices of a stage hold these boxes of one parameter, in the order of their ranks.

    Args:
        boxes: one for each device.
        shape: of the parameter.

    Returns:
        None where MindSpore has no layout for it: parts that are not equally large, or not by a grid of devices.
    """
    counts, places = [], []
    for dimension, size in enumerate(shape):
        bounds = [box[dimension] for box in boxes]
        length = bounds[0][1] - bounds[0][0]
        if not length or size % length or any(stop - start != length or start % length for start, stop in bounds):
            return None
        counts.append(size // length)
        places.append([start // length for start, _ in bounds])
    for shards in [n for n in range(1, counts[0] + 1) if counts[0] % n == 0] if counts else [1]:
        candidate = _candidate(len(boxes), counts, places, shards)
        if candidate and all(candidate.index(rank) == place for rank, place in enumerate(zip(*places, strict=True))):
            return candidate
    return Layout((len(boxes),), ()) if not shape else None


def _candidate(devices: int, counts: Sequence[int], places: Sequence[Sequence[int]], shards: int) -> Layout | None:
    """A layout with an optimizer-parallel split into `shards`; whether it is the right one is for the caller to see."""
    strides: dict[int, tuple[int, int]] = {}  # dimension -> distance of neighbouring parts in ranks, parts
    for dimension, (count, place) in enumerate(zip(counts, places, strict=True)):
        parts = count // shards if dimension == 0 else count
        inner = shards if dimension == 0 else 1
        if parts > 1:
            first = next((rank for rank in range(devices) if place[rank] // inner != place[0] // inner), 0)
            if not first:
                return None
            strides[dimension] = first, parts
    step = 0
    if shards > 1:
        step = next((rank for rank in range(devices) if places[0][rank] % shards != places[0][0] % shards), 0)
        if not step:
            return None
    # The axes from the fastest on: each split where its stride says, copies in the gaps.
    axes: list[int] = []
    of_dimension: dict[int, int] = {}
    reached = 1
    for dimension, (stride, parts) in sorted(strides.items(), key=lambda item: item[1]):
        if stride % reached or devices % (stride * parts):
            return None
        if stride > reached:
            axes.append(stride // reached)
        of_dimension[dimension] = len(axes)
        axes.append(parts)
        reached = stride * parts
    if devices % reached:
        return None
    if devices > reached or not axes:
        axes.append(devices // reached)
    tensor_map = tuple((of_dimension[d],) if d in of_dimension else () for d in range(len(counts)))
    return Layout(tuple(reversed(axes)), tensor_map, step, shards if shards > 1 else 0)


def _layout(content: bytes, where: str) -> Layout:
    def dims(number: int) -> list[list[int]]:
        return [protobuf.varints(part, _DIM) for part in protobuf.parts(content, number)]

    def number(field: int) -> int:
        values = protobuf.varints(content, field)
        return values[-1] if values else 0

    (devices,) = dims(_DEVICES)
    maps = dims(_MAP)
    if len(maps) > 1:  # one list a dimension, of the several axes that split it
        tensor_map = [[axis for axis in axes if axis != -1] for axes in maps if axes]
    else:
        tensor_map = [[axis] if axis != -1 else [] for axis in (maps[0] if maps else [])]
    step, size = number(_STEP), number(_SIZE)
    used = [axis for axes in tensor_map for axis in axes]
    possible = (
        devices
        and all(0 < count <= _MOST_DEVICES for count in devices)
        and math.prod(devices) <= _MOST_DEVICES
        and all(0 <= axis < len(devices) for axis in used)
        and len(set(used)) == len(used)
        and step >= 0
        and (size == -1 or 0 <= size <= _MOST_DEVICES)
    )
    layout = Layout(tuple(devices), tuple(map(tuple, tensor_map)), step, size)
    if not possible or math.prod(layout.parts()) > layout.device_count:
        raise CheckpointError(
            f"{where}: an impossible layout: device matrix {devices}, tensor map {tensor_map}, "
            f"optimizer split {size} by {step}"
        )
    return layout
