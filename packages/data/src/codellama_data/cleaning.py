"""WikiText's spacing undone as MindFormers 1.2 does it, over a whole file, yet in constant memory.

The rules (MindFormers' `clean_wikitext`) run one after the other over the WHOLE text: a quotation mark without
partner shifts the pairing of everything behind it. Here each rule is a stage of a pipeline of text blocks that holds
back only what the next block could still change; the outcome is that of the whole text at once (tests compare them).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_BEFORE_PAIRS = (
    ("s '", "s'"),
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (" @.@ ", "."),
    *((f" {mark} ", f"{mark} ") for mark in (":", ";", ".", "!", "?", ",")),
)
_PAIRS = (("(", ")"), ("[", "]"), ("{", "}"), ('"', '"'), ("'", "'"))
_AFTER_PAIRS = (
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def clean_blocks(blocks: Iterable[str]) -> Iterator[str]:
    """Apply every rule to a text given in blocks; the blocks that come out, joined, are the cleaned text.

    Memory: a few blocks, and the longest stretch between an opening mark and its partner.
    """
    stream = iter(blocks)
    for old, new in _BEFORE_PAIRS:
        stream = _replace(stream, old, new)
    for left, right in _PAIRS:
        stream = _trim_inside(stream, left, right)
    for old, new in _AFTER_PAIRS:
        stream = _replace(stream, old, new)
    return stream


def paragraphs(blocks: Iterable[str]) -> Iterator[str]:
    """Split a cleaned text at empty lines and leave out what is empty or a heading (`= Title =`)."""
    held = ""
    for block in blocks:
        *complete, held = (held + block).split("\n\n")
        yield from filter(_is_paragraph, complete)
    if _is_paragraph(held):
        yield held


def _is_paragraph(text: str) -> bool:
    return bool(text) and not text.strip().startswith("=")


def _replace(blocks: Iterator[str], old: str, new: str) -> Iterator[str]:
    """`str.replace` over a stream: what a match could still begin in waits for the next block."""
    held = ""
    for block in blocks:
        *before, tail = (held + block).split(old)
        cut = max(0, len(tail) - len(old) + 1)
        yield new.join([*before, tail[:cut]])
        held = tail[cut:]
    yield held


def _trim_inside(blocks: Iterator[str], left: str, right: str) -> Iterator[str]:
    """Strip white space just inside pairs of marks: from an opening mark to the first closing one behind it."""
    pattern = re.compile(f"{re.escape(left)}([^{re.escape(right)}]*){re.escape(right)}")
    held: list[str] = []  # from an opening mark on, while its partner has not come
    for block in blocks:
        held.append(block)
        if len(held) > 1 and right not in block:
            continue
        text, end, done = "".join(held), 0, []
        for match in pattern.finditer(text):
            done += [text[end : match.start()], left, match[1].strip(), right]
            end = match.end()
        opened = text.find(left, end)
        held = [] if opened < 0 else [text[opened:]]
        yield "".join([*done, text[end:opened] if opened >= 0 else text[end:]])
    yield "".join(held)
