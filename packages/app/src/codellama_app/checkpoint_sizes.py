"""Where a checkpoint's weights are, and the sizes of the network that they are of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from codellama_ckpt import CheckpointError, latest, open_checkpoint
from codellama_ckpt.configuration import CONFIG, configurations
from codellama_model.config import ConfigError, LlamaConfig

if TYPE_CHECKING:
    from codellama_app.config import RunConfig

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


def check_sizes(config: RunConfig) -> None:
    """ConfigError where the checkpoint to start from says other sizes than the configuration."""
    if config.load_checkpoint is None:
        return
    theirs = checkpoint_sizes(Path(config.load_checkpoint))
    if theirs is None:
        return
    ours = config.llama()
    for key, value in ours.to_dict().items():
        found = getattr(theirs, key)
        resolved = {"n_kv_heads": (ours.kv_heads, theirs.kv_heads), "head_dim": (ours.head_size, theirs.head_size)}
        expected, found = resolved.get(key, (value, found))
        # a shorter context is a choice, and so are the ids that text begins and ends with
        if expected != found and key not in {"max_position_embedding", "bos_token_id", "eos_token_id", "pad_token_id"}:
            raise ConfigError(
                f"model.{key} {expected}: load_checkpoint {config.load_checkpoint} is a network with {found}"
                " (--model.preset checkpoint takes its sizes)"
            )
