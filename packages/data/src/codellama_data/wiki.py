"""`preprocess --dataset_type wiki`: rows equal to those of MindFormers 1.2 (its `tokenize_wiki`).

Each file is cleaned as a whole, split into paragraphs, each paragraph is BOS ... EOS, all are concatenated and cut into
rows of seq_length + 1; the short rest is dropped. Several files follow one another in the order of their names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from codellama_tokenizer import CodeLlamaTokenizer, TokenizerError

from codellama_data.cleaning import clean_blocks, paragraphs
from codellama_data.corpus import file_sizes, find_files
from codellama_data.errors import DataError
from codellama_data.job import Job, RunArguments, RunOptions, chunked
from codellama_data.spool import integer_type
from codellama_data.summary import Summary

if TYPE_CHECKING:
    from typing_extensions import Unpack  # typing has it from Python 3.11 on

COLUMNS = ("input_ids",)
_UNKNOWN = "<unk>"  # what WikiText writes for rare words
_BLOCK_CHARACTERS = 1 << 20


class _Encoder:
    """What a worker does with a chunk of paragraphs: one vector of ids, and how many paragraphs it holds."""

    def __init__(self, model_file: str) -> None:
        self._tokenizer = CodeLlamaTokenizer(model_file)

    def __call__(self, chunk: list[str]) -> tuple[npt.NDArray[np.int32], int]:
        ids: list[int] = []
        for text in chunk:
            ids += encode_paragraph(text, self._tokenizer)
        return np.array(ids, dtype=np.int32), len(chunk)


def encode_paragraph(text: str, tokenizer: CodeLlamaTokenizer) -> list[int]:
    """BOS, the paragraph, EOS. The literal `<unk>` becomes the unknown id and the text on either side is encoded apart.

    Only here: WikiText's `<unk>` IS the unknown word. In every other dataset type such text stays text.
    """
    ids = [tokenizer.bos_id]
    try:
        for index, piece in enumerate(text.split(_UNKNOWN)):
            if index:
                ids.append(tokenizer.unk_id)
            if piece:
                ids += tokenizer.encode(piece, bos=False)
    except TokenizerError as error:
        raise DataError(f"paragraph {text[:40]!r}: {error}") from None
    return [*ids, tokenizer.eos_id]


def preprocess_wiki(
    input_glob: str,
    tokenizer: CodeLlamaTokenizer,
    output_file: str | Path,
    *,
    seq_length: int,
    **run: Unpack[RunArguments],
) -> Summary:
    """Turn WikiText files into MindRecord rows of `seq_length + 1` ids, column `input_ids` (int32).

    Args:
        input_glob: a file or a glob; every match is read.
        tokenizer: encodes the paragraphs.
        output_file: OUT.
        seq_length: S; rows have S + 1 ids.
        **run: see `RunArguments`. A shard takes the paragraphs whose number is `shard_id` modulo `num_shards`.

    Raises:
        DataError: no file, not UTF-8 text, an existing output, or less than one row.
    """
    options = RunOptions(**run)
    files = find_files(input_glob)
    sizes = file_sizes(files)
    model_file = str(tokenizer.model_file.resolve())
    inputs = ("wiki", files, sizes, model_file, seq_length)
    dtype = integer_type(tokenizer.vocab_size)
    with Job([Path(output_file)], COLUMNS, seq_length + 1, dtype, options, inputs) as job:

        def consume(result: tuple[npt.NDArray[np.int32], int]) -> None:
            ids, count = result
            job.spools[0].append(ids)
            job.counts.add("documents", count)
            job.counts.add("tokens", ids.size)

        numbered = enumerate(text for _, path in files for text in read_paragraphs(path))
        tasks = chunked((text, len(text)) for number, text in numbered if options.takes(number))
        job.run(tasks, _Encoder, (model_file,), consume, sum(sizes) / options.num_shards)
        if not job.counts["documents"]:
            raise DataError(f"{input_glob}: holds no paragraph, only headings and empty lines")
        (part,) = job.finish()
    return Summary(part.files, part.rows, part.tokens, part.documents, part.dropped_tokens, job.seconds)


def read_paragraphs(path: Path) -> Iterator[str]:
    """Stream the cleaned paragraphs of one file.

    Raises:
        DataError: the file can not be read or is not UTF-8 text.
    """
    yield from paragraphs(clean_blocks(_blocks(path)))


def _blocks(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as stream:  # universal newlines, as MindFormers reads
            while block := stream.read(_BLOCK_CHARACTERS):
                if "\0" in block:
                    raise DataError(f"{path}: holds NUL bytes, expected UTF-8 text")
                yield block
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason})") from None
    except OSError as error:
        raise DataError(f"{path}: can not be read ({error.strerror})") from error
