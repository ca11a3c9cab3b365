"""Infilling prompts and training documents, in both orders."""

from __future__ import annotations

import pytest
from codellama_tokenizer import CodeLlamaTokenizer, TokenizerError

PREFIX, MIDDLE, SUFFIX = "def add(a, b):\n    ", "return a", " + b\n"


def test_psm_prompt(meta: CodeLlamaTokenizer) -> None:
    assert meta.encode_infilling(PREFIX, SUFFIX) == [
        meta.bos_id,
        meta.prefix_id,
        *meta.encode(PREFIX, bos=False),
        meta.suffix_id,
        *meta.encode_continuation(SUFFIX),
        meta.middle_id,
    ]


def test_spm_prompt(meta: CodeLlamaTokenizer) -> None:
    assert meta.encode_infilling(PREFIX, SUFFIX, suffix_first=True) == [
        meta.bos_id,
        meta.prefix_id,
        meta.suffix_id,
        *meta.encode_continuation(SUFFIX),
        meta.middle_id,
        *meta.encode(PREFIX, bos=False),
    ]


def test_a_psm_document_is_the_prompt_and_its_answer(trained: CodeLlamaTokenizer) -> None:
    document = trained.encode_infilling_document(PREFIX, MIDDLE, SUFFIX)
    prompt = trained.encode_infilling(PREFIX, SUFFIX)
    assert document[: len(prompt)] == prompt
    answer = document[len(prompt) :]
    assert answer[-2:] == [trained.eot_id, trained.eos_id]
    assert trained.decode_continuation(answer) == MIDDLE


def test_an_spm_document_joins_prefix_and_middle_in_one_text(trained: CodeLlamaTokenizer) -> None:
    document = trained.encode_infilling_document(PREFIX, MIDDLE, SUFFIX, suffix_first=True)
    assert trained.middle_id is not None
    assert document == [
        trained.bos_id,
        trained.prefix_id,
        trained.suffix_id,
        *trained.encode_continuation(SUFFIX),
        trained.middle_id,
        *trained.encode(PREFIX + MIDDLE, bos=False),
        trained.eot_id,
        trained.eos_id,
    ]


def test_empty_parts_leave_the_markers(trained: CodeLlamaTokenizer) -> None:
    bos, pre, suf, mid = trained.bos_id, trained.prefix_id, trained.suffix_id, trained.middle_id
    assert trained.encode_infilling("", "") == [bos, pre, suf, mid]
    assert trained.encode_infilling("", "", suffix_first=True) == [bos, pre, suf, mid]
    assert trained.encode_infilling_document("", "", "") == [bos, pre, suf, mid, trained.eot_id, trained.eos_id]


@pytest.mark.parametrize("suffix_first", [False, True])
def test_a_model_without_markers_says_which_have_them(without_markers: CodeLlamaTokenizer, suffix_first: bool) -> None:
    assert not without_markers.supports_infilling
    assert without_markers.prefix_id is without_markers.eot_id is None
    message = r"no infilling pieces.* 7B or 13B, base or Instruct"
    with pytest.raises(TokenizerError, match=message):
        without_markers.encode_infilling("a", "b", suffix_first)
    with pytest.raises(TokenizerError, match=message):
        without_markers.encode_infilling_document("a", "b", "c", suffix_first)
