"""Conversations to prompts: checking `{"conversations": [{"from", "value"}, ...]}`, rendering with fschat's templates.

A conversation becomes rounds, one for each answer. The prompt text comes from the real `fschat` package, round by
round, so that where a round, its question and its answer begin is known and never guessed back from the text.
"""

from __future__ import annotations

from typing import NamedTuple

from fastchat.conversation import Conversation, get_conv_template

from codellama_data.errors import DataError
from codellama_data.records import JsonObject

TEMPLATES = ("vicuna_v1.1", "llama-2")
_HUMAN, _GPT, _SYSTEM = "human", "gpt", "system"
_ROLES = {_HUMAN: _HUMAN, "user": _HUMAN, _GPT: _GPT, "assistant": _GPT, _SYSTEM: _SYSTEM}


class Turn(NamedTuple):
    """One question and its answer."""

    question: str
    answer: str


class Round(NamedTuple):
    """The text of one turn: `prompt` is what is given (system text included), `text` the prompt and the answer."""

    prompt: str
    text: str


class Parsed(NamedTuple):
    """A checked conversation: its system message, its turns, and how many messages without partner were left out."""

    system: str | None
    turns: list[Turn]
    unpaired: int


def check_template(name: str) -> str:
    """Refuse a template that is not supported."""
    if name not in TEMPLATES:
        raise DataError(f"template {name!r} is unknown, choose from {', '.join(TEMPLATES)}")
    return name


def parse_conversation(record: JsonObject, place: str) -> Parsed:
    """Check one sample.

    As in MindFormers, an opening message that is not the human's is left out; so is a last question without answer
    (MindFormers masks the whole sample then). A leading message from "system" is the system message.

    Raises:
        DataError: a key is missing, a value is not text, or the roles do not alternate.
    """
    messages = record.get("conversations")
    if not isinstance(messages, list):
        found = ", ".join(record) or "nothing"
        raise DataError(f'{place}: has no list "conversations", only {found}')
    texts: list[tuple[str, str]] = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("from"), str):
            raise DataError(f'{place}: message {index} has no text "from"')
        if not isinstance(message.get("value"), str):
            raise DataError(f'{place}: message {index} has no text "value"')
        role = _ROLES.get(str(message["from"]))
        if role is None:
            raise DataError(f'{place}: message {index} is from {message["from"]!r}, expected "human" or "gpt"')
        texts.append((role, str(message["value"])))
    system, unpaired = None, 0
    if texts and texts[0][0] == _SYSTEM:
        system = texts.pop(0)[1]
    if texts and texts[0][0] == _GPT:
        texts.pop(0)
        unpaired += 1
    for index, (role, _) in enumerate(texts):
        if role != (_HUMAN, _GPT)[index % 2]:
            raise DataError(f"{place}: roles do not alternate, message {index} is again from {role!r}")
    if len(texts) % 2:
        texts.pop()
        unpaired += 1
    return Parsed(system, [Turn(texts[at][1], texts[at + 1][1]) for at in range(0, len(texts), 2)], unpaired)


def render(template: str, parsed: Parsed) -> list[Round]:
    """The rounds of a conversation.

    Returns:
        vicuna_v1.1: rounds of one sequence, the system text in front of the first; what follows a round is `</s>`.
        llama-2: rounds that are sequences of their own, BOS ... EOS; contents stripped as Meta's reference does.
    """
    conversation = get_conv_template(template)
    if template == "llama-2":
        return _render_llama2(conversation, parsed)
    if parsed.system is not None:
        conversation.set_system_message(parsed.system)
    rounds, done = [], 0
    for turn in parsed.turns:
        conversation.append_message(conversation.roles[0], turn.question)
        conversation.append_message(conversation.roles[1], turn.answer)
        text = conversation.get_prompt()[done:]
        done += len(text)
        text = text[: len(text) - len(conversation.sep2)]
        rounds.append(Round(text[: len(text) - len(turn.answer)], text))
    return rounds


def _render_llama2(conversation: Conversation, parsed: Parsed) -> list[Round]:
    if parsed.system is not None:
        conversation.set_system_message(parsed.system)
    end = "</s><s>"  # of a turn; the space before it belongs to the turn
    rounds, done = [], 0
    for index, turn in enumerate(parsed.turns):
        # The reference folds the system message in first and strips then, so white space after it survives.
        question = turn.question.rstrip() if index == 0 and parsed.system else turn.question.strip()
        conversation.append_message(conversation.roles[0], question)
        conversation.append_message(conversation.roles[1], turn.answer.strip())
        text = conversation.get_prompt()[done:]
        done += len(text)
        text = text[: len(text) - len(end)]
        rounds.append(Round(text[: len(text) - len(turn.answer.strip()) - 2], text))
    return rounds
