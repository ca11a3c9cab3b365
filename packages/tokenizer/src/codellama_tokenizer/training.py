"""Training a tokenizer of Code Llama's kind on texts of one's own."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from sentencepiece import SentencePieceTrainer

from codellama_tokenizer.errors import TokenizerError
from codellama_tokenizer.tokenizer import CodeLlamaTokenizer
from codellama_tokenizer.vocabulary import INFILLING_PIECES, SPACE

# unk, bos, eos, the infilling markers, 256 bytes and the space: what every vocabulary holds before it learns anything.
SMALLEST_VOCAB_SIZE = 3 + len(INFILLING_PIECES) + 256 + 1
# Rarer characters than the commonest 99.95 % are left to byte fallback (SentencePiece's default).
_CHARACTER_COVERAGE = 0.9995
# The trainer counts positions inside a run without spaces in 16 bits, so texts reach it in shorter parts.
_LONGEST_PART = 1 << 14
_THREADS = 2  # only reading the corpus is threaded; more gain nothing
# The trainer uses a tab and U+2585 as its own signs and skips every text with one of them.
_RESERVED_BY_TRAINER = re.compile("[\t\u2585\0]+")


def train_tokenizer(
    texts: Iterable[str],
    model_file: str | os.PathLike[str],
    vocab_size: int,
    *,
    num_threads: int | None = None,
) -> CodeLlamaTokenizer:
    """Trains a byte-pair-encoding SentencePiece model with Llama's settings and the infilling markers.

    Byte fallback, no normalisation, every white space kept, digits apart, runs of spaces as pieces, implicit leading
    space; ids: unk 0, bos 1, eos 2, `▁<PRE>` 3, `▁<SUF>` 4, `▁<MID>` 5, `▁<EOT>` 6 (control pieces, which text never
    produces), bytes 7 to 262, then what was learned. Unlike Meta's model, line ends take part in pieces (`):` and a
    line end may be one), which makes code about 6 % shorter in ids. The same texts and `num_threads` give the same
    file.

    Args:
        texts: the corpus, text by text, read once as a stream; the trainer itself keeps its words in memory, so give
            it some hundred MB at most.
        model_file: where the model is written, whole or not at all; its folder must exist.
        vocab_size: exact number of pieces.
        num_threads: threads of the trainer. It does not change what is learned, but the file records it; None
            stands for 2 on every machine, so that the file does not depend on the machine.

    Returns:
        The tokenizer, loaded from `model_file`.

    Raises:
        TokenizerError: no text, too little text for `vocab_size`, `vocab_size` too small, a text with a lone
            surrogate, or the folder of `model_file` is missing.
    """
    target = Path(model_file)
    if not target.parent.is_dir():
        raise TokenizerError(f"{target}: the folder {target.parent} does not exist; make it first")
    if target.is_dir():
        raise TokenizerError(f"{target}: is a directory; give the name of a file in it")
    if vocab_size < SMALLEST_VOCAB_SIZE:
        raise TokenizerError(
            f"vocab_size is {vocab_size}, expected at least {SMALLEST_VOCAB_SIZE} (bytes, markers, the space); raise it"
        )
    corpus = _Corpus(texts)
    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(corpus),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            character_coverage=_CHARACTER_COVERAGE,
            required_chars=SPACE,  # a corpus without spaces must still yield a piece for the implicit one
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=True,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            control_symbols=list(INFILLING_PIECES),
            max_sentence_length=4 * _LONGEST_PART,  # in bytes; a character has at most 4
            num_threads=num_threads or _THREADS,
            minloglevel=3,  # the trainer's progress is noise to whoever reads this program's stderr
        )
    except RuntimeError as error:
        if corpus.failure is not None:
            raise corpus.failure from None
        raise _explain(error, corpus, vocab_size) from error
    _write_whole(target, model.getvalue())
    return CodeLlamaTokenizer(target)


class _Corpus:
    """Streams texts to the trainer in parts it accepts."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.characters = 0
        self.failure: Exception | None = None  # what reading the texts raised: the library may wrap it

    def __iter__(self) -> Iterator[str]:
        try:
            yield from self._stream()
        except Exception as error:
            self.failure = error
            raise

    def _stream(self) -> Iterator[str]:
        for number, text in enumerate(self._texts):
            if not isinstance(text, str):
                raise TypeError(f"text {number} must be str, not {type(text).__name__}")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise TokenizerError(
                    f"text {number} holds the lone surrogate U+{ord(text[error.start]):04X} at position {error.start}; "
                    "read its file with errors='replace' or leave it out"
                ) from error
            for run in _RESERVED_BY_TRAINER.split(text):
                for part in _parts(run):
                    self.characters += len(part)
                    yield part


def _parts(text: str) -> Iterator[str]:
    """Cuts a text behind line ends where it can, so that no part is longer than the trainer takes."""
    start = 0
    while start < len(text):
        end = min(start + _LONGEST_PART, len(text))
        if end < len(text):
            end = (text.rfind("\n", start, end) + 1) or end
        yield text[start:end]
        start = end


def _explain(error: RuntimeError, corpus: _Corpus, vocab_size: int) -> TokenizerError:
    message = str(error)
    if not corpus.characters or "sentences_.empty()" in message:
        return TokenizerError("the corpus is empty; give at least one text with more than white space")
    if too_high := re.search(r"Please set it to a value <= (\d+)", message):
        return TokenizerError(
            f"the corpus ({corpus.characters} characters) is too small for vocab_size {vocab_size}; "
            f"give more text or a vocab_size of at most {too_high[1]}"
        )
    if too_low := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        return TokenizerError(
            f"vocab_size {vocab_size} does not hold the characters of the corpus; raise it to at least {too_low[1]}"
        )
    return TokenizerError(f"SentencePiece could not train on this corpus: {' '.join(message.split())}")


def _write_whole(target: Path, content: bytes) -> None:
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
