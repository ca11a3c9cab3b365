"""Reading a full checkpoint: one file with MindFormers' names (or, recognised by them, Hugging Face's)."""

from __future__ import annotations

from pathlib import Path

from codellama_ckpt import hugging_face
from codellama_ckpt.boxes import whole
from codellama_ckpt.checkpoint import Checkpoint, Piece, StoredTensor
from codellama_ckpt.checksums import Verified
from codellama_ckpt.errors import CheckpointError
from codellama_ckpt.mindspore_file import MindSporeFile, checksum_fault
from codellama_ckpt.names import are_hugging_face, is_training_extra
from codellama_ckpt.safetensors_file import SafetensorsFile

SUFFIXES = (".safetensors", ".ckpt")


def read_full(path: Path, verify: bool = False) -> Checkpoint:
    """Open a single file, safetensors or MindSpore's. Names that are not Hugging Face's are taken as they are.

    Args:
        path: of the file; its suffix says what it is.
        verify: compare with the checksums that the file has: a safetensors file tensor by tensor, before the first
            read of each; a `.ckpt` file, which has one checksum for all, now.
    """
    if path.suffix == ".ckpt":
        return _read_mindspore(path, verify)
    file = SafetensorsFile(path)
    if are_hugging_face(file.tensors):
        return hugging_face.from_files(path, [file], verify)
    source = Verified(file, dict(file.checksums)) if verify else file
    tensors = {
        name: StoredTensor(info.dtype, info.shape, (Piece(whole(info.shape), source, name, path.name),))
        for name, info in file.tensors.items()
    }
    return Checkpoint("full", path, tensors, file.metadata)


def _read_mindspore(path: Path, verify: bool) -> Checkpoint:
    file = MindSporeFile(path)
    if verify and file.has_checksum and (fault := checksum_fault(path)):
        raise CheckpointError(fault)
    tensors = {
        name: StoredTensor(info.dtype, info.shape, (Piece(whole(info.shape), file, name, path.name),))
        for name, info in file.tensors.items()
        if not is_training_extra(name)
    }
    dropped = tuple(name for name in file.tensors if name not in tensors) + file.texts
    return Checkpoint("full", path, tensors, file.metadata, dropped)
