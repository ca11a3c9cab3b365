"""Converting a checkpoint of any kind: to one full file, to a Hugging Face directory, or to shards by a layout.

Tensors go through one at a time and are checked against the network's configuration before anything is written.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codellama_ckpt.boxes import Shape
from codellama_ckpt.checkpoint import Checkpoint, ReadAs
from codellama_ckpt.configuration import (
    CONFIG,
    EMBEDDING,
    FILES,
    Configuration,
    as_metadata,
    configuration_files,
    configurations,
    expected_shapes,
    is_tied,
)
from codellama_ckpt.dtypes import BY_NAME, Array, dtype_named
from codellama_ckpt.errors import CheckpointError
from codellama_ckpt.files import atomic_directory, write_file
from codellama_ckpt.full import SUFFIXES
from codellama_ckpt.hugging_face import INDEX, SINGLE
from codellama_ckpt.layout import Layout
from codellama_ckpt.mindspore_file import write_mindspore
from codellama_ckpt.names import to_hugging_face
from codellama_ckpt.safetensors_writer import TensorEntry, write_safetensors
from codellama_ckpt.sharded import GlobalSlice, LazyTensor, abandon, finalize, save_sharded

DTYPES: Mapping[str, ReadAs] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
Progress = Callable[[int], object]  # is told the bytes of each part of a tensor when it was written

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"([0-9]+)\s*([A-Za-z]*)")


def _silent(_: int) -> None:
    pass


@dataclass(frozen=True)
class Job:
    """What is to be written of a checkpoint.

    Attributes:
        checkpoint: the source.
        names: its parameters that are written, in the order of their bytes.
        dropped: names of what else it holds.
        dtype: what floats are cast to; None leaves them.
        found: the configurations that came with it.
    """

    checkpoint: Checkpoint
    names: tuple[str, ...]
    dropped: tuple[str, ...]
    dtype: ReadAs | None
    found: Mapping[str, Configuration]

    @property
    def size(self) -> int:
        """Bytes that are read for it."""
        return sum(self.checkpoint.size(name) for name in self.names)

    @property
    def metadata(self) -> dict[str, str]:
        """Text fields to write."""
        return {**self.checkpoint.metadata, **as_metadata(self.found)}

    def dtype_of(self, name: str) -> str:
        """Element type that a tensor is written in."""
        return self.checkpoint.dtype(name) if self._read_as(name) == "stored" else self._read_as(name)

    def bytes_of(self, name: str) -> int:
        """Size that a tensor is written in."""
        stored = dtype_named(self.checkpoint.dtype(name)).storage.itemsize
        return self.checkpoint.size(name) // stored * dtype_named(self.dtype_of(name)).storage.itemsize

    def entry(self, name: str, written_as: str, progress: Progress) -> TensorEntry:
        """A tensor to write."""
        dtype = self.dtype_of(name)
        narrowed = dtype == "float16" != self.checkpoint.dtype(name)
        stored = dtype_named(self.checkpoint.dtype(name)).storage.itemsize

        def load() -> Iterator[Array]:
            for block in self.checkpoint.blocks(name, dtype=self._read_as(name)):
                if narrowed:
                    _require_in_range(self.checkpoint, name, block)
                yield block
                progress(block.size * stored)

        return TensorEntry(written_as, dtype, self.checkpoint.shape(name), load)

    def _read_as(self, name: str) -> ReadAs:
        is_float = BY_NAME[self.checkpoint.dtype(name)].is_float
        return self.dtype if self.dtype is not None and is_float else "stored"


def plan(checkpoint: Checkpoint, dtype: str | None = None) -> Job:
    """Check a checkpoint against its network and say what is to be written.

    Args:
        checkpoint: of any kind.
        dtype: "fp32", "fp16", "bf16", or None to leave the types as they are.

    Raises:
        CheckpointError: one that lists all missing, surplus and misshapen tensors; or a `dtype` that is none of these.
    """
    if dtype is not None and dtype not in DTYPES:
        raise CheckpointError(f"dtype must be one of {', '.join(DTYPES)}, found {dtype!r}")
    found = configurations(checkpoint)
    config = found.get(CONFIG)
    unread = checkpoint.check(expected_shapes(checkpoint, config), tied=is_tied(config))
    names = tuple(name for name in checkpoint if name not in unread)
    dropped = checkpoint.dropped + checkpoint.training_names() + unread
    return Job(checkpoint, names, dropped, DTYPES[dtype] if dtype is not None else None, found)


def write_full(job: Job, path: str | os.PathLike[str], progress: Progress = _silent) -> None:
    """Write one file with MindFormers' names: safetensors, or MindSpore's where `path` ends in `.ckpt`.

    The network's configuration, where there is one, goes into the file.

    Raises:
        CheckpointError: another suffix, no such directory, or a failing read or write. `path` is as it was.
    """
    path = Path(path)
    require_output_file(path)
    entries = [job.entry(name, name, progress) for name in job.names]
    metadata = {**job.metadata, "format": "ms"}
    if path.suffix == ".ckpt":
        write_mindspore(path, entries, metadata)
    else:
        write_safetensors(path, entries, metadata)


def write_hugging_face(
    job: Job,
    directory: str | os.PathLike[str],
    *,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
    progress: Progress = _silent,
) -> None:
    """Write a Hugging Face directory: `config.json`, and safetensors in one file or in shards with their index.

    Args:
        job: what to write.
        directory: to appear; its parent must exist.
        max_shard_size: bytes, or such as "5GB" or "500MiB". A tensor that is larger has a shard of its own.
        overwrite: replace what is at `directory`.
        progress: is told the bytes of each part of a tensor when it was written.

    Raises:
        CheckpointError: the checkpoint does not say the network's sizes, something is at `directory`, or a failing read
            or write. `directory` is as it was.
    """
    directory = Path(directory)
    if CONFIG not in job.found:
        raise CheckpointError(
            f"{job.checkpoint.path} does not say the network's sizes, which a Hugging Face directory needs: "
            f"put its {FILES[CONFIG]} beside it"
        )
    require_parent(directory)
    shards = _shards(job, parse_size(max_shard_size))
    names = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    )
    with atomic_directory(directory, overwrite) as temporary:
        placed: dict[str, str] = {}
        for file, shard in zip(names, shards, strict=True):
            entries = [job.entry(name, to_hugging_face(name), progress) for name in shard]
            write_safetensors(temporary / file, entries, {"format": "pt"})
            placed |= {entry.name: file for entry in entries}
        if len(shards) > 1:
            total = sum(job.bytes_of(name) for name in job.names)
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
            write_file(temporary / INDEX, (json.dumps(index, indent=2) + "\n").encode())
        for path, content in configuration_files(temporary, job.found, job.dtype_of(EMBEDDING)).items():
            write_file(path, content)


def shard(
    job: Job,
    directory: str | os.PathLike[str],
    layout: Layout,
    *,
    overwrite: bool = False,
    progress: Progress = _silent,
) -> None:
    """Write a sharded checkpoint of as many files as the layout has ranks, each with the slices that its rank holds.

    Of copies of one slice only the lowest rank's file has one.

    Raises:
        CheckpointError: the layout is of other parameters, or a failing read or write. `directory` is as it was.
    """
    layout.check(job.checkpoint, is_tied(job.found.get(CONFIG)))
    token = secrets.token_hex(8)
    checkpoint = job.checkpoint
    try:
        for rank in range(layout.world_size):
            held = layout.written(rank)
            save_sharded(
                {name: _slice_of(checkpoint, name, part, progress) for name, part in held.items()},
                directory,
                metadata=job.metadata,
                slices={name: GlobalSlice(checkpoint.shape(name), part) for name, part in held.items()},
                writer=rank,
                writers=layout.world_size,
                token=token,
                overwrite=overwrite,
            )
    except BaseException:
        abandon(directory, token=token)
        raise
    if layout.world_size > 1:  # one writer's checkpoint is complete by itself
        finalize(directory, layout.world_size, token=token, overwrite=overwrite)


def parse_size(text: int | str) -> int:
    """Bytes of "5GB", "500MiB", "1000"; CheckpointError for anything else."""
    match = _SIZE.fullmatch(str(text).strip())
    if not match or match[2].upper() not in _UNITS or not int(match[1]):
        raise CheckpointError(f"a size is a number of bytes, or such as 5GB or 500MiB, found {text!r}")
    return int(match[1]) * _UNITS[match[2].upper()]


def require_output_file(path: Path) -> None:
    """CheckpointError unless a full checkpoint can be written to this path."""
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"{path}: a full checkpoint's name ends in {' or '.join(SUFFIXES)}")
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory; name a file")
    require_parent(path)


def require_parent(path: Path) -> None:
    """CheckpointError unless the directory that something is to be written into exists."""
    if not path.parent.is_dir():
        raise CheckpointError(f"cannot write {path}: the directory {path.parent} does not exist")


def _shards(job: Job, limit: int) -> list[list[str]]:
    """The names in order, cut into runs of at most `limit` bytes."""
    shards: list[list[str]] = [[]]
    held = 0
    for name in sorted(job.names, key=_in_network_order):
        size = job.bytes_of(name)
        if shards[-1] and held + size > limit:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards


def _in_network_order(name: str) -> tuple[int, int, str]:
    match = re.match(r"model\.layers\.([0-9]+)\.", name)
    place = 0 if name == EMBEDDING else 1 if match else 2
    return place, int(match[1]) if match else 0, name


def _slice_of(checkpoint: Checkpoint, name: str, part: tuple[slice, ...], progress: Progress) -> LazyTensor:
    def load() -> Iterator[Array]:
        for block in checkpoint.blocks(name, part, dtype="stored"):
            yield block
            progress(block.nbytes)

    shape: Shape = tuple(bounds.stop - bounds.start for bounds in part)
    return LazyTensor(checkpoint.dtype(name), shape, load)


def _require_in_range(checkpoint: Checkpoint, name: str, array: Array) -> None:
    """A weight that became infinite would spoil every output, without a word: refuse the cast."""
    if not np.isfinite(array).all():
        raise CheckpointError(
            f"{checkpoint.path}: tensor {name!r} holds values that float16 has only infinity for; take bf16 or fp32"
        )
