"""What a checkpoint holds, as a table; and whether it is what was saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

from codellama_ckpt.boxes import text_of
from codellama_ckpt.checkpoint import Checkpoint, Piece
from codellama_ckpt.checksums import checksum_of
from codellama_ckpt.errors import CheckpointError
from codellama_ckpt.hugging_face import safetensors_files
from codellama_ckpt.mindspore_file import MindSporeFile, checksum_fault
from codellama_ckpt.safetensors_file import SafetensorsFile
from codellama_ckpt.sharded_reader import verify_sharded

_UNITS = ("bytes", "KB", "MB", "GB", "TB")
_DISTRIBUTED = ("sharded", "distributed", "meta")


def render(checkpoint: Checkpoint) -> Iterator[str]:
    """The lines of the table: names, shapes, types, sizes, and where several files make up tensors, what each holds."""
    names = (*checkpoint.names(), *checkpoint.training_names())
    rows = [
        (name, str(list(checkpoint.shape(name))), checkpoint.dtype(name), human_size(checkpoint.size(name)))
        for name in names
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
    for name, row in zip(names, rows, strict=True):
        line = "  ".join(text.ljust(width) for text, width in zip(row[:3], widths, strict=False))
        line += "  " + row[3].rjust(widths[3])
        yield f"{line}  {_holders(checkpoint.pieces(name))}" if checkpoint.kind in _DISTRIBUTED else line
    files = len({piece.file for name in names for piece in checkpoint.pieces(name)})
    parameters = sum(math.prod(checkpoint.shape(name)) for name in checkpoint)
    total = sum(checkpoint.size(name) for name in names)
    yield (
        f"{checkpoint.path}: {checkpoint.kind.replace('_', ' ')}, {len(checkpoint):,} tensors, "
        f"{parameters:,} parameters, {human_size(total)} in {files} {'file' if files == 1 else 'files'}"
    )
    if checkpoint.training_names():
        yield f"{len(checkpoint.training_names()):,} arrays of training state"
    for key, value in checkpoint.state.items():
        yield f"state {key}: {value!r:.200}"
    if checkpoint.dropped:
        yield f"no parameters, passed over: {', '.join(checkpoint.dropped)}"


def verify(checkpoint: Checkpoint, progress: Callable[[int], object] = lambda _: None) -> str:
    """Compare every byte of a checkpoint with its checksums.

    Args:
        checkpoint: of any kind.
        progress: is told the bytes of each tensor when it was compared.

    Returns:
        One line that says what was compared. Files of others have no checksums: then only their structure was.

    Raises:
        CheckpointError: it is damaged (file and tensors are named), or can not be read.
    """
    path = checkpoint.path
    if checkpoint.kind == "sharded":
        return f"{path}: {human_size(verify_sharded(path, progress))} agree with their checksums"
    compared = 0
    damaged = []
    for file in _files(path, checkpoint):
        if isinstance(file, MindSporeFile):
            if file.has_checksum:
                if fault := checksum_fault(file.path):
                    raise CheckpointError(fault)
                compared += sum(info.size for info in file.tensors.values())
            continue
        for name, expected in file.checksums.items():
            if checksum_of(file, name) != expected:
                damaged.append(f"{name} in {file.path.name}")
            compared += file.tensors[name].size
            progress(file.tensors[name].size)
    if damaged:
        raise CheckpointError(f"{path} is damaged: {len(damaged)} checksums differ: {', '.join(damaged)}")
    total = sum(checkpoint.size(name) for name in checkpoint)
    if not compared:
        return f"{path}: {human_size(total)}, sound in structure; it carries no checksums to compare with"
    return f"{path}: {human_size(compared)} agree with their checksums"


def human_size(count: int) -> str:
    """Bytes as people read them, in units of 1000."""
    size, unit = float(count), 0
    while size >= 999.5 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{count:,} bytes" if unit == 0 else f"{size:.3g} {_UNITS[unit]}"


def _files(path: Path, checkpoint: Checkpoint) -> list[SafetensorsFile | MindSporeFile]:
    """The files of a checkpoint that may carry checksums."""
    if path.suffix == ".ckpt":
        return [MindSporeFile(path)]
    if checkpoint.kind == "distributed":
        ranks = {piece.file for name in checkpoint for piece in checkpoint.pieces(name)}
        return [MindSporeFile(path / file) for file in sorted(ranks)]
    if path.is_file():
        return [SafetensorsFile(path)]
    return [*safetensors_files(path)] if checkpoint.kind == "hugging_face" else []


def _holders(pieces: tuple[Piece, ...]) -> str:
    return ", ".join(f"{_holder(piece.file)} {text_of(piece.box)}" for piece in pieces)


def _holder(file: str) -> str:
    """`rank 3` of the files that ranks write, else the file itself."""
    name = file.removesuffix(".safetensors")
    if name.startswith("part_") and name[5:10].isdigit():
        return f"rank {int(name[5:10])}"
    return file.split("/", maxsplit=1)[0].replace("rank_", "rank ") if file.startswith("rank_") else file
