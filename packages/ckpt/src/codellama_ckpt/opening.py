"""`open_checkpoint`: the one door. It looks at what is there and hands over to the reader of that kind."""

from __future__ import annotations

import os
from pathlib import Path

from codellama_ckpt import hugging_face, index
from codellama_ckpt.checkpoint import Checkpoint
from codellama_ckpt.errors import CheckpointError
from codellama_ckpt.full import read_full
from codellama_ckpt.hugging_face import read_hugging_face
from codellama_ckpt.sharded_reader import read_sharded

_KINDS = (
    f"a Hugging Face directory ({hugging_face.SINGLE}, or {hugging_face.INDEX} and its shards), "
    f"a sharded checkpoint ({index.INDEX} and {index.COMPLETE}), or a .safetensors file"
)


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint of any kind that this package reads; only headers are read.

    Args:
        path: a Hugging Face directory, a sharded checkpoint's directory, or a `.safetensors` file.

    Raises:
        CheckpointError: nothing there, nothing of a known kind, or a damaged or incomplete checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        return _open_directory(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path} is not a checkpoint of a known kind; expected {_KINDS}")
    return read_full(path)


def _open_directory(directory: Path) -> Checkpoint:
    if (directory / index.COMPLETE).is_file() or (directory / index.INDEX).is_file():
        return read_sharded(directory)
    if (directory / hugging_face.SINGLE).is_file() or (directory / hugging_face.INDEX).is_file():
        return read_hugging_face(directory)
    if pickles := sorted(directory.glob("pytorch_model*.bin")):
        raise CheckpointError(
            f"{directory} holds its weights as a pickle only ({pickles[0].name}), which is not read here; convert it: "
            f"transformers' AutoModelForCausalLM.from_pretrained({str(directory)!r}).save_pretrained(OUT) "
            "writes safetensors"
        )
    files = [entry.name for entry in sorted(directory.glob("*.safetensors"))[:3]]
    hint = f"; it holds {', '.join(files)}: give the file itself" if files else ""
    raise CheckpointError(f"{directory} holds no checkpoint of a known kind: looked for {_KINDS}{hint}")
