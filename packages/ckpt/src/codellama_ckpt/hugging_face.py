"""Reading a Hugging Face directory: one file of weights, or the shards that its index lists.

The weights are safetensors (`model.safetensors`) or, in old directories, pickles of PyTorch (`pytorch_model.bin`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from codellama_ckpt import json_text
from codellama_ckpt.boxes import whole
from codellama_ckpt.checkpoint import Checkpoint, Piece, StoredTensor
from codellama_ckpt.checksums import Verified
from codellama_ckpt.errors import CheckpointError
from codellama_ckpt.names import is_known_extra, to_mindformers
from codellama_ckpt.safetensors_file import SafetensorsFile
from codellama_ckpt.torch_file import TorchFile

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TORCH_SINGLE = "pytorch_model.bin"
TORCH_INDEX = "pytorch_model.bin.index.json"

WeightsFile: TypeAlias = SafetensorsFile | TorchFile


def is_hugging_face(directory: Path) -> bool:
    """Whether a directory holds weights under the names that Hugging Face gives to their files."""
    return any((directory / name).is_file() for name in (SINGLE, INDEX, TORCH_SINGLE, TORCH_INDEX))


def read_hugging_face(directory: Path, verify: bool = False) -> Checkpoint:
    """Open a Hugging Face directory: safetensors before pickles and one file before shards, as in transformers.

    Args:
        directory: of the model.
        verify: compare tensors with their checksums, in files that have them, before the first read of each.
    """
    return from_files(directory, _files(directory), verify)


def safetensors_files(directory: Path) -> list[SafetensorsFile]:
    """The safetensors files that a directory's weights lie in; none where they are pickles."""
    return [file for file in _files(directory) if isinstance(file, SafetensorsFile)]


def from_files(path: Path, files: Sequence[WeightsFile], verify: bool = False) -> Checkpoint:
    """A checkpoint of files whose tensors carry Hugging Face's names, each name in one file only."""
    tensors: dict[str, StoredTensor] = {}
    dropped: list[str] = []
    duplicates: list[str] = []
    metadata: dict[str, str] = {}
    for file in files:
        metadata = {**file.metadata, **metadata}
        verifies = verify and isinstance(file, SafetensorsFile)
        source = Verified(file, dict(file.checksums)) if verifies else file  # type: ignore[union-attr, arg-type]
        for name, info in file.tensors.items():
            if is_known_extra(name):
                dropped.append(name)
                continue
            try:
                translated = to_mindformers(name)
            except CheckpointError:
                translated = name  # no parameter of a Llama: `Checkpoint.check` lists it among all that does not fit
            if translated in tensors:
                duplicates.append(f"{translated} (again in {file.path.name})")
                continue
            piece = Piece(whole(info.shape), source, name, file.path.name)
            tensors[translated] = StoredTensor(info.dtype, info.shape, (piece,))
    if duplicates:
        raise CheckpointError(f"{path}: {len(duplicates)} tensors are there twice: {', '.join(duplicates)}")
    return Checkpoint("hugging_face", path, tensors, metadata, tuple(dropped))


def _files(directory: Path) -> list[WeightsFile]:
    for single, index, kind in ((SINGLE, INDEX, SafetensorsFile), (TORCH_SINGLE, TORCH_INDEX, TorchFile)):
        if (directory / single).is_file():
            return [kind(directory / single)]
        if (directory / index).is_file():
            return _shards(directory / index, kind)
    raise CheckpointError(f"{directory} holds no weights: neither {SINGLE} nor {INDEX}")


def _shards(index: Path, kind: type[WeightsFile]) -> list[WeightsFile]:
    files: list[WeightsFile] = []
    faults = []
    for shard, listed in _weight_map(index).items():
        path = index.parent / shard
        if not path.is_file():
            raise CheckpointError(f"{index} lists {shard}, which is missing; download it too")
        file = kind(path)
        files.append(file)
        faults += [f"{shard} lacks {name}" for name in sorted(listed - file.tensors.keys())]
        surplus = sorted(name for name in file.tensors.keys() - listed if not is_known_extra(name))
        faults += [f"{shard} holds {name}, which it does not place there" for name in surplus]
    if faults:
        raise CheckpointError(f"{index} does not describe its shards: {'; '.join(faults)}")
    return files


def _weight_map(index: Path) -> Mapping[str, set[str]]:
    """Shard file -> the tensors it holds, by file name."""
    content = json_text.read(index)
    placed = json_text.as_texts(content.get("weight_map"), f"{index}: weight_map")
    shards: dict[str, set[str]] = {}
    for name, shard in placed.items():
        # Judged by the name alone: in Hugging Face's cache a shard is a link that leads out of the directory.
        relative = PurePosixPath(shard)
        if not relative.parts or relative.is_absolute() or ".." in relative.parts or "\0" in shard:
            raise CheckpointError(f"{index} places tensor {name!r} in {shard!r}, which is not within its directory")
        shards.setdefault(shard, set()).add(name)
    if not shards:
        raise CheckpointError(f"{index} lists no tensors")
    return dict(sorted(shards.items()))
