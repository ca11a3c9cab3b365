"""What a `preprocess` run did, as numbers and as the text printed at its end."""

from __future__ import annotations

from dataclasses import dataclass

NAMES_KEPT = 10  # of documents left out; the counts are always complete


@dataclass(frozen=True)
class Part:
    """One output: training or evaluation. `tokens` are those in its rows."""

    files: tuple[str, ...]
    rows: int
    tokens: int
    documents: int
    dropped_tokens: int


@dataclass(frozen=True)
class Summary:
    """Counts of one run.

    Attributes:
        files: MindRecord files written for training.
        rows, tokens: of these; `tokens` counts every id in them.
        documents: documents (files, paragraphs, samples) that went into them.
        dropped_tokens: the rest at the end that fills no row, or what truncation cut off.
        seconds: wall-clock time.
        eval: the evaluation output, where there is one.
        loss_tokens: labels that are not -100 (`qa`); elsewhere every token is under loss.
        padding_tokens: ids that only fill up rows (`qa`).
        left_out: what was left out or changed, and how often; empty counts are not listed.
        names: the first documents that were left out, with the reason.
        infilled: documents turned into fill-in-the-middle (`code`).
    """

    files: tuple[str, ...]
    rows: int
    tokens: int
    documents: int
    dropped_tokens: int
    seconds: float
    eval: Part | None = None
    loss_tokens: int | None = None
    padding_tokens: int = 0
    left_out: tuple[tuple[str, int], ...] = ()
    names: tuple[tuple[str, str], ...] = ()
    infilled: int | None = None

    @property
    def duplicates(self) -> int:
        """Documents left out because an earlier one has the same text."""
        return dict(self.left_out).get("duplicate documents", 0)

    @property
    def skipped(self) -> int:
        """Documents left out because they are empty or not text."""
        return dict(self.left_out).get("documents that are no text", 0)

    @property
    def loss_share(self) -> float:
        """Share of the tokens that are under loss."""
        return 1.0 if self.loss_tokens is None else self.loss_tokens / self.tokens

    def render(self) -> str:
        """The lines that the command line prints."""
        lines = [_line("train" if self.eval else "output", self.files, self.rows, self.tokens, self.documents)]
        dropped, tokens = self.dropped_tokens, self.tokens
        if self.eval:
            lines.append(_line("eval", self.eval.files, self.eval.rows, self.eval.tokens, self.eval.documents))
            dropped, tokens = dropped + self.eval.dropped_tokens, tokens + self.eval.tokens
        if self.loss_tokens is not None:
            share = f"{self.loss_tokens:,} tokens ({self.loss_share:.1%})"
            lines.append(f"under loss: {share}; padding: {self.padding_tokens:,} tokens")
        if self.infilled is not None:
            lines.append(f"infilled: {self.infilled:,} documents")
        left_out = [f"{count:,} {what}" for what, count in self.left_out if count]
        lines.append("left out or changed: " + ", ".join([*left_out, f"{dropped:,} tokens"]))
        lines += [f"  {name}: {reason}" for name, reason in self.names]
        lines.append(f"took {self.seconds:.1f} s, {(tokens + dropped) / max(self.seconds, 1e-9):,.0f} tokens/s")
        return "\n".join(lines)


def _line(label: str, files: tuple[str, ...], rows: int, tokens: int, documents: int) -> str:
    where = files[0] if len(files) == 1 else f"{files[0]} .. {files[-1]}"
    return f"{label}: {where}: {rows:,} rows, {tokens:,} tokens from {documents:,} documents"
