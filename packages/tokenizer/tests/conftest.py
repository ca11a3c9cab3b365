"""Models made on the spot: one trained by this package, and imitations of Meta's 32016-piece and 70B models."""

from __future__ import annotations

import importlib
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from codellama_tokenizer import CodeLlamaTokenizer, train_tokenizer
from sentencepiece import SentencePieceTrainer

# Protobuf's generated classes have no annotations.
proto: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
NORMAL, USER_DEFINED, BYTE = 1, 4, 6  # ModelProto.SentencePiece.Type


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    """Python code: some modules of the running interpreter's standard library."""
    folder = Path(io.__file__).parent
    names = ["argparse", "ast", "dataclasses", "difflib", "inspect", "pathlib", "textwrap", "typing", "zipfile"]
    files = [folder / f"{name}.py" for name in names]
    return [file.read_text(encoding="utf-8") for file in files if file.is_file()]


@pytest.fixture(scope="session")
def trained(corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> CodeLlamaTokenizer:
    return train_tokenizer(corpus, tmp_path_factory.mktemp("trained") / "tokenizer.model", 1200)


@pytest.fixture(scope="session")
def plain_model(corpus: list[str]) -> bytes:
    """A model with Llama's settings and no infilling markers, trained by SentencePiece itself."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=(line for text in corpus for line in text.splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        minloglevel=3,
    )
    return model.getvalue()


def extend(model: bytes, pieces: Sequence[tuple[str, int]], file: Path) -> Path:
    """Appends pieces, each with a lower score than those before it, as Meta did."""
    message = proto.ModelProto.FromString(model)
    known = {piece.piece for piece in message.pieces}
    score = min(piece.score for piece in message.pieces)
    for number, (text, kind) in enumerate(piece for piece in pieces if piece[0] not in known):
        message.pieces.add(piece=text, score=score - 1 - number, type=kind)
    file.write_bytes(message.SerializeToString())
    return file


@pytest.fixture(scope="session")
def meta_file(plain_model: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ends like Meta's 32016-piece model: seven beginnings of markers, four markers, five more pieces."""
    # In Meta's model the base vocabulary holds what the markers are merged from; a small one may not.
    helpers = ["▁<", "SU", "PR", "PRE", "ID", "OT", "A>"]
    beginnings = ["▁<SU", "▁<SUF", "▁<PRE", "▁<M", "▁<MID", "▁<E", "▁<EOT"]
    markers = ["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"]
    more = ["▁<A>", "▁<X1>", "▁<X2>", "▁<X3>", "▁<X4>"]
    pieces = [(piece, NORMAL) for piece in (*helpers, *beginnings, *markers, *more)]
    return extend(plain_model, pieces, tmp_path_factory.mktemp("meta") / "tokenizer.model")


@pytest.fixture(scope="session")
def meta(meta_file: Path) -> CodeLlamaTokenizer:
    return CodeLlamaTokenizer(meta_file)


@pytest.fixture(scope="session")
def user_defined(plain_model: bytes, tmp_path_factory: pytest.TempPathFactory) -> CodeLlamaTokenizer:
    """Markers that SentencePiece cuts out of text before anything else, followed by ordinary pieces."""
    markers = [(piece, USER_DEFINED) for piece in ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")]
    ordinary = [(f"ordinary{number}", NORMAL) for number in range(20)]
    file = tmp_path_factory.mktemp("user_defined") / "tokenizer.model"
    return CodeLlamaTokenizer(extend(plain_model, [*markers, *ordinary], file))


@pytest.fixture(scope="session")
def with_step(plain_model: bytes, tmp_path_factory: pytest.TempPathFactory) -> CodeLlamaTokenizer:
    """Has `<step>`, like the 70B Instruct model."""
    file = tmp_path_factory.mktemp("step") / "tokenizer.model"
    return CodeLlamaTokenizer(extend(plain_model, [("<step>", USER_DEFINED)], file))


@pytest.fixture(scope="session")
def without_markers(plain_model: bytes, tmp_path_factory: pytest.TempPathFactory) -> CodeLlamaTokenizer:
    """Like the 34B and Python models: 600 pieces, no infilling."""
    return CodeLlamaTokenizer(extend(plain_model, [], tmp_path_factory.mktemp("plain") / "tokenizer.model"))


@pytest.fixture(scope="session")
def normalising(plain_model: bytes, tmp_path_factory: pytest.TempPathFactory) -> CodeLlamaTokenizer:
    """Drops superfluous spaces, as models trained with SentencePiece's defaults do."""
    message = proto.ModelProto.FromString(plain_model)
    message.normalizer_spec.remove_extra_whitespaces = True
    file = tmp_path_factory.mktemp("normalising") / "tokenizer.model"
    file.write_bytes(message.SerializeToString())
    return CodeLlamaTokenizer(file)


@pytest.fixture(scope="session")
def model_without_bytes(plain_model: bytes) -> bytes:
    """A model that has no byte fallback."""
    message = proto.ModelProto.FromString(plain_model)
    kept = [piece for piece in message.pieces if piece.type != BYTE]
    del message.pieces[:]
    message.pieces.extend(kept)
    message.trainer_spec.byte_fallback = False
    return message.SerializeToString()


@pytest.fixture(scope="session")
def real() -> CodeLlamaTokenizer:
    """A model of Llama's size and kind: 32000 pieces, BPE with byte fallback."""
    spec = importlib.util.find_spec("mistral_common")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package mistral-common, whose 32000-piece model this test reads, is not installed")
    return CodeLlamaTokenizer(Path(spec.submodule_search_locations[0]) / "data" / "tokenizer.model.v1")
