"""From a corpus of text to what training reads: a tokenizer and MindRecord rows, made once and cached.

Both are cached under `$CODELLAMA_CACHE` (else `$XDG_CACHE_HOME/codellama`, else `~/.cache/codellama`) by a digest of
everything that they depend on, so a second run starts at once and a changed corpus is never mistaken for the old one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from codellama_data import Corpus, describe, find_corpus, preprocess_code
from codellama_tokenizer import CodeLlamaTokenizer, train_tokenizer

from codellama_app.config import RunConfig


@dataclass(frozen=True)
class CorpusData:
    """Where the made things are."""

    tokenizer: CodeLlamaTokenizer
    train_rows: Path
    eval_rows: Path


def cache_directory() -> Path:
    """The folder of cached tokenizers and rows; it can be deleted at any time."""
    if "CODELLAMA_CACHE" in os.environ:
        return Path(os.environ["CODELLAMA_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "codellama"


def prepare(config: RunConfig) -> CorpusData:
    """Makes the tokenizer and the rows of `config.dataset.corpus`, or finds them in the cache; prints what it does.

    Raises:
        DataError, TokenizerError: an empty corpus, one too small for the vocabulary, files that can not be written.
    """
    corpus = find_corpus(config.dataset.corpus)
    print(describe(corpus), flush=True)
    digest = corpus.digest()
    with _alone():
        if config.tokenizer.model_file is None:
            tokenizer = _trained_tokenizer(corpus, digest, config.llama().vocab_size)
        else:
            tokenizer = CodeLlamaTokenizer(config.tokenizer.model_file)
        return _rows(config, corpus, digest, tokenizer)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One process at a time makes things in the cache; the ranks of a job all want the same ones."""
    folder = cache_directory()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _trained_tokenizer(corpus: Corpus, digest: str, vocab_size: int) -> CodeLlamaTokenizer:
    made_by = f"{version('codellama-tokenizer')}-{version('sentencepiece')}"
    folder = cache_directory() / "tokenizers" / _key(digest, vocab_size, made_by)
    model_file = folder / "tokenizer.model"
    if model_file.is_file():
        print(f"tokenizer: {vocab_size} pieces, from {model_file}", flush=True)
        return CodeLlamaTokenizer(model_file)
    print(f"tokenizer: training {vocab_size} pieces ...", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    return train_tokenizer((document.text for document in corpus.documents()), model_file, vocab_size)


def _rows(config: RunConfig, corpus: Corpus, digest: str, tokenizer: CodeLlamaTokenizer) -> CorpusData:
    data = config.dataset
    pieces = hashlib.sha256(tokenizer.model_file.read_bytes()).hexdigest()
    made_by = version("codellama-data")
    settings = (data.seq_length, data.fim_rate, data.fim_spm_rate, data.eval_share, config.seed)
    folder = cache_directory() / "rows" / _key(digest, pieces, made_by, *settings)
    made = CorpusData(tokenizer, folder / "train.mindrecord", folder / "eval.mindrecord")
    done = folder / "summary.txt"
    if done.is_file():
        print(f"rows: from an earlier run\n{done.read_text(encoding='utf-8').rstrip()}", flush=True)
        return made
    folder.mkdir(parents=True, exist_ok=True)
    summary = preprocess_code(
        corpus,
        tokenizer,
        made.train_rows,
        seq_length=data.seq_length,
        fim_rate=data.fim_rate,
        fim_spm_rate=data.fim_spm_rate,
        seed=config.seed,
        eval_output_file=made.eval_rows,
        eval_share=data.eval_share,
        overwrite=True,
    )
    beside = folder / f".{done.name}.{os.getpid()}"
    beside.write_text(summary.render() + "\n", encoding="utf-8")
    beside.replace(done)
    print(summary.render(), flush=True)
    return made


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]
