"""Reading a Hugging Face directory: `model.safetensors`, or the shards that `model.safetensors.index.json` lists."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from codellama_ckpt import json_text
from codellama_ckpt.boxes import whole
from codellama_ckpt.checkpoint import Checkpoint, Piece, StoredTensor
from codellama_ckpt.errors import CheckpointError
from codellama_ckpt.names import is_known_extra, to_mindformers
from codellama_ckpt.safetensors_file import SafetensorsFile

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_hugging_face(directory: Path) -> Checkpoint:
    """Open a Hugging Face directory; where both are there, the single file goes before shards, as in transformers."""
    if (directory / SINGLE).is_file():
        return from_files(directory, [SafetensorsFile(directory / SINGLE)])
    shards = _weight_map(directory / INDEX)
    files = []
    for shard, listed in shards.items():
        path = directory / shard
        if not path.is_file():
            raise CheckpointError(f"{directory / INDEX} lists {shard}, which is missing; download it too")
        file = SafetensorsFile(path)
        if missing := [name for name in listed if name not in file.tensors]:
            raise CheckpointError(f"{path} has no tensor {missing[0]!r}, which {INDEX} says it holds")
        if surplus := [name for name in file.tensors if name not in listed and not is_known_extra(name)]:
            raise CheckpointError(f"{path} holds tensor {surplus[0]!r}, which {INDEX} does not place there")
        files.append(file)
    return from_files(directory, files)


def from_files(path: Path, files: list[SafetensorsFile]) -> Checkpoint:
    """A checkpoint of safetensors files whose tensors carry Hugging Face's names, each name in one file only."""
    tensors: dict[str, StoredTensor] = {}
    dropped: list[str] = []
    metadata: dict[str, str] = {}
    for file in files:
        metadata = {**file.metadata, **metadata}
        for name, info in file.tensors.items():
            if is_known_extra(name):
                dropped.append(name)
                continue
            try:
                translated = to_mindformers(name)
            except CheckpointError:
                translated = name  # no parameter of a Llama: `Checkpoint.check` lists it among all that does not fit
            if translated in tensors:
                raise CheckpointError(f"{file.path}: {translated!r} is there twice, under two names")
            piece = Piece(whole(info.shape), file, name)
            tensors[translated] = StoredTensor(info.dtype, info.shape, (piece,))
    return Checkpoint("hugging_face", path, tensors, metadata, tuple(dropped))


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
