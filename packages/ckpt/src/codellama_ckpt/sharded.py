"""Saving a sharded checkpoint: each writer streams its slices into one file, then a rename makes it all appear.

All writers of one save write into `.NAME.TOKEN.tmp` beside the target. `finalize` merges their indexes, writes the
COMPLETE marker last, and renames. There is no waiting in here: who runs several writers synchronises them.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from codellama_ckpt import json_text
from codellama_ckpt.boxes import Box, Shape, box_of, extent, whole
from codellama_ckpt.dtypes import BY_NAME, Array, dtype_named
from codellama_ckpt.errors import CheckpointError
from codellama_ckpt.files import put_in_place, reported, write_file
from codellama_ckpt.index import COMPLETE, INDEX, Index, SliceRecord, TensorRecord, merge, read_index
from codellama_ckpt.safetensors_file import checksum
from codellama_ckpt.safetensors_writer import TensorEntry, write_safetensors

SAVE_KEY = "save"  # in the header of every part: the save that it belongs to
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")


class LazyTensor(NamedTuple):
    """A tensor made only when it is written; the fields mean what they mean in `TensorEntry`."""

    dtype: str
    shape: Shape
    load: Callable[[], Array | Iterator[Array]]


class GlobalSlice(NamedTuple):
    """The place of a writer's array in the whole tensor: the whole `shape`, and which `slices` of it the array is."""

    shape: Shape
    slices: tuple[slice, ...]


Value: TypeAlias = Array | LazyTensor | Callable[[], Array]


def save_sharded(
    tree: Mapping[str, Value],
    directory: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    state: Mapping[str, object] | None = None,
    slices: Mapping[str, GlobalSlice] | None = None,
    writer: int = 0,
    writers: int = 1,
    token: str | None = None,
    overwrite: bool = False,
) -> None:
    """Save tensors, or this writer's slices of them, as a sharded checkpoint.

    With one writer the directory is complete on return. With several, each calls this with its own `writer`; once all
    have returned, one of them calls `finalize`. Together their slices must cover every tensor exactly once: of
    replicated tensors only one writer's tree may hold the copy.

    Args:
        tree: name -> array; or `LazyTensor`, loaded when it is its turn, so that at most one is in memory at a time; or
            a bare callable that returns the array. A bare callable is called twice, as the file's header needs all
            types and shapes first: once for those and once to write. bfloat16 needs `LazyTensor` (bits as uint16).
        directory: to appear; its parent must exist.
        metadata: free text fields; writers may give different ones, but not different values of one.
        state: of the run, as JSON takes it: step, data position, random state, loss scale. The same rule. Arrays of it
            (optimizer moments) go into `tree`, under names made by `training_name`, and may be sliced like parameters.
        slices: for the names whose value is a part of the tensor, which part. A name not mentioned is whole.
        writer: which of the `writers` this is, from 0.
        writers: how many write this checkpoint.
        token: names this save (letters, digits, `_`, `-`; at most 64); the same for all writers of one save and
            different for any other. Required of several writers.
        overwrite: replace a sharded checkpoint that is already there. It stays until the new one is whole; then they
            change places in one step. (On file systems that can not do that, in two renames: a process killed between
            them leaves both as hidden directories beside `directory`.)

    Raises:
        CheckpointError: a contradiction in the arguments, something in the way at `directory`, a `load` that did not
            return what was promised, or a failing write (no space). Whatever a `load` raises comes through. In every
            case nothing of this writer is left behind and what was at `directory` is as it was.
    """
    directory = Path(directory)
    if not 0 <= writer < writers:
        raise CheckpointError(f"{directory}: writer {writer} of {writers}: expected a writer from 0 to {writers - 1}")
    if token is None and writers > 1:
        raise CheckpointError(f"{directory}: {writers} writers need one token that names this save")
    token = secrets.token_hex(8) if token is None else token
    temporary = _temporary(directory, token)
    _require_free(directory, overwrite)
    entries, boxes = _entries(tree, slices or {}, directory)
    with reported(f"create {temporary}"):
        temporary.mkdir(exist_ok=writers > 1)
    part = temporary / _part(writer, writers)
    if part.with_suffix(".json").exists():
        raise CheckpointError(f"{part} is already written; each save needs a token of its own")
    try:
        _write_part(
            part, entries, boxes, dict(metadata or {}), _json_state(state, directory), _save_name(directory, token)
        )
    except BaseException:
        part.unlink(missing_ok=True)
        part.with_suffix(".json").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # other writers' files are still in it
            temporary.rmdir()
        raise
    if writers == 1:
        finalize(directory, 1, token=token, overwrite=overwrite)


def finalize(directory: str | os.PathLike[str], writers: int, *, token: str, overwrite: bool = False) -> None:
    """Make one checkpoint of what all writers of the save `token` wrote, and put it in place.

    To be called once, by one process, after every writer's `save_sharded` returned. When it fails, the temporary
    directory is removed with everything in it.

    Args:
        directory: as given to `save_sharded`, like the others.
        writers: how many there were.
        token: of the save.
        overwrite: replace a sharded checkpoint that is already there.

    Raises:
        CheckpointError: a writer's part is missing, the parts contradict each other or do not cover every tensor
            exactly once, or a write fails. What was at `directory` is as it was.
    """
    directory = Path(directory)
    temporary = _temporary(directory, token)
    if not temporary.is_dir():
        raise CheckpointError(f"no writer of the save {token!r} wrote anything for {directory}")
    try:
        _require_free(directory, overwrite)
        parts = [temporary / _part(writer, writers) for writer in range(writers)]
        for writer, part in enumerate(parts):
            if not part.with_suffix(".json").is_file():
                raise CheckpointError(f"{directory}: writer {writer} of {writers} left no part; nothing was saved")
        indexes = [read_index(part.with_suffix(".json")) for part in parts]
        content = merge(indexes, directory).to_json()
        with reported(f"write {directory}"):
            for path in temporary.iterdir():  # the writers' indexes, and what a killed writer of this token left
                if path not in parts:
                    path.unlink()
        write_file(temporary / INDEX, content)
        write_file(temporary / COMPLETE, f"{checksum(content)}\n".encode())
        put_in_place(temporary, directory, token)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def abandon(directory: str | os.PathLike[str], *, token: str) -> None:
    """Remove what the writers of a save wrote that will not be finalized; nothing where there is nothing."""
    shutil.rmtree(_temporary(Path(directory), token), ignore_errors=True)


def _entries(
    tree: Mapping[str, Value], slices: Mapping[str, GlobalSlice], directory: Path
) -> tuple[list[TensorEntry], dict[str, tuple[Shape, Box]]]:
    """What to write, and for each name the whole shape and the box."""
    if unknown := [name for name in slices if name not in tree]:
        raise CheckpointError(f"{directory}: slices are given for {unknown[0]!r}, which is not among the tensors")
    entries = [_entry(name, value, directory) for name, value in tree.items()]
    boxes = {}
    for entry in entries:
        box, shape = whole(entry.shape), entry.shape
        if entry.name in slices:
            shape = tuple(slices[entry.name].shape)
            try:
                box = box_of(slices[entry.name].slices, shape)
            except ValueError as error:
                raise CheckpointError(f"{directory}: tensor {entry.name!r} {list(shape)}: {error}") from None
            if extent(box) != entry.shape:
                raise CheckpointError(
                    f"{directory}: tensor {entry.name!r}: the slice given is {list(extent(box))}, "
                    f"its array {list(entry.shape)}"
                )
        boxes[entry.name] = shape, box
    return entries, boxes


def _entry(name: str, value: Value, directory: Path) -> TensorEntry:
    if isinstance(value, LazyTensor):
        dtype_named(value.dtype)
        return TensorEntry(name, value.dtype, tuple(value.shape), value.load)
    array = np.asarray(value() if callable(value) else value)
    if array.dtype.name not in BY_NAME:
        raise CheckpointError(f"{directory}: tensor {name!r}: {array.dtype.name} is not an element type of checkpoints")
    return TensorEntry(name, array.dtype.name, array.shape, value if callable(value) else lambda: array)


def _json_state(state: Mapping[str, object] | None, directory: Path) -> dict[str, object]:
    """The state as it will be read: tuples become lists, and what JSON can not hold is refused."""
    try:
        return json_text.parse(json.dumps(dict(state or {}), allow_nan=False).encode(), "state")
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{directory}: the state can not be written as JSON: {error}") from None


def _write_part(
    part: Path,
    entries: list[TensorEntry],
    boxes: Mapping[str, tuple[Shape, Box]],
    metadata: dict[str, str],
    state: dict[str, object],
    save: str,
) -> None:
    sums = write_safetensors(part, entries, {SAVE_KEY: save})
    tensors = {}
    for entry in entries:
        shape, box = boxes[entry.name]
        size = math.prod(entry.shape) * dtype_named(entry.dtype).storage.itemsize
        tensors[entry.name] = TensorRecord(entry.dtype, shape, (SliceRecord(part.name, box, size, sums[entry.name]),))
    index = Index(save, metadata, state, {part.name: part.stat().st_size}, tensors)
    write_file(part.with_suffix(".json"), index.to_json())


def _require_free(directory: Path, overwrite: bool) -> None:
    if not directory.parent.is_dir():
        raise CheckpointError(f"cannot write {directory}: the directory {directory.parent} does not exist")
    if not os.path.lexists(directory):
        return
    if directory.is_dir() and not directory.is_symlink():
        if not any(directory.iterdir()):
            return
        if (directory / COMPLETE).is_file():
            if overwrite:
                return
            raise CheckpointError(f"{directory} is a checkpoint already; it is only replaced on request (overwrite)")
    raise CheckpointError(f"{directory} exists and is no sharded checkpoint; move it away")


def _temporary(directory: Path, token: str) -> Path:
    if not _TOKEN.fullmatch(token):
        raise CheckpointError(f"a token is 1 to 64 letters, digits, '_' and '-', found {token!r}")
    return directory.parent / f".{directory.name}.{token}.tmp"


def _part(writer: int, writers: int) -> str:
    return f"part_{writer:05d}_of_{writers:05d}.safetensors"


def _save_name(directory: Path, token: str) -> str:
    return f"{directory.name}.{token}"
