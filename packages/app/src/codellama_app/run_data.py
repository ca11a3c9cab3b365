"""The rows of a run: files that were given, or made of a corpus."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from codellama_app import corpus_data
from codellama_app.checkpoint_sizes import TOKENIZER
from codellama_app.config import RunConfig


@dataclass(frozen=True)
class RunData:
    """Where the rows are, those held out (or None), and the tokenizer that made them (None where nobody said)."""

    train_rows: Path
    eval_rows: Path | None
    model_file: Path | None


def find_data(config: RunConfig) -> RunData:
    """The data of a configuration; makes the rows of a corpus first, and prints so.

    Raises:
        DataError, TokenizerError: see `corpus_data.prepare`.
    """
    data = config.dataset
    if data.train_dataset_dir is None:
        made = corpus_data.prepare(config)
        made.tokenizer.check_vocab_size(config.llama().vocab_size)
        return RunData(made.train_rows, made.eval_rows, made.tokenizer.model_file)
    eval_rows = Path(data.eval_dataset_dir) if data.eval_dataset_dir else None
    return RunData(Path(data.train_dataset_dir), eval_rows, _tokenizer(config))


def _tokenizer(config: RunConfig) -> Path | None:
    """The tokenizer that was given, or the one beside the checkpoint to start from."""
    if config.tokenizer.model_file is not None:
        return Path(config.tokenizer.model_file)
    if config.load_checkpoint is None:
        return None
    path = Path(config.load_checkpoint)
    found = (home / TOKENIZER for home in (path, path.parent, path.parent.parent))
    return next((file for file in found if file.is_file()), None)
