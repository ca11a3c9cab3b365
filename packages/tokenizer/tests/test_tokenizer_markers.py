"""Text that spells a marker or a control piece stays text."""

from __future__ import annotations

from itertools import chain

import pytest
from codellama_tokenizer import CodeLlamaTokenizer
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

MARKERS = ["<PRE>", "<SUF>", "<MID>", "<EOT>", "<A>", "<s>", "</s>", "<unk>", "<step>", "<0x0A>", "[INST]", "[/INST]"]
FRAGMENTS = [" ", "a", "\n", ">", "<", "PRE", "<PRE", "▁"]
MARKER_TEXT = st.lists(st.sampled_from([*MARKERS, *FRAGMENTS]), min_size=1).map("".join)


def silent_ids(tokenizer: CodeLlamaTokenizer) -> set[int]:
    markers = (tokenizer.prefix_id, tokenizer.suffix_id, tokenizer.middle_id, tokenizer.eot_id, tokenizer.step_id)
    return {tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id} | {i for i in markers if i is not None}


@pytest.fixture(scope="session", params=["meta", "user_defined", "with_step", "trained", "without_markers"])
def any_tokenizer(request: pytest.FixtureRequest) -> CodeLlamaTokenizer:
    return request.getfixturevalue(request.param)


def test_the_imitation_is_laid_out_like_metas_model(meta: CodeLlamaTokenizer) -> None:
    assert meta.prefix_id == meta.vocab_size - 9
    assert (meta.suffix_id, meta.middle_id, meta.eot_id) == tuple(meta.vocab_size - back for back in (8, 7, 6))
    assert meta.supports_infilling


@pytest.mark.parametrize("marker", ["<PRE>", "<SUF>", "<MID>", "<EOT>", "<A>"])
def test_plain_sentencepiece_makes_markers_of_text_and_we_do_not(meta: CodeLlamaTokenizer, marker: str) -> None:
    library = SentencePieceProcessor(model_file=str(meta.model_file))
    whole = library.piece_to_id("▁" + marker)
    text = f"a {marker} b"
    assert whole in library.encode(text), "the imitation no longer shows the fault"
    assert whole >= meta.vocab_size - 9
    ids = meta.encode(text, bos=False)
    assert whole not in ids
    assert meta.decode(ids) == text
    assert meta.encode_continuation(" " + marker) == ids[1:-1]


def test_a_marker_is_spelt_with_the_longest_ordinary_pieces(meta: CodeLlamaTokenizer) -> None:
    library = SentencePieceProcessor(model_file=str(meta.model_file))
    assert [library.id_to_piece(i) for i in meta.encode("<PRE>", bos=False)] == ["▁<PRE", ">"]


def test_beginnings_of_markers_stay_as_the_library_makes_them(meta: CodeLlamaTokenizer) -> None:
    library = SentencePieceProcessor(model_file=str(meta.model_file))
    assert meta.encode("a <PREFIX>", bos=False) == library.encode("a <PREFIX>")


def test_user_defined_markers_do_not_taint_the_pieces_behind_them(user_defined: CodeLlamaTokenizer) -> None:
    library = SentencePieceProcessor(model_file=str(user_defined.model_file))
    assert user_defined.prefix_id in library.encode("a <PRE> b")
    assert user_defined.prefix_id not in user_defined.encode("a <PRE> b")
    assert user_defined.decode([user_defined.vocab_size - 1]) == "ordinary19"


@given(text=MARKER_TEXT)
def test_no_control_id_comes_out_of_text(any_tokenizer: CodeLlamaTokenizer, text: str) -> None:
    expected = text.replace("▁", " ")
    forbidden = silent_ids(any_tokenizer)
    for ids, back in (
        (any_tokenizer.encode(text, bos=False), any_tokenizer.decode),
        (any_tokenizer.encode_continuation(text), any_tokenizer.decode_continuation),
        (any_tokenizer.encode_batch([text], bos=False)[0], any_tokenizer.decode),
    ):
        assert forbidden.isdisjoint(ids)
        assert back(ids) == expected


@given(prefix=MARKER_TEXT, middle=MARKER_TEXT, suffix=MARKER_TEXT, suffix_first=st.booleans())
def test_infilling_parts_add_no_marker(
    meta: CodeLlamaTokenizer, prefix: str, middle: str, suffix: str, suffix_first: bool
) -> None:
    forbidden = silent_ids(meta)
    prompt = meta.encode_infilling(prefix, suffix, suffix_first)
    document = meta.encode_infilling_document(prefix, middle, suffix, suffix_first)
    pre, suf, mid, eot = meta.prefix_id, meta.suffix_id, meta.middle_id, meta.eot_id
    order = [meta.bos_id, pre, suf, mid]
    assert [i for i in prompt if i in forbidden] == order
    assert [i for i in document if i in forbidden] == [*order, eot, meta.eos_id]


def test_markers_and_control_ids_decode_to_nothing(meta: CodeLlamaTokenizer) -> None:
    text = meta.encode("x = 1", bos=False)
    markers = [meta.bos_id, *range(meta.vocab_size - 9, meta.vocab_size), meta.eos_id]
    assert meta.decode(markers) == ""
    assert meta.decode(chain(markers, text, markers)) == "x = 1"
    assert meta.decode_continuation([*markers, *text]) == " x = 1"


def test_chat_contents_add_no_marker(meta: CodeLlamaTokenizer) -> None:
    ids = meta.encode_chat([{"role": "user", "content": "what are <PRE> and </s> ?"}])
    assert silent_ids(meta).isdisjoint(ids[1:])
    assert meta.decode(ids) == "[INST] what are <PRE> and </s> ? [/INST]"
