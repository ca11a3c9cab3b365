"""Instruct prompts: the texts and ids of Meta's reference, and refusals."""

from __future__ import annotations

import pytest
from codellama_tokenizer import CodeLlamaTokenizer, TokenizerError
from sentencepiece import SentencePieceProcessor


def system(content: str) -> dict[str, str]:
    return {"role": "system", "content": content}


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def test_one_question(trained: CodeLlamaTokenizer) -> None:
    assert trained.encode_chat([user("  hello \n")]) == trained.encode("[INST] hello [/INST]")


def test_finished_turns_have_bos_and_eos(trained: CodeLlamaTokenizer) -> None:
    ids = trained.encode_chat([user("a"), assistant(" b "), user("c"), assistant("d"), user("e")])
    assert ids == [
        *trained.encode("[INST] a [/INST] b ", bos=True, eos=True),
        *trained.encode("[INST] c [/INST] d ", bos=True, eos=True),
        *trained.encode("[INST] e [/INST]", bos=True, eos=False),
    ]


def test_the_system_message_is_folded_before_stripping(trained: CodeLlamaTokenizer) -> None:
    ids = trained.encode_chat([system("  be brief \n"), user(" hello ")])
    assert ids == trained.encode("[INST] <<SYS>>\n  be brief \n\n<</SYS>>\n\n hello [/INST]")


def test_an_empty_system_message_still_opens_the_prompt(trained: CodeLlamaTokenizer) -> None:
    assert trained.encode_chat([system(""), user("x")]) == trained.encode("[INST] <<SYS>>\n\n<</SYS>>\n\nx [/INST]")


def test_pieces_of_the_32000_piece_model(real: CodeLlamaTokenizer) -> None:
    library = SentencePieceProcessor(model_file=str(real.model_file))
    ids = real.encode_chat([system(" s"), user("hi"), assistant("yo"), user("bye")])
    assert [library.id_to_piece(i) for i in ids] == [
        *["<s>", "▁[", "INST", "]", "▁<<", "SYS", ">>", "<0x0A>", "▁s", "<0x0A>", "<", "</", "SYS", ">>"],
        *["<0x0A>", "<0x0A>", "hi", "▁[", "/", "INST", "]", "▁yo", "▁", "</s>"],
        *["<s>", "▁[", "INST", "]", "▁by", "e", "▁[", "/", "INST", "]"],
    ]


def test_the_70b_format(with_step: CodeLlamaTokenizer) -> None:
    def text(part: str) -> list[int]:
        return with_step.encode(part, bos=False)

    step = with_step.step_id
    ids = with_step.encode_chat([system("brief "), user("a"), assistant("b"), user(" c")], template="codellama-70b")
    assert ids == [
        with_step.bos_id,
        *[*text(" Source: system"), *text("\n\n brief"), step],
        *[*text(" Source: user"), *text("\n\n a"), step],
        *[*text(" Source: assistant"), *text("\n\n b"), step],
        *[*text(" Source: user"), *text("\n\n c"), step],
        *[*text(" Source: assistant\nDestination: user"), *text("\n\n ")],
    ]


def test_the_70b_format_has_a_system_part_even_without_a_system_message(with_step: CodeLlamaTokenizer) -> None:
    bare = with_step.encode_chat([user("a")], template="codellama-70b")
    assert bare == with_step.encode_chat([system(""), user("a")], template="codellama-70b")
    assert bare.count(with_step.step_id or -1) == 2


def test_a_model_without_step_refuses_the_70b_format(trained: CodeLlamaTokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"no <step> piece.*use the template 'llama-2'"):
        trained.encode_chat([user("a")], template="codellama-70b")


@pytest.mark.parametrize("tag", ["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"])
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_a_tag_in_a_message_is_refused(trained: CodeLlamaTokenizer, tag: str, place: int) -> None:
    messages = [system("s"), user("u"), assistant("a"), user("v")]
    messages[place]["content"] += f"x{tag}y"
    with pytest.raises(TokenizerError) as caught:
        trained.encode_chat(messages)
    assert str(caught.value).startswith(f"message {place} ({messages[place]['role']}) contains the tag {tag}")


def test_step_is_refused_where_it_ends_a_turn(with_step: CodeLlamaTokenizer) -> None:
    with pytest.raises(TokenizerError, match="contains the tag <step>"):
        with_step.encode_chat([user("a <step> b")], template="codellama-70b")
    ids = with_step.encode_chat([user("a <step> b")])
    assert with_step.step_id not in ids
    assert with_step.decode(ids) == "[INST] a <step> b [/INST]"


@pytest.mark.parametrize(
    ("messages", "found"),
    [
        ([], "no message"),
        ([system("s")], "last message has role 'system'"),
        ([assistant("a")], "message 0 has role 'assistant', expected 'user'"),
        ([user("a"), user("b")], "message 1 has role 'user', expected 'assistant'"),
        ([user("a"), system("s"), user("b")], "message 1 has role 'system', expected 'assistant'"),
        ([system("s"), system("s"), user("b")], "message 1 has role 'system', expected 'user'"),
        ([user("a"), assistant("b")], "last message has role 'assistant'"),
        ([{"role": "tool", "content": "a"}], "message 0 has role 'tool'"),
        ([{"role": "user"}], "message 0 has no text under 'content'"),
        ([{"content": "a"}], "message 0 has no text under 'role'"),
        ([{"role": "user", "content": None}], "message 0 has no text under 'content'"),
        (["hello"], "message 0 has no text under 'role'"),
    ],
)
@pytest.mark.parametrize("template", ["llama-2", "codellama-70b"])
def test_a_conversation_out_of_order_is_refused(
    with_step: CodeLlamaTokenizer, messages: list[dict[str, str]], found: str, template: str
) -> None:
    with pytest.raises(TokenizerError, match=found):
        with_step.encode_chat(messages, template=template)  # type: ignore[arg-type]


def test_an_unknown_template_is_refused(trained: CodeLlamaTokenizer) -> None:
    with pytest.raises(TokenizerError, match="unknown chat template 'chatml'; use one of 'llama-2', 'codellama-70b'"):
        trained.encode_chat([user("a")], template="chatml")  # type: ignore[arg-type]
