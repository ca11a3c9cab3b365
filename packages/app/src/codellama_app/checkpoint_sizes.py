"""Where a checkpoint's weights are, and the sizes of the network that they are of."""

from __future__ import annotations

from pathlib import Path

from codellama_ckpt import CheckpointError, latest, open_checkpoint
from codellama_ckpt.configuration import CONFIG, configurations
from codellama_model.config import ConfigError, LlamaConfig

CHECKPOINTS = "checkpoints"  # of a run's directory
TOKENIZER = "tokenizer.model"


def weights_path(path: Path) -> Path:
    """Where the weights are: in a run's directory the newest checkpoint, else `path` itself.

    Raises:
        CheckpointError: a run that has saved nothing yet.
    """
    if not (path / CHECKPOINTS).is_dir():
        return path
    newest = latest(path / CHECKPOINTS)
    if newest is None:
        raise CheckpointError(f"{path / CHECKPOINTS} holds no complete checkpoint; has the run saved one yet?")
    return newest


def checkpoint_sizes(path: Path) -> LlamaConfig | None:
    """The configuration of a checkpoint's network, from its metadata or `config.json` beside it; None without either.

    Raises:
        CheckpointError: no checkpoint there, or a damaged one.
        ConfigError: what is said is no Llama network.
    """
    checkpoint = open_checkpoint(weights_path(path))
    values = configurations(checkpoint).get(CONFIG)
    try:
        return None if values is None else LlamaConfig.from_hugging_face(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
