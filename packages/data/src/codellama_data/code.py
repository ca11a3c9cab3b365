"""`preprocess --dataset_type code`: documents, encoded and infilled, concatenated and cut into rows.

One process finds the documents and writes the rows in order; the workers read, encode and infill. Memory holds a few
chunks of documents for each worker and about 100 bytes for each document seen (to recognise duplicates).
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from codellama_tokenizer import CodeLlamaTokenizer, TokenizerError

from codellama_data.corpus import Corpus, load
from codellama_data.errors import DataError
from codellama_data.infilling import InfillingPlan, encode_document, is_for_evaluation, name_hash
from codellama_data.job import Job, Output, RunOptions, chunked
from codellama_data.spool import integer_type
from codellama_data.summary import NAMES_KEPT, Summary

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
    num_workers: int | None = None,
    file_partition: int = 1,
    overwrite: bool = False,
    progress: bool = True,
    resume: bool = False,
    shard_id: int = 0,
    num_shards: int = 1,
) -> Summary:
    """Turn a corpus into MindRecord rows of `seq_length + 1` ids, column `input_ids` (int32).

    Every document is BOS ... EOS; a share of them becomes fill-in-the-middle; all are concatenated in the corpus's
    order and cut into consecutive rows without overlap; the short rest at the end is dropped and counted. Exact
    duplicates of earlier documents are left out. Nothing depends on the number of workers.

    Args:
        corpus: the documents.
        tokenizer: with infilling pieces, unless `fim_rate` is 0.
        output_file: OUT; with `file_partition` above 1, OUT0..OUTN-1. `eval_output_file` is always one file.
        seq_length: S; rows have S + 1 ids.
        fim_rate: share of documents that are infilled, cut at character level.
        fim_spm_rate: share of the infilled ones in suffix-prefix-middle order.
        seed: of cuts, orders and the evaluation share.
        eval_output_file: where the evaluation documents go; None uses all documents for training.
        eval_share: share of the documents for evaluation, chosen by a hash of the name and the seed.
        num_workers: processes; None takes every available processor.
        file_partition: number of files for the training rows.
        overwrite: replace existing outputs.
        progress: show a progress bar on stderr.
        resume: go on from what an interrupted run with the same input and options left.
        shard_id: which part of the documents to take: by a hash of the name.
        num_shards: parts, one for each machine; together they are complete and nothing is in two.

    Returns:
        Counts of rows, tokens, documents and what was left out.

    Raises:
        DataError: an option is impossible, an output exists or can not be written, or there is less than one row.
    """
    started = time.monotonic()
    plan = InfillingPlan(fim_rate, fim_spm_rate, seed)
    plan.check(tokenizer)
    options = RunOptions(num_workers, overwrite, resume, progress, shard_id, num_shards)
    outputs = [Output(Path(output_file), file_partition)]
    share = 0.0
    if eval_output_file is not None:
        if not 0 < eval_share < 1:
            raise DataError(f"eval_share must be between 0 and 1, found {eval_share}")
        share = eval_share
        outputs.append(Output(Path(eval_output_file)))
    model_file = str(tokenizer.model_file.resolve())
    source_bytes = corpus.source_bytes()
    what = (corpus.files, source_bytes, corpus.text_field, model_file)
    fingerprint = repr(("code", what, seq_length, plan, share, shard_id, num_shards))
    with Job(outputs, COLUMNS, seq_length + 1, integer_type(tokenizer.vocab_size), options, fingerprint) as job:

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
        job.run(tasks, _Encoder, (model_file, plan), consume, source_bytes / num_shards)
        parts = job.finish()
    return Summary(
        files=parts[0].files,
        rows=parts[0].rows,
        tokens=parts[0].tokens,
        documents=parts[0].documents,
        dropped_tokens=parts[0].dropped_tokens,
        seconds=time.monotonic() - started,
        eval=parts[1] if len(parts) > 1 else None,
        left_out=(
            ("duplicate documents", job.counts["duplicates"]),
            ("documents that are no text", job.counts["skipped"]),
        ),
        names=tuple(job.counts.names),
        infilled=job.counts["infilled"],
    )
