"""Reading and verifying a sharded checkpoint, whatever topology wrote it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from codellama_ckpt.boxes import Shape, extent
from codellama_ckpt.checkpoint import Checkpoint, Piece, StoredTensor
from codellama_ckpt.checksums import Verified, checksum_of
from codellama_ckpt.dtypes import dtype_named
from codellama_ckpt.errors import CheckpointError
from codellama_ckpt.files import reported
from codellama_ckpt.index import COMPLETE, INDEX, Index, read_index
from codellama_ckpt.safetensors_file import SafetensorsFile, checksum
from codellama_ckpt.sharded import SAVE_KEY


def read_sharded(directory: Path, verify: bool = False) -> Checkpoint:
    """Open a sharded checkpoint; CheckpointError unless it is complete and its index and its files agree.

    Args:
        directory: of the checkpoint.
        verify: compare each slice with its checksum before the first read of it.
    """
    index, files = _opened(directory)
    sources: dict[str, SafetensorsFile | Verified] = dict(files)
    if verify:
        expected: dict[str, dict[str, str]] = {file: {} for file in files}
        for name, record in index.tensors.items():
            for piece in record.slices:
                expected[piece.file][name] = piece.crc32
        sources = {name: Verified(file, expected[name]) for name, file in files.items()}
    tensors = {}
    for name, record in index.tensors.items():
        pieces = tuple(Piece(piece.box, sources[piece.file], name, piece.file) for piece in record.slices)
        tensors[name] = StoredTensor(dtype_named(record.dtype), record.shape, pieces)
    return Checkpoint("sharded", directory, tensors, index.metadata, state=index.state)


def verify_sharded(directory: str | os.PathLike[str], progress: Callable[[int], object] = lambda _: None) -> int:
    """Read every byte of a sharded checkpoint and compare the checksums.

    Args:
        directory: of the checkpoint.
        progress: is told the bytes of each slice when it was compared.

    Returns:
        Bytes of tensors read.

    Raises:
        CheckpointError: the checkpoint can not be opened, or slices differ from what was saved (all of them are named).
    """
    directory = Path(directory)
    index, files = _opened(directory)
    total, damaged = 0, []
    for name, record in index.tensors.items():
        for piece in record.slices:
            if checksum_of(files[piece.file], name) != piece.crc32:
                damaged.append(f"{name} in {piece.file}")
            total += piece.bytes
            progress(piece.bytes)
    if damaged:
        raise CheckpointError(f"{directory} is damaged: {len(damaged)} checksums differ: {', '.join(damaged)}")
    return total


def _opened(directory: Path) -> tuple[Index, dict[str, SafetensorsFile]]:
    if not (directory / COMPLETE).is_file():
        raise CheckpointError(f"{directory} is not complete: it has no {COMPLETE} marker; take an older checkpoint")
    with reported(f"read {directory}"):
        marker = (directory / COMPLETE).read_bytes()
        content = (directory / INDEX).read_bytes()
    if marker != f"{checksum(content)}\n".encode():
        raise CheckpointError(f"{directory / INDEX} is damaged: its checksum is not the one in {COMPLETE}")
    index = read_index(directory / INDEX)
    held: dict[str, dict[str, tuple[str, Shape]]] = {name: {} for name in index.files}
    for name, record in index.tensors.items():
        for piece in record.slices:
            if name in held[piece.file]:
                raise CheckpointError(f"{directory / INDEX}: tensor {name!r} has two slices in {piece.file}")
            held[piece.file][name] = record.dtype, extent(piece.box)
    index.check_tiling(directory / INDEX)
    return index, {file: _part(directory / file, index, tensors) for file, tensors in held.items()}


def _part(path: Path, index: Index, expected: dict[str, tuple[str, Shape]]) -> SafetensorsFile:
    """Open one file of the checkpoint, which must hold exactly what the index says it holds."""
    if path.is_symlink():
        raise CheckpointError(
            f"{path} is a link; the files of a sharded checkpoint lie in its directory: copy it there"
        )
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, which {INDEX} lists")
    size = index.files[path.name]
    if path.stat().st_size != size:
        raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes, {INDEX} says {size:,}; copy it again")
    file = SafetensorsFile(path)
    if file.metadata.get(SAVE_KEY) != index.save:
        found = file.metadata.get(SAVE_KEY)
        raise CheckpointError(f"{path} belongs to another save: {found!r}, {INDEX} is of {index.save!r}")
    found_tensors = {name: (info.dtype.name, info.shape) for name, info in file.tensors.items()}
    if differing := sorted(expected.items() ^ found_tensors.items()):
        raise CheckpointError(f"{path}: tensor {differing[0][0]!r} is not what {INDEX} says it is")
    return file
