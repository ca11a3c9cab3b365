"""Reading a full checkpoint: one safetensors file with MindFormers' names (or, recognised by them, Hugging Face's)."""

from __future__ import annotations

from pathlib import Path

from codellama_ckpt import hugging_face
from codellama_ckpt.boxes import whole
from codellama_ckpt.checkpoint import Checkpoint, Piece, StoredTensor
from codellama_ckpt.names import are_hugging_face
from codellama_ckpt.safetensors_file import SafetensorsFile


def read_full(path: Path) -> Checkpoint:
    """Open a single safetensors file. Names that are not Hugging Face's are taken as they are."""
    file = SafetensorsFile(path)
    if are_hugging_face(file.tensors):
        return hugging_face.from_files(path, [file])
    tensors = {
        name: StoredTensor(info.dtype, info.shape, (Piece(whole(info.shape), file, name),))
        for name, info in file.tensors.items()
    }
    return Checkpoint("full", path, tensors, file.metadata)
