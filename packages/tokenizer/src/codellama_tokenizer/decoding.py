"""Ids to text, one id at a time: what comes out is whole characters, and together exactly the text of all ids."""

from __future__ import annotations

import codecs
import operator

from codellama_tokenizer.errors import TokenizerError
from codellama_tokenizer.vocabulary import Vocabulary

# SentencePiece writes one U+FFFD for every byte that belongs to no character; Python's "replace" writes one for a run.
_ONE_FOR_EACH_BYTE = "codellama_tokenizer.one_replacement_for_each_byte"


def _replace_byte(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd", error.start + 1


codecs.register_error(_ONE_FOR_EACH_BYTE, _replace_byte)
_new_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class IncrementalDecoder:
    """Turns ids into printable text as they arrive; made by `CodeLlamaTokenizer.incremental_decoder`.

    `push` returns the text that the id completes, possibly "": the bytes of an unfinished UTF-8 character are held back
    until it is whole, or until an id shows that it never will be (it then becomes U+FFFD, one a byte, as in `decode`).
    All returned strings together, that of `finish` included, equal `decode` (or `decode_continuation`) of all ids.
    """

    def __init__(self, vocabulary: Vocabulary, continuation: bool = False) -> None:
        self._meaning = vocabulary.meaning
        self._unk_id = vocabulary.unk_id
        self._utf8 = _new_utf8_decoder(errors=_ONE_FOR_EACH_BYTE)
        self._at_start = vocabulary.strips_leading_space and not continuation
        self._strips_every_piece = vocabulary.strips_every_leading_space

    def push(self, token_id: int) -> str:
        """The text that became printable with this id.

        Raises:
            TokenizerError: the id is outside the vocabulary; the message names it.
        """
        index = operator.index(token_id)
        if not 0 <= index < len(self._meaning):
            raise TokenizerError(
                f"id {index} is outside the vocabulary of {len(self._meaning)} pieces; "
                "use the tokenizer that belongs to the network"
            )
        meaning = self._meaning[index]
        if isinstance(meaning, int):
            self._at_start = False
            return self._utf8.decode(bytes((meaning,)))
        unfinished = self.finish()  # a character never continues behind another kind of piece
        if meaning is None:
            return unfinished
        if self._at_start:
            # The first piece carries the space that encoding put in front of the text; an unknown one stands as it is.
            stripped = meaning if index == self._unk_id else meaning.removeprefix(" ")
            if stripped or not self._strips_every_piece:
                self._at_start = False
            meaning = stripped
        return unfinished + meaning

    def finish(self) -> str:
        """What is still held back: U+FFFD for each byte of a character that never became whole, else ""."""
        return self._utf8.decode(b"", final=True)
