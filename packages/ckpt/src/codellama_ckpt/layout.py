"""The layout file: JSON that says which rank holds which slice of which parameter. The README describes it."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from codellama_ckpt import json_text
from codellama_ckpt.boxes import Box, Shape, extent, tiling_fault
from codellama_ckpt.checkpoint import Checkpoint
from codellama_ckpt.errors import CheckpointError

FORMAT = "codellama-layout"
VERSION = 1
_KEYS = {"format", "version", "world_size", "parameters"}
_MOST_RANKS = 1 << 20


@dataclass(frozen=True)
class Placement:
    """One parameter: its whole shape, and the box that each rank holds of it."""

    shape: Shape
    boxes: Mapping[int, Box]


@dataclass(frozen=True)
class Layout:
    """Where every parameter is.

    Attributes:
        path: of the file, for messages.
        world_size: number of ranks.
        parameters: by MindFormers' name.
    """

    path: Path
    world_size: int
    parameters: Mapping[str, Placement]

    def held(self, rank: int) -> dict[str, tuple[slice, ...]]:
        """What a rank holds, copies included: what it loads."""
        return {
            name: tuple(slice(start, stop) for start, stop in placement.boxes[rank])
            for name, placement in self.parameters.items()
            if rank in placement.boxes
        }

    def written(self, rank: int) -> dict[str, tuple[slice, ...]]:
        """What a rank writes into a sharded checkpoint: of copies of one slice, the lowest rank writes its own."""
        return {
            name: slices
            for name, slices in self.held(rank).items()
            if rank == min(r for r, box in self._boxes(name) if box == self.parameters[name].boxes[rank])
        }

    def check(self, checkpoint: Checkpoint, tied: bool = False) -> None:
        """CheckpointError unless the checkpoint's parameters are exactly these; `tied` as in `Checkpoint.check`."""
        shapes = {name: placement.shape for name, placement in self.parameters.items()}
        checkpoint.check(shapes, tied=tied, what=str(self.path))

    def _boxes(self, name: str) -> Collection[tuple[int, Box]]:
        return self.parameters[name].boxes.items()


def read_layout(path: str | os.PathLike[str]) -> Layout:
    """Read a layout file.

    Raises:
        CheckpointError: another format, or slices that overlap in part or do not cover their parameter.
    """
    path = Path(path)
    content = json_text.read(path)
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        found = f"format {content.get('format')!r}, version {content.get('version')!r}"
        raise CheckpointError(f"{path}: expected format {FORMAT!r}, version {VERSION}, found {found:.200}")
    if unknown := sorted(content.keys() - _KEYS):
        raise CheckpointError(f"{path}: unknown key {unknown[0]!r}; known are {', '.join(sorted(_KEYS))}")
    ranks = json_text.as_count(content.get("world_size"), f"{path}: world_size")
    if not 0 < ranks <= _MOST_RANKS:
        raise CheckpointError(f"{path}: world_size must be from 1 to {_MOST_RANKS:,}, found {ranks:,}")
    parameters = {
        name: _placement(entry, f"{path}: parameter {name!r}", ranks)
        for name, entry in json_text.as_object(content.get("parameters"), f"{path}: parameters").items()
    }
    return Layout(path, ranks, parameters)


def _placement(entry: object, where: str, ranks: int) -> Placement:
    fields = json_text.as_object(entry, where)
    if fields.keys() != {"shape", "slices"}:
        raise CheckpointError(f"{where}: expected shape and slices, found {', '.join(sorted(fields)) or 'nothing'}")
    shape = json_text.as_counts(fields["shape"], f"{where}: shape")
    boxes: dict[int, Box] = {}
    for text, bounds in json_text.as_object(fields["slices"], f"{where}: slices").items():
        if not text.isascii() or not text.isdigit() or str(int(text[:10])) != text or int(text) >= ranks:
            raise CheckpointError(f"{where}: slices: a rank is from 0 to {ranks - 1}, found {text!r}")
        boxes[int(text)] = json_text.as_box(bounds, f"{where}: slice of rank {text}", len(shape))
    if fault := tiling_fault(list(dict.fromkeys(boxes.values())), shape):
        raise CheckpointError(f"{where}: {fault}")
    if not all(all(extent(box)) for box in boxes.values()) and all(shape):
        raise CheckpointError(f"{where}: an empty slice; a rank that holds nothing is not mentioned")
    return Placement(shape, boxes)
