"""Llama checkpoints without a framework: one reader for every kind, converters, and the sharded format.

Names are MindFormers' throughout, whatever the files say. Everything raises `CheckpointError` with a one-line message.
"""

from __future__ import annotations

from codellama_ckpt.checkpoint import Checkpoint, training_name
from codellama_ckpt.convert import plan, shard, write_full, write_hugging_face
from codellama_ckpt.distributed import write_distributed
from codellama_ckpt.dtypes import from_bfloat16, to_bfloat16
from codellama_ckpt.errors import CheckpointError
from codellama_ckpt.inspection import verify
from codellama_ckpt.layout import Layout, read_layout
from codellama_ckpt.names import to_hugging_face, to_mindformers
from codellama_ckpt.opening import load, open_checkpoint
from codellama_ckpt.retention import is_complete, latest, prune, step_directory
from codellama_ckpt.safetensors_writer import TensorEntry, write_safetensors
from codellama_ckpt.sharded import GlobalSlice, LazyTensor, abandon, finalize, save_sharded
from codellama_ckpt.sharded_reader import verify_sharded

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "GlobalSlice",
    "Layout",
    "LazyTensor",
    "TensorEntry",
    "abandon",
    "finalize",
    "from_bfloat16",
    "is_complete",
    "latest",
    "load",
    "open_checkpoint",
    "plan",
    "prune",
    "read_layout",
    "save_sharded",
    "shard",
    "step_directory",
    "to_bfloat16",
    "to_hugging_face",
    "to_mindformers",
    "training_name",
    "verify",
    "verify_sharded",
    "write_distributed",
    "write_full",
    "write_hugging_face",
    "write_safetensors",
]
