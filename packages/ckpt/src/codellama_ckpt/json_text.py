"""JSON from files that may be damaged or hostile: parsed strictly, and taken apart with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path

from codellama_ckpt.errors import CheckpointError


def parse(text: bytes, where: str) -> dict[str, object]:
    """The JSON object in `text`; CheckpointError, naming `where`, for broken JSON, another type, a key given twice."""
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except _DuplicateKeyError as error:
        raise CheckpointError(f"{where} gives {error.args[0]!r} twice") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is not a JSON object, found {type(value).__name__}")
    return value


def read(path: Path) -> dict[str, object]:
    """The JSON object in a file."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    return parse(text, str(path))


def as_object(value: object, where: str) -> dict[str, object]:
    """`value` where a JSON object is expected."""
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: expected an object, found {value!r:.80}")
    return value


def as_list(value: object, where: str) -> list[object]:
    """`value` where a JSON list is expected."""
    if not isinstance(value, list):
        raise CheckpointError(f"{where}: expected a list, found {value!r:.80}")
    return value


def as_text(value: object, where: str) -> str:
    """`value` where a string is expected."""
    if not isinstance(value, str):
        raise CheckpointError(f"{where}: expected a string, found {value!r:.80}")
    return value


def as_count(value: object, where: str) -> int:
    """`value` where a whole number from 0 up to 2**63 - 1 is expected."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise CheckpointError(f"{where}: expected a whole number from 0, found {value!r:.80}")
    return value


def as_counts(value: object, where: str) -> tuple[int, ...]:
    """`value` where a list of whole numbers is expected."""
    return tuple(as_count(item, where) for item in as_list(value, where))


def as_texts(value: object, where: str) -> dict[str, str]:
    """`value` where an object of strings is expected."""
    return {key: as_text(item, f"{where}, {key!r}") for key, item in as_object(value, where).items()}


def as_box(value: object, where: str, dimensions: int) -> tuple[tuple[int, int], ...]:
    """`value` where a list of `[start, stop]` is expected, one for each dimension."""
    box = []
    for pair in as_list(value, where):
        bounds = as_counts(pair, where)
        if len(bounds) != 2 or bounds[0] > bounds[1]:
            raise CheckpointError(f"{where}: expected [start, stop], found {list(bounds)!s:.80}")
        box.append((bounds[0], bounds[1]))
    if len(box) != dimensions:
        raise CheckpointError(f"{where}: {len(box)} dimensions, expected {dimensions}")
    return tuple(box)


class _DuplicateKeyError(ValueError):
    pass


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKeyError(key)
            seen.add(key)
    return result
