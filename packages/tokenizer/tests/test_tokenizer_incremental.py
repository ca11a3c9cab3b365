"""Decoding id by id: whole characters only, and in sum the text of all ids."""

from __future__ import annotations

import pytest
from codellama_tokenizer import CodeLlamaTokenizer, TokenizerError
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

BYTE_0 = 3  # first of the 256 byte pieces in a model without markers
# Ids of any kind, with bytes and control pieces far more often than chance would have them.
IDS = st.lists(st.one_of(st.integers(0, 599), st.integers(0, 258), st.sampled_from([0, 1, 2])), max_size=30)


def pushed(tokenizer: CodeLlamaTokenizer, ids: list[int], continuation: bool = False) -> list[str]:
    decoder = tokenizer.incremental_decoder(continuation)
    return [*(decoder.push(i) for i in ids), decoder.finish()]


@given(ids=IDS)
@settings(max_examples=500)
def test_any_ids_decode_as_sentencepiece_decodes_them(without_markers: CodeLlamaTokenizer, ids: list[int]) -> None:
    library = SentencePieceProcessor(model_file=str(without_markers.model_file))
    expected = library.decode(ids)
    assert without_markers.decode(ids) == expected
    assert "".join(pushed(without_markers, ids)) == expected
    # Any other text in front takes the leading space's protection away; "a" is an ordinary piece of one character.
    letter = library.piece_to_id("a")
    assert "a" + without_markers.decode_continuation(ids) == library.decode([letter, *ids])


@given(ids=IDS)
def test_a_model_that_normalises_spaces_decodes_as_sentencepiece_does(
    normalising: CodeLlamaTokenizer, ids: list[int]
) -> None:
    library = SentencePieceProcessor(model_file=str(normalising.model_file))
    assert normalising.decode(ids) == library.decode(ids)


def test_leading_spaces_of_a_model_that_normalises_them(
    normalising: CodeLlamaTokenizer, without_markers: CodeLlamaTokenizer
) -> None:
    library = SentencePieceProcessor(model_file=str(normalising.model_file))
    space = library.piece_to_id("▁")
    ids = [space, space, *without_markers.encode("return", bos=False)]
    assert normalising.decode(ids) == library.decode(ids) == "return"
    assert without_markers.decode(ids) == "  return"


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁\ufffd")), continuation=st.booleans())
def test_no_half_character_is_ever_shown(trained: CodeLlamaTokenizer, text: str, continuation: bool) -> None:
    ids = trained.encode_continuation(text) if continuation else trained.encode(text)
    shown = pushed(trained, ids, continuation)
    assert "".join(shown) == text
    assert all("\ufffd" not in part for part in shown)
    assert shown[-1] == ""  # a whole text leaves nothing behind


def test_bytes_are_held_back_until_the_character_is_whole(trained: CodeLlamaTokenizer) -> None:
    ids = trained.encode_continuation("😀")
    assert len(ids) == 4
    assert pushed(trained, ids, continuation=True) == ["", "", "", "😀", ""]


def test_a_broken_character_is_shown_when_it_can_no_longer_be_completed(without_markers: CodeLlamaTokenizer) -> None:
    first, second = BYTE_0 + 0xF0, BYTE_0 + 0x9F
    letter = SentencePieceProcessor(model_file=str(without_markers.model_file)).piece_to_id("a")
    assert pushed(without_markers, [first, second, letter]) == ["", "", "\ufffd\ufffda", ""]
    assert pushed(without_markers, [first, second]) == ["", "", "\ufffd\ufffd"]
    assert pushed(without_markers, [first, second, without_markers.eos_id]) == ["", "", "\ufffd\ufffd", ""]


def test_a_continuation_keeps_its_leading_space(trained: CodeLlamaTokenizer) -> None:
    ids = trained.encode_continuation(" return")
    assert "".join(pushed(trained, ids, continuation=True)) == " return"
    assert "".join(pushed(trained, ids)) == "return"


def test_an_id_outside_the_vocabulary_is_named(trained: CodeLlamaTokenizer) -> None:
    with pytest.raises(TokenizerError, match="id 1200 is outside"):
        trained.incremental_decoder().push(1200)
