"""What a checkpoint brings along besides its weights: sizes, tokenizer, the ids that end a text. No MindSpore."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from codellama_ckpt import Checkpoint, open_checkpoint
from codellama_ckpt.configuration import CONFIG, GENERATION_CONFIG, configurations
from codellama_model.config import ConfigError, LlamaConfig
from codellama_tokenizer import CodeLlamaTokenizer

from codellama_app.adapters import LORA_KEY, PEFT_CONFIG
from codellama_app.checkpoint_sizes import TOKENIZER, weights_path
from codellama_app.command import UserError


@dataclass(frozen=True)
class Pretrained:
    """A checkpoint that has been looked at; no weight is read yet.

    Attributes:
        checkpoint: where the weights are.
        config: the network's sizes.
        tokenizer: None where there is no `tokenizer.model`.
        stop_ids: ids that end a text.
    """

    checkpoint: Checkpoint
    config: LlamaConfig
    tokenizer: CodeLlamaTokenizer | None
    stop_ids: frozenset[int]


def open_pretrained(
    path: str | os.PathLike[str],
    fallback_config: LlamaConfig | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
) -> Pretrained:
    """Looks at a checkpoint. Arguments and errors: `CodeLlama.from_pretrained`."""
    path = Path(path)
    checkpoint = _weights(path)
    config, stop_ids = _configuration(checkpoint, fallback_config)
    home = path if path.is_dir() else path.parent
    loaded = _tokenizer(tokenizer, (home, checkpoint.path, checkpoint.path.parent.parent))
    if loaded is not None and loaded.vocab_size > config.vocab_size:
        loaded.check_vocab_size(config.vocab_size)
    return Pretrained(checkpoint, config, loaded, stop_ids)


def _weights(path: Path) -> Checkpoint:
    """The checkpoint at `path`, or the newest of the run there."""
    checkpoint = None if (path / PEFT_CONFIG).is_file() else open_checkpoint(weights_path(path))
    if checkpoint is None or LORA_KEY in checkpoint.metadata:
        raise UserError(
            f"{path} holds adapters and no network: merge them first, with codellama-lora merge --adapter_path"
            f" {shlex.quote(str(path))} --output_path merged.safetensors"
        )
    return checkpoint


def _configuration(checkpoint: Checkpoint, fallback: LlamaConfig | None) -> tuple[LlamaConfig, frozenset[int]]:
    """The network's sizes as the checkpoint says them, and the ids that end a text."""
    found = configurations(checkpoint)
    if CONFIG in found:
        try:
            config = LlamaConfig.from_hugging_face(found[CONFIG])
        except ConfigError as error:
            raise ConfigError(f"{checkpoint.path}: {error}") from None
    elif fallback is not None:
        config = fallback
    else:
        raise ConfigError(f"{checkpoint.path} does not say the network's sizes: put its config.json beside it")
    for key in (GENERATION_CONFIG, CONFIG):
        ids = found.get(key, {}).get("eos_token_id")
        if ids is not None:
            return config, _stop_ids(ids, config, f"{checkpoint.path}: {key}")
    return config, frozenset({config.eos_token_id})


def _stop_ids(value: object, config: LlamaConfig, where: str) -> frozenset[int]:
    ids = value if isinstance(value, list) else [value]
    for one in ids:
        if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < config.vocab_size:
            raise ConfigError(
                f"{where}: eos_token_id must be ids below vocab_size {config.vocab_size}, found {value!r}"
            )
    return frozenset(ids)


def _tokenizer(given: str | os.PathLike[str] | None, folders: Sequence[Path]) -> CodeLlamaTokenizer | None:
    if given is not None:
        return CodeLlamaTokenizer(given)
    for folder in folders:
        if (folder / TOKENIZER).is_file():
            return CodeLlamaTokenizer(folder / TOKENIZER)
    return None
