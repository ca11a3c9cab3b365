"""What each piece of a SentencePiece model stands for (a text, a byte, nothing), and which ids text must not produce.

Meta's 32016-piece model holds the infilling markers as NORMAL pieces, so plain SentencePiece turns the user's text
`a <PRE> b` into the marker 32007. `Vocabulary.rewrites` lists those ids, each with the ids of the same text written
with ordinary pieces.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from codellama_tokenizer.errors import TokenizerError

SPACE = "▁"  # U+2581, how SentencePiece writes a space
PREFIX_PIECE, SUFFIX_PIECE, MIDDLE_PIECE, EOT_PIECE = "▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"
INFILLING_PIECES = (PREFIX_PIECE, SUFFIX_PIECE, MIDDLE_PIECE, EOT_PIECE)
STEP_PIECE = "<step>"  # ends a turn in the prompts of the 70B Instruct model
META_MARKER_COUNT = 9  # ids 32007 to 32015: from ▁<PRE> to the end of Meta's 32016-piece vocabulary

# Characters that may stand in front of a text to keep SentencePiece's implicit space away from it; "☺" is the
# reference's (meta-llama/codellama, llama/tokenizer.py). The others serve models in which ☺ is part of a longer piece.
_ANCHORS = ("☺", "\ue000", "\ue001", "\uf8ff", "\U000f0000")


class Vocabulary:
    """The pieces of one model.

    Attributes:
        processor: the SentencePiece model itself.
        size: number of pieces.
        meaning: one entry an id: the text of the piece (with real spaces), the value 0..255 of a byte piece, or None
            for an id that stands for no text (bos, eos, padding, markers).
        rewrites: id that text must not produce -> ids of ordinary pieces with the same text.
        anchor: a character that never joins its neighbours in a piece.
        strips_leading_space: decoding drops the space that encoding put in front of the text.
        strips_every_leading_space: decoding drops it from each leading piece (models that normalise white space).
    """

    def __init__(self, model_file: Path) -> None:
        self.processor = _load(model_file)
        processor = self.processor
        self.size = int(processor.get_piece_size())
        pieces = [processor.id_to_piece(i) for i in range(self.size)]
        self._byte_ids = {int(pieces[i][3:5], 16): i for i in range(self.size) if processor.is_byte(i)}
        if len(self._byte_ids) != 256:
            raise TokenizerError(
                f"{model_file}: found {len(self._byte_ids)} byte pieces, expected 256: without byte fallback text is "
                "lost; use a Llama tokenizer.model, or train one with train_tokenizer"
            )
        self.bos_id, self.eos_id, self.unk_id = processor.bos_id(), processor.eos_id(), processor.unk_id()
        if self.bos_id < 0 or self.eos_id < 0:
            raise TokenizerError(f"{model_file}: has no <s> or no </s> piece; use a Llama tokenizer.model")
        self.pad_id: int | None = processor.pad_id() if processor.pad_id() >= 0 else None

        ids = {piece: i for i, piece in enumerate(pieces)}
        self.prefix_id = ids.get(PREFIX_PIECE)
        self.suffix_id = ids.get(SUFFIX_PIECE)
        self.middle_id = ids.get(MIDDLE_PIECE)
        self.eot_id = ids.get(EOT_PIECE)
        self.step_id = ids.get(STEP_PIECE)

        silent = self._silent_ids()
        self.meaning: list[str | int | None] = []
        for i, piece in enumerate(pieces):
            if i in silent:
                self.meaning.append(None)
            elif processor.is_byte(i):
                self.meaning.append(int(piece[3:5], 16))
            elif i == self.unk_id:
                self.meaning.append(processor.decode([i]))  # the surface the model was trained with, by default " ⁇ "
            else:
                self.meaning.append(piece.replace(SPACE, " "))

        ordinary = {
            piece: i
            for piece, i in ids.items()
            if isinstance(self.meaning[i], str) and i != self.unk_id and not processor.is_unused(i)
        }
        self.rewrites = {
            i: self._spell(pieces[i], ordinary, model_file) for i in sorted(silent) if not processor.is_control(i)
        }
        self.anchor = self._choose_anchor(pieces, model_file)
        # What decoding strips follows from two settings of the model, which the library shows only by their effect.
        adds_space = processor.normalize("a").startswith(SPACE)
        removes_spaces = processor.normalize("a  b") != processor.normalize("a") + SPACE * 2 + "b"
        self.strips_leading_space = adds_space or removes_spaces
        self.strips_every_leading_space = removes_spaces

    def _silent_ids(self) -> set[int]:
        """Ids that stand for no text: control pieces, and markers of any type."""
        infilling = [i for i in (self.prefix_id, self.suffix_id, self.middle_id, self.eot_id) if i is not None]
        named = [self.bos_id, self.eos_id, *infilling]
        named += [i for i in (self.pad_id, self.step_id) if i is not None and i != self.unk_id]
        silent = set(named) | {i for i in range(self.size) if self.processor.is_control(i)}
        if infilling and self.size - min(infilling) <= META_MARKER_COUNT:
            # Meta's model: the pieces behind the four named markers are markers too.
            silent.update(range(min(infilling), self.size))
        return silent

    def _spell(self, piece: str, ordinary: dict[str, int], model_file: Path) -> list[int]:
        """The ids of `piece` written with ordinary pieces, longest first, bytes where there is none."""
        ids: list[int] = []
        start = 0
        while start < len(piece):
            end = next((e for e in range(len(piece), start, -1) if piece[start:e] in ordinary), None)
            if end is None:
                end = start + 1
                ids += [self._byte_ids[value] for value in piece[start:end].replace(SPACE, " ").encode()]
            else:
                ids.append(ordinary[piece[start:end]])
            start = end
        spelt = "".join(self._text_of(ids))
        if spelt != piece.replace(SPACE, " "):
            raise TokenizerError(
                f"{model_file}: the text of the marker {piece} cannot be written with other pieces (got {spelt!r}); "
                "the vocabulary is damaged, fetch the model file again"
            )
        return ids

    def _text_of(self, ids: Iterable[int]) -> Iterable[str]:
        for i in ids:
            meaning = self.meaning[i]
            yield chr(meaning) if isinstance(meaning, int) else meaning or ""

    @staticmethod
    def _choose_anchor(pieces: list[str], model_file: Path) -> str:
        for anchor in _ANCHORS:
            if all(anchor not in piece or piece == anchor for piece in pieces):
                return anchor
        raise TokenizerError(
            f"{model_file}: each of {', '.join(f'U+{ord(anchor):04X}' for anchor in _ANCHORS)} is in a longer piece, "
            "so text cannot be encoded without an implicit space; train the tokenizer without one of them"
        )


def _load(model_file: Path) -> SentencePieceProcessor:
    if not model_file.exists():
        raise TokenizerError(f"{model_file}: no such file; give the path of a SentencePiece tokenizer.model")
    if model_file.is_dir():
        raise TokenizerError(f"{model_file}: is a directory; give the path of the tokenizer.model in it")
    try:
        content = model_file.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{model_file}: cannot be read ({error.strerror}); check its permissions") from error
    if content.startswith(b"version https://git-lfs"):
        raise TokenizerError(f"{model_file}: is a Git LFS pointer, not the model itself; run `git lfs pull`")
    processor = SentencePieceProcessor()
    try:
        processor.load_from_serialized_proto(content)
    except RuntimeError as error:
        raise TokenizerError(
            f"{model_file}: not a SentencePiece model ({len(content)} bytes); give a tokenizer.model, "
            "not a tokenizer.json or a checkpoint"
        ) from error
    return processor
