"""`open_checkpoint`: the one door. It looks at what is there and hands over to the reader of that kind."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from codellama_ckpt import hugging_face, index, meta
from codellama_ckpt.checkpoint import Checkpoint
from codellama_ckpt.distributed import is_distributed, read_distributed
from codellama_ckpt.dtypes import Array
from codellama_ckpt.errors import CheckpointError
from codellama_ckpt.full import SUFFIXES, read_full
from codellama_ckpt.sharded_reader import read_sharded

_KINDS = (
    f"a Hugging Face directory ({hugging_face.SINGLE}, or {hugging_face.INDEX} and its shards, or the same of "
    f"{hugging_face.TORCH_SINGLE}), "
    f"a sharded checkpoint ({index.INDEX} and {index.COMPLETE}), "
    f"Meta's original format ({meta.PARAMS} and {meta.PARTS}), "
    "MindFormers' rank_N directories, or a .safetensors or .ckpt file"
)


def open_checkpoint(
    path: str | os.PathLike[str], *, verify: bool = False, strategy: str | os.PathLike[str] | None = None
) -> Checkpoint:
    """Open a checkpoint of any kind that this package reads; only headers are read.

    Args:
        path: a Hugging Face directory, a sharded checkpoint's directory, a directory in Meta's original format, one of
            MindFormers' `rank_N` directories, or a `.safetensors` or `.ckpt` file.
        verify: compare what is read with its checksums, where the checkpoint has them: sharded checkpoints and
            safetensors files written by this package tensor by tensor, before the first read of each, a `.ckpt` file
            with its one checksum at once.
        strategy: for MindFormers' `rank_N` directories, where their strategy files are (a directory, or one file that
            MindSpore's `merge_pipeline_strategys` wrote); by default they are looked for where MindFormers puts them.

    Raises:
        CheckpointError: nothing there, nothing of a known kind, or a damaged or incomplete checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        return _open_directory(path, verify, Path(strategy) if strategy is not None else None)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"{path} is not a checkpoint of a known kind; expected {_KINDS}")
    return read_full(path, verify)


def load(
    path: str | os.PathLike[str], slices: Mapping[str, tuple[slice, ...]], *, verify: bool = False
) -> dict[str, Array]:
    """Read slices of a checkpoint of any kind: the counterpart of `save_sharded`, for whatever topology.

    Args:
        path: as for `open_checkpoint`.
        slices: by name, what to read of each tensor; `()` is all of it. Other tensors are not touched.
        verify: as for `open_checkpoint`.

    Returns:
        The slices, in the stored types; bfloat16, which NumPy lacks, as its bits (uint16).
    """
    checkpoint = open_checkpoint(path, verify=verify)
    return {name: checkpoint.read(name, part, dtype="stored") for name, part in slices.items()}


def _open_directory(directory: Path, verify: bool, strategy: Path | None) -> Checkpoint:
    if (directory / index.COMPLETE).is_file() or (directory / index.INDEX).is_file():
        return read_sharded(directory, verify)
    if hugging_face.is_hugging_face(directory):
        return hugging_face.read_hugging_face(directory, verify)
    if (directory / meta.PARAMS).is_file() and any(directory.glob(meta.PARTS)):
        return meta.read_meta(directory)
    if is_distributed(directory):
        return read_distributed(directory, strategy)
    files = [entry.name for suffix in SUFFIXES for entry in sorted(directory.glob(f"*{suffix}"))][:3]
    hint = f"; it holds {', '.join(files)}: give the file itself" if files else ""
    raise CheckpointError(f"{directory} holds no checkpoint of a known kind: looked for {_KINDS}{hint}")
