"""Llama checkpoints without a framework: one reader for every kind, streaming writers, and the sharded format.

Names are MindFormers' throughout, whatever the files say. Everything raises `CheckpointError` with a one-line message.
"""

from __future__ import annotations

from codellama_ckpt.checkpoint import Checkpoint
from codellama_ckpt.dtypes import from_bfloat16, to_bfloat16
from codellama_ckpt.errors import CheckpointError
from codellama_ckpt.names import to_hugging_face, to_mindformers
from codellama_ckpt.opening import open_checkpoint
from codellama_ckpt.retention import is_complete, latest, prune, step_directory
from codellama_ckpt.safetensors_writer import TensorEntry, write_safetensors
from codellama_ckpt.sharded import GlobalSlice, LazyTensor, finalize, save_sharded
from codellama_ckpt.sharded_reader import verify_sharded

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "GlobalSlice",
    "LazyTensor",
    "TensorEntry",
    "finalize",
    "from_bfloat16",
    "is_complete",
    "latest",
    "open_checkpoint",
    "prune",
    "save_sharded",
    "step_directory",
    "to_bfloat16",
    "to_hugging_face",
    "to_mindformers",
    "verify_sharded",
    "write_safetensors",
]
