"""CodeLlamaTokenizer: text to ids and back for plain text, continuations, infilling and chat."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from codellama_tokenizer.chat import ChatTemplate, check_messages, codellama_70b_parts, llama2_turns
from codellama_tokenizer.decoding import IncrementalDecoder
from codellama_tokenizer.errors import TokenizerError
from codellama_tokenizer.vocabulary import INFILLING_PIECES, STEP_PIECE, Vocabulary


class CodeLlamaTokenizer:
    """A SentencePiece model with byte fallback, used the way Code Llama was trained.

    Ids are those of plain SentencePiece, with one exception: text never produces a control id or a marker. Where the
    library would merge the user's text into one (`a <PRE> b` with Meta's 32016-piece model), ordinary pieces with the
    same text stand instead. Text that SentencePiece itself brings back unchanged comes back unchanged here, too; the
    one character it does not is U+2581 (▁), its sign for a space, which comes back as a space.

    Attributes:
        model_file: the file it was loaded from.
        vocab_size: number of pieces; ids are 0 .. vocab_size - 1.
        bos_id, eos_id, unk_id: 1, 2, 0 in Llama models.
        pad_id: None in Llama models, which have no padding piece.
        prefix_id, suffix_id, middle_id, eot_id: the infilling markers, None in models without them.
        step_id: the end of a turn in the 70B Instruct model, None elsewhere.
    """

    def __init__(self, model_file: str | os.PathLike[str]) -> None:
        """Loads a SentencePiece model.

        Raises:
            TokenizerError: no such file, not a SentencePiece model, or one without byte fallback, <s> or </s>.
        """
        self.model_file = Path(model_file)
        self._vocabulary = Vocabulary(self.model_file)
        self.vocab_size = self._vocabulary.size
        self.bos_id = self._vocabulary.bos_id
        self.eos_id = self._vocabulary.eos_id
        self.unk_id = self._vocabulary.unk_id
        self.pad_id = self._vocabulary.pad_id
        self.prefix_id = self._vocabulary.prefix_id
        self.suffix_id = self._vocabulary.suffix_id
        self.middle_id = self._vocabulary.middle_id
        self.eot_id = self._vocabulary.eot_id
        self.step_id = self._vocabulary.step_id
        self._anchor = self._vocabulary.anchor.encode()
        self._anchor_length = len(self._vocabulary.processor.encode(self._anchor))

    def __reduce__(self) -> tuple[type[CodeLlamaTokenizer], tuple[Path]]:
        # Worker processes load the file again: the library's model object does not survive pickling in every version.
        return CodeLlamaTokenizer, (self.model_file,)

    def __repr__(self) -> str:
        return f"CodeLlamaTokenizer({str(self.model_file)!r}, vocab_size={self.vocab_size})"

    @property
    def supports_infilling(self) -> bool:
        """Whether the model has all four infilling markers."""
        return None not in (self.prefix_id, self.suffix_id, self.middle_id, self.eot_id)

    def check_vocab_size(self, expected: int) -> None:
        """Refuses a network whose vocabulary is not this tokenizer's.

        Args:
            expected: rows of the network's embedding.

        Raises:
            TokenizerError: the numbers differ; the message names both.
        """
        if self.vocab_size == expected:
            return
        relation = "more" if self.vocab_size > expected else "fewer"
        raise TokenizerError(
            f"{self.model_file}: has {self.vocab_size} pieces, {relation} than the {expected} rows of the network's "
            "embedding; use the tokenizer the network was trained with, or set vocab_size to match"
        )

    def encode(self, text: str, bos: bool = True, eos: bool = False) -> list[int]:
        """The ids of a text, with SentencePiece's implicit leading space.

        Args:
            text: any text; what looks like a marker or control piece in it is encoded as ordinary text.
            bos: put the begin-of-sequence id in front.
            eos: put the end-of-sequence id behind.

        Raises:
            TokenizerError: the text holds a lone surrogate, which UTF-8 cannot express.
        """
        return [self.bos_id] * bos + self._encode(text) + [self.eos_id] * eos

    def encode_batch(self, texts: Iterable[str], bos: bool = True, eos: bool = False) -> list[list[int]]:
        """`encode` for many texts, on all cores."""
        batch = self._vocabulary.processor.encode([_utf8(text) for text in texts])
        return [[self.bos_id] * bos + self._without_markers(ids) + [self.eos_id] * eos for ids in batch]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; the inverse of `encode`.

        Control ids and markers stand for no text. Bytes that form no UTF-8 character become U+FFFD, one each.

        Raises:
            TokenizerError: an id is outside the vocabulary; the message names it.
        """
        return self._decode(ids, continuation=False)

    def encode_continuation(self, text: str) -> list[int]:
        """The ids of a text that follows another one: no implicit leading space, no bos, no eos.

        Meta's reference calls this `encode_infilling`: the text is encoded behind a "☺", whose ids are cut off.
        """
        ids = self._vocabulary.processor.encode(self._anchor + _utf8(text))
        return self._without_markers(ids[self._anchor_length :])

    def decode_continuation(self, ids: Iterable[int]) -> str:
        """The inverse of `encode_continuation`: a leading space is kept."""
        return self._decode(ids, continuation=True)

    def incremental_decoder(self, continuation: bool = False) -> IncrementalDecoder:
        """A decoder that takes ids one by one and returns whole characters only.

        Args:
            continuation: equal to `decode_continuation` instead of `decode`.
        """
        return IncrementalDecoder(self._vocabulary, continuation)

    def encode_infilling(self, prefix: str, suffix: str, suffix_first: bool = False) -> list[int]:
        """The prompt that asks for the text between prefix and suffix; generation ends with `eot_id`.

        Decode what is generated with `decode_continuation`.

        Args:
            prefix: text before the gap.
            suffix: text behind it.
            suffix_first: the order suffix, prefix, middle (spm) in place of prefix, suffix, middle (psm).

        Returns:
            psm: `[bos, PRE] + prefix + [SUF] + suffix + [MID]`; spm: `[bos, PRE, SUF] + suffix + [MID] + prefix`, as in
            meta-llama/codellama, llama/generation.py, `infilling_prompt_tokens`.

        Raises:
            TokenizerError: the model has no infilling markers.
        """
        pre, suf, mid, _ = self._infilling_ids()
        if suffix_first:
            return [self.bos_id, pre, suf, *self.encode_continuation(suffix), mid, *self._encode(prefix)]
        return [self.bos_id, pre, *self._encode(prefix), suf, *self.encode_continuation(suffix), mid]

    def encode_infilling_document(self, prefix: str, middle: str, suffix: str, suffix_first: bool = False) -> list[int]:
        """A training document for infilling: the prompt of `encode_infilling`, the middle, `eot` and eos.

        In spm, prefix and middle are encoded as one text, since no marker stands between them (arXiv:2308.12950,
        section 2.3; arXiv:2207.14255, section 3).

        Returns:
            psm: `[bos, PRE] + prefix + [SUF] + suffix + [MID] + middle + [EOT, eos]`;
            spm: `[bos, PRE, SUF] + suffix + [MID] + prefix-and-middle + [EOT, eos]`.

        Raises:
            TokenizerError: the model has no infilling markers.
        """
        *_, eot = self._infilling_ids()
        if suffix_first:
            prompt_and_middle = self.encode_infilling(prefix + middle, suffix, suffix_first=True)
        else:
            prompt_and_middle = self.encode_infilling(prefix, suffix) + self.encode_continuation(middle)
        return [*prompt_and_middle, eot, self.eos_id]

    def encode_chat(self, messages: Sequence[Mapping[str, str]], template: ChatTemplate = "llama-2") -> list[int]:
        """The prompt of a conversation that ends with a user's message.

        Args:
            messages: `{"role": ..., "content": ...}`; an optional "system", then "user" and "assistant" in turn.
            template: "llama-2" for the 7B, 13B and 34B Instruct models; "codellama-70b" for 70B Instruct.

        Returns:
            Ids that the answer follows; it ends with `eos_id` ("llama-2") or `step_id` ("codellama-70b").

        Raises:
            TokenizerError: wrong order of roles, a tag of the format inside a message, or a template whose pieces the
                model lacks.
        """
        check_messages(messages, template)
        if template == "llama-2":
            return [i for text, done in llama2_turns(messages) for i in self.encode(text, bos=True, eos=done)]
        if self.step_id is None:
            raise TokenizerError(
                f"{self.model_file}: has no {STEP_PIECE} piece, which only the 70B Instruct model has; "
                "use the template 'llama-2'"
            )
        ids = [self.bos_id]
        for number, texts in enumerate(codellama_70b_parts(messages)):
            ids += [self.step_id] * (number > 0)
            for text in texts:
                ids += self._encode(text)
        return ids

    def _infilling_ids(self) -> tuple[int, int, int, int]:
        pre, suf, mid, eot = self.prefix_id, self.suffix_id, self.middle_id, self.eot_id
        if pre is None or suf is None or mid is None or eot is None:
            raise TokenizerError(
                f"{self.model_file}: has no infilling pieces ({' '.join(INFILLING_PIECES)}); infilling needs the "
                "tokenizer of Code Llama 7B or 13B, base or Instruct (34B, 70B and the Python models cannot infill)"
            )
        return pre, suf, mid, eot

    def _encode(self, text: str) -> list[int]:
        return self._without_markers(self._vocabulary.processor.encode(_utf8(text)))

    def _without_markers(self, ids: list[int]) -> list[int]:
        rewrites = self._vocabulary.rewrites
        if rewrites.keys().isdisjoint(ids):
            return ids
        return [new for old in ids for new in rewrites.get(old, (old,))]

    def _decode(self, ids: Iterable[int], continuation: bool) -> str:
        decoder = self.incremental_decoder(continuation)
        return "".join([decoder.push(i) for i in ids]) + decoder.finish()


def _utf8(text: str) -> bytes:
    # Bytes, not str, go to the library: what it makes of a lone surrogate differs from version to version.
    if not isinstance(text, str):
        raise TypeError(f"text must be str, not {type(text).__name__}")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"the text holds the lone surrogate U+{ord(text[error.start]):04X} at position {error.start}, which UTF-8 "
            "cannot express; read the file with errors='replace' or repair it"
        ) from error
