"""`inspect`: what is in a MindRecord file, as figures and as decoded text with the masked spans marked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from codellama_tokenizer import CodeLlamaTokenizer, TokenizerError

from codellama_data.errors import DataError
from codellama_data.qa import IGNORE
from codellama_data.reading import Batch, MindRecordRows

_DIM, _BOLD, _RESET = "\x1b[2m", "\x1b[1;32m", "\x1b[0m"
# What a terminal obeys instead of showing it: a corpus must not move its cursor, or worse.
_VISIBLE = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


@dataclass(frozen=True)
class Statistics:
    """Figures over all rows. `loss_tokens` are targets: the first id of a row is never one, nor is padding."""

    rows: int
    shortest: int
    longest: int
    tokens: int
    padding: int
    loss_tokens: int


def measure(rows: MindRecordRows) -> Statistics:
    """Read every row once, in constant memory.

    Trailing zeros count as padding where the file has labels; a file without labels has none.
    """
    if "input_ids" not in rows.columns:
        raise DataError(f"{rows.files[0]}: has the columns {', '.join(rows.columns)}, expected input_ids")
    shortest, longest, tokens, padding, loss_tokens = np.iinfo(np.int64).max, 0, 0, 0, 0
    for row in rows:
        size = row["input_ids"].size
        shortest, longest = min(shortest, size), max(longest, size)
        used = _used(row)
        tokens += size
        padding += size - used
        loss_tokens += int((row["labels"][1:] != IGNORE).sum()) if "labels" in row else size - 1
    return Statistics(len(rows), int(shortest), longest, tokens, padding, loss_tokens)


def _used(row: Batch) -> int:
    """Ids of a row before its padding."""
    ids = row["input_ids"]
    if "labels" not in row:
        return ids.size
    filled = np.flatnonzero((ids != 0) | (row["labels"] != IGNORE))
    return int(filled[-1]) + 1 if filled.size else 0


def render(rows: MindRecordRows, tokenizer: CodeLlamaTokenizer | None, samples: int, colour: bool) -> Iterator[str]:
    """The lines of a report.

    Args:
        rows: an opened file.
        tokenizer: None shows the figures alone.
        samples: how many rows are decoded, evenly spaced.
        colour: masked spans dim and learned ones bold green; without, masked spans stand in ⟦ ⟧.
    """
    figures = measure(rows)
    names = ", ".join(str(path) for path in rows.files)
    length = f"{figures.longest}" if figures.shortest == figures.longest else f"{figures.shortest} to {figures.longest}"
    yield f"{names}: {figures.rows:,} rows of {length} ids, columns {', '.join(rows.columns)}"
    share = figures.loss_tokens / max(1, figures.tokens)
    yield (
        f"{figures.tokens:,} tokens, {figures.loss_tokens:,} under loss ({share:.1%}), "
        f"{figures.padding:,} padding ({figures.padding / max(1, figures.tokens):.1%})"
    )
    if tokenizer is None:
        return
    count = min(samples, len(rows))
    chosen = [index * len(rows) // count for index in range(count)] if count else []
    for index, row in zip(chosen, rows.stream(chosen), strict=True):
        yield f"--- row {index}"
        yield decode_row(row, tokenizer, colour)


def decode_row(row: Batch, tokenizer: CodeLlamaTokenizer, colour: bool) -> str:
    """The text of a row without its padding; ids that stand for no text are shown by name, as `<s>`."""
    used = _used(row)
    ids = row["input_ids"][:used]
    masked = row["labels"][:used] == IGNORE if "labels" in row else np.zeros(used, dtype=np.bool_)
    before, after = (_DIM, _RESET) if colour else ("⟦", "⟧")
    bold, plain = (_BOLD, _RESET) if colour and "labels" in row else ("", "")
    parts = []
    for start, stop in _runs(masked):
        text = _text(ids[start:stop], tokenizer)
        parts.append(before + text + after if masked[start] else bold + text + plain)
    return "".join(parts)


def _runs(values: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    for start, stop in zip(edges, edges[1:]):  # noqa: B905, RUF007
        if start < stop:
            yield start, stop


def _text(ids: npt.NDArray[np.int32], tokenizer: CodeLlamaTokenizer) -> str:
    names = {tokenizer.bos_id: "<s>", tokenizer.eos_id: "</s>", tokenizer.unk_id: "<unk>"}
    markers = ("prefix", "<PRE>"), ("suffix", "<SUF>"), ("middle", "<MID>"), ("eot", "<EOT>")
    for attribute, name in markers:
        marker = getattr(tokenizer, f"{attribute}_id")
        if marker is not None:
            names[marker] = name
    parts: list[str] = []
    plain: list[int] = []
    for token in [*ids.tolist(), tokenizer.bos_id]:  # the last one only ends the last stretch of plain ids
        if token not in names:
            plain.append(token)
            continue
        try:
            parts += [tokenizer.decode_continuation(plain).translate(_VISIBLE), names[token]]
        except TokenizerError as error:
            raise DataError(f"{error} (is this the tokenizer that the file was made with?)") from None
        plain = []
    return "".join(parts[:-1])
