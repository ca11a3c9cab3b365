"""Where other harnesses end a generation: stop strings, searched for in the continuation only."""

from __future__ import annotations

from collections.abc import Sequence

_CODEX = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")  # Chen et al. 2021, section 3.2
STOPS: dict[str, tuple[str, ...]] = {
    "codex": _CODEX,
    # bigcode-evaluation-harness, humaneval: what Code Llama's authors point to
    "bigcode": (*_CODEX, "\n@", "\n```", "<file_sep>"),
    # evalplus, provider/utility.py, without a chat template
    "evalplus": (
        "<|endoftext|>",
        "<|endofmask|>",
        "</s>",
        "\nif __name__",
        "\ndef main(",
        "\nprint(",
        "\ndef ",
        "\nclass ",
        "\nimport ",
        "\nfrom ",
        "\nassert ",
    ),
}


def cut(text: str, stops: Sequence[str], start: int = 0) -> str:
    """The text before the earliest stop string that is found from `start` on. It begins at the start of a line."""
    text = f"\n{text}"  # so that a stop which begins with a newline is found at the very beginning too
    found = [position for stop in stops if (position := text.find(stop, start)) >= 0]
    return text[1 : max(1, min(found, default=len(text)))]
