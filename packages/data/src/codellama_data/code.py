"""`preprocess --dataset_type code`: documents, encoded and infilled, concatenated and cut into rows.

One process finds the documents and writes the rows in order; the workers read, encode and infill. Memory holds a few
chunks of documents for each worker and about 100 bytes for each document seen (to recognise duplicates).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from codellama_tokenizer import CodeLlamaTokenizer, TokenizerError

from codellama_data.corpus import Corpus, file_sizes, load
from codellama_data.errors import DataError
from codellama_data.infilling import InfillingPlan, encode_document, is_for_evaluation, name_hash
from codellama_data.job import Job, RunArguments, RunOptions, chunked
from codellama_data.spool import integer_type
from codellama_data.summary import NAMES_KEPT, Summary

if TYPE_CHECKING:
    from typing_extensions import Unpack  # typing has it from Python 3.11 on

COLUMNS = ("input_ids",)


@dataclass(frozen=True)
class _Encoded:
    """One document from a worker: its ids, or why it has none."""

    name: str
    digest: bytes
    ids: npt.NDArray[np.int32] | None
    infilled: bool = False
    reason: str = ""


class _Encoder:
    """What a worker does with a chunk: read, hash, encode."""

    def __init__(self, model_file: str, plan: InfillingPlan) -> None:
        self._tokenizer, self._plan = CodeLlamaTokenizer(model_file), plan

    def __call__(self, chunk: list[tuple[str, str | Path]]) -> list[_Encoded]:
        return [self._encode(name, source) for name, source in chunk]

    def _encode(self, name: str, source: str | Path) -> _Encoded:
        text, reason = load(source)
        if text is None:
            return _Encoded(name, b"", None, reason=reason)
        try:
            ids, infilled = encode_document(name, text, self._tokenizer, self._plan)
        except TokenizerError as error:
            raise DataError(f"{name}: {error}") from None
        return _Encoded(name, hashlib.sha256(text.encode()).digest(), np.array(ids, dtype=np.int32), infilled)


def preprocess_code(
    corpus: Corpus,
    tokenizer: CodeLlamaTokenizer,
    output_file: str | Path,
    *,
    seq_length: int,
    fim_rate: float = 0.9,
    fim_spm_rate: float = 0.5,
    seed: int = 0,
    eval_output_file: str | Path | None = None,
    eval_share: float = 0.1,
    **run: Unpack[RunArguments],
) -> Summary:
    """Turn a corpus into MindRecord rows of `seq_length + 1` ids, column `input_ids` (int32).

    Every document is BOS ... EOS; a share of them becomes fill-in-the-middle; all are concatenated in the corpus's
    order and cut into consecutive rows without overlap; the short rest at the end is dropped and counted. Exact
    duplicates of earlier documents are left out. Nothing depends on the number of workers.

    Args:
        corpus: the documents.
        tokenizer: with infilling pieces, unless `fim_rate` is 0.
        output_file: OUT; `eval_output_file` is always one file.
        seq_length: S; rows have S + 1 ids.
        fim_rate: share of documents that are infilled, cut at character level.
        fim_spm_rate: share of the infilled ones in suffix-prefix-middle order.
        seed: of cuts, orders and the evaluation share.
        eval_output_file: where the evaluation documents go; None uses all documents for training.
        eval_share: share of the documents for evaluation, chosen by a hash of the name and the seed.
        **run: see `RunArguments`. A shard takes documents by a hash of their name.

    Returns:
        Counts of rows, tokens, documents and what was left out.

    Raises:
        DataError: an option is impossible, an output exists or can not be written, or there is less than one row.
    """
    options = RunOptions(**run)
    plan = InfillingPlan(fim_rate, fim_spm_rate, seed)
    plan.check(tokenizer)
    outputs = [Path(output_file)]
    share = 0.0
    if eval_output_file is not None:
        if not 0 < eval_share < 1:
            raise DataError(f"eval_share must be between 0 and 1, found {eval_share}")
        share = eval_share
        outputs.append(Path(eval_output_file))
    sizes = file_sizes(corpus.files)
    model_file = str(tokenizer.model_file.resolve())
    inputs = ("code", corpus.files, sizes, corpus.text_field, model_file, seq_length, plan, share)
    with Job(outputs, COLUMNS, seq_length + 1, integer_type(tokenizer.vocab_size), options, inputs) as job:

        def consume(chunk: list[_Encoded]) -> None:
            for document in chunk:
                if document.ids is None:
                    job.counts.add("skipped")
                    if len(job.counts.names) < NAMES_KEPT:
                        job.counts.names.append((document.name, document.reason))
                elif not job.is_new(document.digest):
                    job.counts.add("duplicates")
                else:
                    held_out = share > 0 and is_for_evaluation(document.name, plan.seed, share)
                    job.spools[held_out].append(document.ids)
                    job.counts.add("eval_documents" if held_out else "documents")
                    job.counts.add("infilled", document.infilled)
                    job.counts.add("tokens", document.ids.size)

        tasks = chunked(
            ((name, source), size)
            for name, source, size in corpus.items()
            if options.takes(name_hash("shard", 0, name))
        )
        job.run(tasks, _Encoder, (model_file, plan), consume, sum(sizes) / options.num_shards)
        part, *held_out_parts = job.finish()
    return Summary(
        part.files,
        part.rows,
        part.tokens,
        part.documents,
        part.dropped_tokens,
        job.seconds,
        eval=held_out_parts[0] if held_out_parts else None,
        left_out=(
            ("duplicate documents", job.counts["duplicates"]),
            ("documents that are no text", job.counts["skipped"]),
        ),
        names=tuple(job.counts.names),
        infilled=job.counts["infilled"],
    )
