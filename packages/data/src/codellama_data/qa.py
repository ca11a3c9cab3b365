"""`preprocess --dataset_type qa`: conversations to rows with labels, equal to MindFormers' wherever they lose no data.

L = seq_length + 1 ids a row. `labels` are the ids that are to be learned, NOT shifted; everything but the answers and
their end-of-sequence id is -100. Where MindFormers masks or cuts silently, this counts and reports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from codellama_tokenizer import CodeLlamaTokenizer, TokenizerError

from codellama_data.conversations import Round, check_template, parse_conversation, render
from codellama_data.corpus import file_sizes, find_files
from codellama_data.errors import DataError
from codellama_data.job import Job, RunArguments, RunOptions, chunked
from codellama_data.records import JsonObject, read_records
from codellama_data.spool import integer_type
from codellama_data.summary import NAMES_KEPT, Summary

if TYPE_CHECKING:
    from typing_extensions import Unpack  # typing has it from Python 3.11 on

IGNORE = -100  # label of what is not learned (MindFormers' ignore_token_id)
PADDING = 0  # id that fills up a row (MindFormers' pad_token_id)
ON_OVERLONG = ("truncate", "drop", "split", "error")
ON_EMPTY_ANSWER = ("keep", "drop", "error")
_COLUMNS = ("input_ids", "labels")
_PACKED_COLUMNS = ("input_ids", "labels", "document_ids")
_REPORTED = (
    *("truncated samples", "overlong samples", "split samples", "samples with an empty answer"),
    *("samples without turns", "messages without partner", "rows without loss"),
)
_APART = ": "  # what a prompt of vicuna_v1.1 ends with
_PACKING_CHUNK = (1 << 20, 2048)  # bytes and samples packed together: more of them leave less padding


@dataclass(frozen=True)
class QaOptions:
    """What is made of a conversation.

    Args:
        seq_length: S; rows have S + 1 ids.
        template: `vicuna_v1.1`, or `llama-2` for Instruct models.
        on_overlong: a sample of more than S + 1 ids is cut (`truncate`), left out (`drop`), continued in further rows
            (`split`), or ends the run (`error`).
        on_empty_answer: a sample with an empty answer stays, without loss on that answer, as in MindFormers (`keep`),
            is left out (`drop`), or ends the run (`error`).
        packing: put several samples into a row; the column `document_ids` numbers them from 1, padding is 0.
    """

    seq_length: int
    template: str = "vicuna_v1.1"
    on_overlong: str = "truncate"
    on_empty_answer: str = "keep"
    packing: bool = False

    def __post_init__(self) -> None:
        check_template(self.template)
        if self.on_overlong not in ON_OVERLONG:
            raise DataError(f"on_overlong {self.on_overlong!r} is unknown, choose from {', '.join(ON_OVERLONG)}")
        if self.on_empty_answer not in ON_EMPTY_ANSWER:
            known = ", ".join(ON_EMPTY_ANSWER)
            raise DataError(f"on_empty_answer {self.on_empty_answer!r} is unknown, choose from {known}")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a row."""
        return _PACKED_COLUMNS if self.packing else _COLUMNS


@dataclass
class _Rows:
    """What a worker makes of a chunk: rows int32 [rows, columns, L], counters, and samples left out with the reason."""

    rows: npt.NDArray[np.int32]
    counts: Counter[str]
    names: list[tuple[str, str]]


Sample = tuple[list[int], list[int]]  # ids and labels of the same length


def encodes_apart(tokenizer: CodeLlamaTokenizer) -> bool:
    """Whether `x: y` always has the ids of `x:` and then those of `y`, which begins with a space of its own.

    So it is where no piece holds a colon and a space behind it: then no merge ever crosses that place.
    """
    crossed = any(_APART in tokenizer.decode_continuation([piece]) for piece in range(tokenizer.vocab_size))
    whole, parts = tokenizer.encode("x: y"), [*tokenizer.encode("x:"), *tokenizer.encode("y", bos=False)]
    return not crossed and whole == parts


def encode_rounds(rounds: list[Round], template: str, tokenizer: CodeLlamaTokenizer, apart: bool = False) -> Sample:
    """Ids and labels of one conversation, neither cut nor padded.

    `apart`, from `encodes_apart`, spares encoding the prompt a second time to find its end; the result is the same.

    vicuna_v1.1 is one sequence, BOS round EOS round EOS; the boundary of an answer is where MindFormers puts it: the
    ids of the prompt less its last one, the space that the answer's first word carries. llama-2 makes each round
    BOS ... EOS; the answer begins with the first id that the prompt alone does not have.
    """
    ids: list[int] = []
    labels: list[int] = []
    for index, (prompt, text) in enumerate(rounds):
        if apart and prompt.endswith(_APART) and text != prompt:
            given = tokenizer.encode(prompt[:-1], bos=False)
            content, masked = given + tokenizer.encode(text[len(prompt) :], bos=False), len(given)
        else:
            content, given = tokenizer.encode(text, bos=False), tokenizer.encode(prompt, bos=False)
            masked = len(given) - 1
            if template == "llama-2":
                masked = next((at for at, pair in enumerate(zip(given, content)) if pair[0] != pair[1]), len(given))  # noqa: B905
        if index == 0 or template == "llama-2":
            ids.append(tokenizer.bos_id)
            labels.append(IGNORE)
        ids += [*content, tokenizer.eos_id]
        if text == prompt:  # no answer: nothing to learn, not even to end here
            labels += [IGNORE] * (len(content) + 1)
        else:
            labels += [IGNORE] * masked + content[masked:] + [tokenizer.eos_id]
    return ids, labels


class _Encoder:
    """What a worker does with a chunk of records."""

    def __init__(self, model_file: str, options: QaOptions, apart: bool) -> None:
        self._tokenizer, self._options, self._apart = CodeLlamaTokenizer(model_file), options, apart
        self._length = options.seq_length + 1

    def __call__(self, chunk: list[tuple[JsonObject, str]]) -> _Rows:
        counts: Counter[str] = Counter()
        names: list[tuple[str, str]] = []
        samples: list[Sample] = []
        for record, place in chunk:
            sample = self._encode(record, place, counts, names)
            if sample is not None:
                samples += self._fit(sample, place, counts, names)
        rows = (_pack if self._options.packing else _pad)(samples, self._length)
        labels = rows[:, 1]
        counts["loss_tokens"] = int((labels != IGNORE).sum())
        counts["rows without loss"] = int((labels == IGNORE).all(axis=1).sum())
        counts["tokens"] = sum(len(ids) for ids, _ in samples)
        counts["padding"] = rows.shape[0] * self._length - counts["tokens"]
        return _Rows(rows, counts, names)

    def _encode(
        self, record: JsonObject, place: str, counts: Counter[str], names: list[tuple[str, str]]
    ) -> Sample | None:
        parsed = parse_conversation(record, place)
        counts["messages without partner"] += parsed.unpaired
        policy = self._options.on_empty_answer
        reason = ""
        if not parsed.turns:
            reason, key = "no question with an answer", "samples without turns"
        elif any(not turn.answer.strip() for turn in parsed.turns):
            reason, key = "empty answer", "samples with an empty answer"
        if reason:
            if policy == "error":
                raise DataError(f"{place}: {reason}")
            counts[key] += 1
            if policy == "drop" or not parsed.turns:
                names.append((place, reason))
                return None
        counts["documents"] += 1
        counts["samples without an answer"] += not any(turn.answer for turn in parsed.turns)
        try:
            rounds = render(self._options.template, parsed)
            return encode_rounds(rounds, self._options.template, self._tokenizer, self._apart)
        except TokenizerError as error:
            raise DataError(f"{place}: {error}") from None

    def _fit(self, sample: Sample, place: str, counts: Counter[str], names: list[tuple[str, str]]) -> list[Sample]:
        ids, labels = sample
        if len(ids) <= self._length:
            return [sample]
        policy = self._options.on_overlong
        if policy == "error":
            raise DataError(f"{place}: {len(ids)} ids, more than seq_length + 1 = {self._length}")
        if policy == "truncate":
            counts["truncated samples"] += 1
            counts["dropped_tokens"] += len(ids) - self._length
            return [(ids[: self._length], labels[: self._length])]
        if policy == "drop":
            counts["overlong samples"] += 1
            counts["documents"] -= 1
            counts["dropped_tokens"] += len(ids)
            names.append((place, f"{len(ids)} ids, more than {self._length}"))
            return []
        counts["split samples"] += 1
        return split_sample(sample, self._length)


def split_sample(sample: Sample, length: int) -> list[Sample]:
    """Cut a sample into pieces of at most `length` ids without losing a label.

    A model predicts each id from the ones before it, so the first label of a row is never used: each piece begins with
    the last id of the piece before, and that one's label is -100.
    """
    ids, labels = sample
    pieces = []
    for start in range(0, len(ids) - 1, length - 1):
        piece = labels[start : start + length]
        pieces.append((ids[start : start + length], [IGNORE, *piece[1:]] if start else piece))
    return pieces


def _pad(samples: list[Sample], length: int) -> npt.NDArray[np.int32]:
    rows = np.empty((len(samples), 2, length), dtype=np.int32)
    rows[:, 0], rows[:, 1] = PADDING, IGNORE
    for row, (ids, labels) in zip(rows, samples, strict=True):
        row[0, : len(ids)], row[1, : len(labels)] = ids, labels
    return rows


def _pack(samples: list[Sample], length: int) -> npt.NDArray[np.int32]:
    """Longest samples first, each into the first row with room for it; every sample stays whole."""
    order = sorted(range(len(samples)), key=lambda index: (-len(samples[index][0]), index))
    bins: list[list[int]] = []
    room: list[int] = []
    for index in order:
        size = len(samples[index][0])
        place = next((number for number, left in enumerate(room) if left >= size), len(bins))
        if place == len(bins):
            bins.append([])
            room.append(length)
        bins[place].append(index)
        room[place] -= size
    rows = np.empty((len(bins), 3, length), dtype=np.int32)
    rows[:, 0], rows[:, 1], rows[:, 2] = PADDING, IGNORE, 0
    for row, members in zip(rows, bins, strict=True):
        at = 0
        for number, index in enumerate(sorted(members), start=1):
            ids, labels = samples[index]
            end = at + len(ids)
            row[0, at:end], row[1, at:end], row[2, at:end] = ids, labels, number
            at = end
    return rows


def preprocess_qa(
    input_glob: str,
    tokenizer: CodeLlamaTokenizer,
    output_file: str | Path,
    qa: QaOptions,
    **run: Unpack[RunArguments],
) -> Summary:
    """Turn conversations into MindRecord rows, columns `input_ids` and `labels` (int32 [S + 1]).

    Args:
        input_glob: JSON arrays, or JSON lines in `*.jsonl`; every match is read.
        tokenizer: encodes the rounds.
        output_file: OUT.
        qa: what is made of a conversation.
        **run: see `RunArguments`. A shard takes the samples whose number is `shard_id` modulo `num_shards`.

    Raises:
        DataError: bad input (the message names the place), an existing output, or nothing to learn in any row.
    """
    options = RunOptions(**run)
    files = find_files(input_glob)
    sizes = file_sizes(files)
    model_file = str(tokenizer.model_file.resolve())
    inputs = ("qa", files, sizes, model_file, qa)
    dtype = integer_type(max(tokenizer.vocab_size, qa.seq_length + 1))  # `document_ids` stay below a row's length
    with Job([Path(output_file)], qa.columns, qa.seq_length + 1, dtype, options, inputs) as job:

        def consume(result: _Rows) -> None:
            job.spools[0].append(result.rows.reshape(-1))
            for key, amount in result.counts.items():
                job.counts.add(key, amount)
            job.counts.names += result.names[: NAMES_KEPT - len(job.counts.names)]

        samples = _samples(files, options)
        tasks = chunked(samples, *_PACKING_CHUNK) if qa.packing else chunked(samples)
        job.run(tasks, _Encoder, (model_file, qa, encodes_apart(tokenizer)), consume, sum(sizes) / options.num_shards)
        counts = job.counts
        if not counts["documents"]:
            why = f" ({counts.names[0][0]}: {counts.names[0][1]})" if counts.names else ""
            raise DataError(f"{input_glob}: no sample is left{why}")
        if not counts["loss_tokens"]:
            if counts["samples without an answer"] == counts["documents"]:
                raise DataError(f"{input_glob}: every answer is empty, there is nothing to learn")
            raise DataError(
                f"{input_glob}: with seq_length {qa.seq_length} no row holds a token of an answer, use a larger one"
            )
        (part,) = job.finish()
    return Summary(
        part.files,
        part.rows,
        part.tokens,
        part.documents,
        counts["dropped_tokens"],
        job.seconds,
        loss_tokens=counts["loss_tokens"],
        padding_tokens=counts["padding"],
        left_out=tuple((name, counts[name]) for name in _REPORTED),
        names=tuple(counts.names),
    )


def _samples(
    files: tuple[tuple[str, Path], ...], options: RunOptions
) -> Iterator[tuple[tuple[JsonObject, str], float]]:
    number = 0
    for _, path in files:
        for record in read_records(path):
            if options.takes(number):
                yield (record.value, record.place), record.source_bytes
            number += 1
