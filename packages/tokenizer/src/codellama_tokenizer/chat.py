"""Conversations to prompts: the Instruct formats of Code Llama.

`llama-2` is the format of the 7B, 13B and 34B Instruct models, `codellama-70b` that of the 70B Instruct model.
Source of both: meta-llama/codellama, llama/generation.py (`chat_completion`, `dialog_prompt_tokens`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from codellama_tokenizer.errors import TokenizerError

ChatTemplate = Literal["llama-2", "codellama-70b"]

_BEGIN_PROMPT, _END_PROMPT = "[INST]", "[/INST]"
_BEGIN_SYSTEM, _END_SYSTEM = "<<SYS>>", "<</SYS>>"
# Text that would end or open a part of the prompt: who writes it in a message could speak for someone else.
_TAGS: dict[ChatTemplate, tuple[str, ...]] = {
    "llama-2": (_BEGIN_PROMPT, _END_PROMPT, _BEGIN_SYSTEM, _END_SYSTEM),
    "codellama-70b": (_BEGIN_PROMPT, _END_PROMPT, _BEGIN_SYSTEM, _END_SYSTEM, "<step>"),
}


def check_messages(messages: Sequence[Mapping[str, str]], template: ChatTemplate) -> None:
    """Refuses a conversation that the template cannot express.

    Raises:
        TokenizerError: unknown template; no message; a message without text `role` and `content`; roles other than an
            optional "system" followed by "user" and "assistant" in turn, ending with "user"; a tag in a content.
    """
    if template not in _TAGS:
        raise TokenizerError(f"unknown chat template {template!r}; use one of {', '.join(map(repr, _TAGS))}")
    if not messages:
        raise TokenizerError("the conversation has no message; give at least one with role 'user'")
    for number, message in enumerate(messages):
        for key in ("role", "content"):
            if not isinstance(message, Mapping) or not isinstance(message.get(key), str):
                raise TokenizerError(f"message {number} has no text under {key!r}; give both 'role' and 'content'")
        found = next((tag for tag in _TAGS[template] if tag in message["content"]), None)
        if found is not None:
            raise TokenizerError(f"message {number} ({message['role']}) contains the tag {found}; remove it")
    first_turn = 1 if messages[0]["role"] == "system" else 0
    for number, message in enumerate(messages[first_turn:]):
        expected = "assistant" if number % 2 else "user"
        if message["role"] != expected:
            raise TokenizerError(
                f"message {number + first_turn} has role {message['role']!r}, expected {expected!r}; "
                "roles are an optional 'system', then 'user' and 'assistant' in turn"
            )
    if messages[-1]["role"] != "user":
        raise TokenizerError(
            f"the last message has role {messages[-1]['role']!r}, expected 'user'; end with the question"
        )


def llama2_turns(messages: Sequence[Mapping[str, str]]) -> list[tuple[str, bool]]:
    """The texts of a checked conversation, one a turn, each with whether the turn is finished.

    Every text is encoded on its own behind a bos; a finished one, which holds prompt and answer, is followed by an eos.
    The system message is folded into the first prompt before white space is stripped, so its own survives.
    """
    contents = [message["content"] for message in messages]
    if messages[0]["role"] == "system":
        system, prompt = contents[:2]
        contents[:2] = [f"{_BEGIN_SYSTEM}\n{system}\n{_END_SYSTEM}\n\n{prompt}"]
    contents = [content.strip() for content in contents]
    turns = [
        (f"{_BEGIN_PROMPT} {prompt} {_END_PROMPT} {answer} ", True)
        for prompt, answer in zip(contents[::2], contents[1::2], strict=False)  # the last prompt has no answer
    ]
    turns.append((f"{_BEGIN_PROMPT} {contents[-1]} {_END_PROMPT}", False))
    return turns


def codellama_70b_parts(messages: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """The texts of a checked conversation: a list a message, to be encoded one by one; a step id stands between lists.

    The last list opens the answer. A conversation without a system message gets an empty one.
    """
    parts: list[list[str]] = [] if messages[0]["role"] == "system" else [[" Source: system"]]
    for message in messages:
        texts = [f" Source: {message['role']}"]
        if message["content"]:
            texts.append("\n\n " + message["content"].strip())
        parts.append(texts)
    parts.append([" Source: assistant\nDestination: user", "\n\n "])
    return parts
