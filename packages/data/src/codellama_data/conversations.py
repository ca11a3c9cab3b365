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
    """The text up to one answer: `prompt` is what is given (system text included), `text` the prompt and the answer.

    Where a conversation ends with an empty answer, both are the same.
    """

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

        Behind an empty answer fschat writes no end, so the turn after it belongs to the same round.
    """
    conversation = get_conv_template(template)
    if parsed.system is not None:
        conversation.set_system_message(parsed.system)
    if template == "llama-2":
        # The reference folds the system message in first and strips then, so white space after it survives.
        first = len(parsed.turns[:1]) if parsed.system else 0
        turns = [Turn(turn.question.rstrip(), turn.answer.strip()) for turn in parsed.turns[:first]]
        turns += [Turn(turn.question.strip(), turn.answer.strip()) for turn in parsed.turns[first:]]
        return _rounds(conversation, turns, end="</s><s>", spaces=2)
    return _rounds(conversation, parsed.turns, end=conversation.sep2, spaces=0)


def _rounds(conversation: Conversation, turns: list[Turn], end: str, spaces: int) -> list[Round]:
    """Cut what fschat writes into rounds.

    Behind an answer stands `end`; the `spaces` around an answer belong to the text of the round, not to its prompt.
    """
    rounds, done = [], 0
    for turn in turns:
        conversation.append_message(conversation.roles[0], turn.question)
        conversation.append_message(conversation.roles[1], turn.answer)
        if turn.answer:
            text = conversation.get_prompt()[done:]
            done += len(text)
            text = text[: len(text) - len(end)]
            rounds.append(Round(text[: len(text) - len(turn.answer) - spaces], text))
    rest = conversation.get_prompt()[done:]
    if turns and not turns[-1].answer:
        rounds.append(Round(rest, rest))
    return rounds
