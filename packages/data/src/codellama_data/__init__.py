"""Corpora to MindRecord files to batches for training: what every text goes through before Code Llama sees it.

Names are imported when they are first used, so that `codellama-data --help` need not wait for NumPy and SentencePiece.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codellama_data.alpaca import convert_alpaca
    from codellama_data.batching import Batches, batches
    from codellama_data.code import preprocess_code
    from codellama_data.corpus import Corpus, Document, describe, find_corpus, standard_library
    from codellama_data.errors import DataError
    from codellama_data.job import RunArguments
    from codellama_data.qa import QaOptions, preprocess_qa
    from codellama_data.reading import MindRecordRows, open_rows
    from codellama_data.summary import Summary
    from codellama_data.wiki import preprocess_wiki

__all__ = [
    "Batches",
    "Corpus",
    "DataError",
    "Document",
    "MindRecordRows",
    "QaOptions",
    "RunArguments",
    "Summary",
    "batches",
    "convert_alpaca",
    "describe",
    "find_corpus",
    "open_rows",
    "preprocess_code",
    "preprocess_qa",
    "preprocess_wiki",
    "standard_library",
]
__version__ = "0.2.0"

_MODULES = {
    "alpaca": ("convert_alpaca",),
    "batching": ("Batches", "batches"),
    "code": ("preprocess_code",),
    "corpus": ("Corpus", "Document", "describe", "find_corpus", "standard_library"),
    "errors": ("DataError",),
    "job": ("RunArguments",),
    "qa": ("QaOptions", "preprocess_qa"),
    "reading": ("MindRecordRows", "open_rows"),
    "summary": ("Summary",),
    "wiki": ("preprocess_wiki",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
