"""The command `codellama-data`: alpaca, preprocess, inspect. A user's mistake is one line on stderr, exit code 1 or 2.

What takes long to import stays out of this file's top, so that `--help` and wrong arguments answer at once.
"""

from __future__ import annotations

import argparse
import functools
import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from codellama_data.errors import DataError

if TYPE_CHECKING:
    from codellama_tokenizer import CodeLlamaTokenizer

    from codellama_data.summary import Summary

_TERMINATED = 128 + signal.SIGTERM
_INTERRUPTED = 128 + signal.SIGINT


class _Parser(argparse.ArgumentParser):
    """argparse prints its usage before an error; here the error is the one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    parser = _Parser(prog="codellama-data", description="Corpora to MindRecord files for training Code Llama.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser, metavar="COMMAND")

    alpaca = commands.add_parser("alpaca", help="Alpaca instructions to conversations", description=_ALPACA)
    alpaca.add_argument("--data_path", required=True, metavar="IN.json", help="records of instruction, input, output")
    alpaca.add_argument("--output_path", required=True, metavar="OUT.json", help="conversations; replaced if it exists")
    alpaca.set_defaults(run=_alpaca)

    preprocess = commands.add_parser("preprocess", help="text to MindRecord rows", description=_PREPROCESS)
    add = preprocess.add_argument
    add("--dataset_type", choices=("wiki", "qa", "code"), default="wiki", help="what the input is (default: wiki)")
    add("--input_glob", required=True, metavar="GLOB", help="a file or a glob; code also: a folder, or stdlib")
    add("--model_file", required=True, metavar="tokenizer.model", help="SentencePiece model")
    add("--output_file", required=True, metavar="OUT.mindrecord", help="its folder must exist")
    add("--seq_length", type=int, default=2048, metavar="S", help="rows have S + 1 ids (default: 2048)")
    add("--file_partition", type=int, default=1, metavar="N", help="write OUT0..OUTN-1, consecutive rows (default: 1)")
    add("--num_workers", type=int, metavar="N", help="processes (default: every available processor)")
    add("--overwrite", action="store_true", help="replace existing output")
    add("--resume", action="store_true", help="go on from what an interrupted run left")
    add("--shard_id", type=int, default=0, metavar="I", help="with --num_shards: which part of the documents to take")
    add("--num_shards", type=int, default=1, metavar="N", help="parts, one for each machine (default: 1)")
    add("--ray", action="store_true", help="make all --num_shards parts as Ray tasks, files OUT.IofN")
    add("--no_progress", action="store_true", help="no progress bar")
    code = preprocess.add_argument_group("--dataset_type code")
    add = code.add_argument
    add("--seed", type=int, help="of infilling and the evaluation share (default: 0)")
    add("--fim_rate", type=float, help="share of documents to infill (default: 0.9)")
    add("--fim_spm_rate", type=float, help="share of those in suffix-prefix-middle order (default: 0.5)")
    add("--eval_output_file", metavar="EVAL.mindrecord", help="documents held out for evaluation")
    add("--eval_share", type=float, help="share of documents held out (default: 0.1)")
    add("--text_field", help="field or column of the text in .jsonl and .parquet (default: text)")
    qa = preprocess.add_argument_group("--dataset_type qa")
    add = qa.add_argument
    add("--template", help="vicuna_v1.1 (default) or llama-2, for Instruct models")
    add("--on_overlong", choices=("truncate", "drop", "split", "error"), help="over S + 1 ids (default: truncate)")
    add("--on_empty_answer", choices=("keep", "drop", "error"), help="samples with an empty answer (default: keep)")
    add("--packing", action="store_true", default=None, help="several samples a row, numbered in document_ids")
    preprocess.set_defaults(run=_preprocess)

    inspect = commands.add_parser("inspect", help="rows, lengths, loss share, samples", description=_INSPECT)
    inspect.add_argument("file", metavar="FILE.mindrecord", help="a file, OUT of OUT0..OUTN-1, a glob or a folder")
    inspect.add_argument("--model_file", metavar="tokenizer.model", help="shows decoded rows")
    inspect.add_argument("--samples", type=int, default=1, metavar="N", help="how many (default: 1)")
    inspect.set_defaults(run=_inspect)
    return parser


_ALPACA = "Turn Stanford Alpaca's instruction records into conversations for --dataset_type qa."
_PREPROCESS = """
wiki: WikiText files, cleaned, one stream of ids cut into rows. qa: conversations (JSON array or .jsonl), rows with
labels on the answers. code: source files, .jsonl and .parquet, part of them as fill-in-the-middle. Output appears whole
or not at all.
"""
_INSPECT = "Print rows, lengths and the share of tokens under loss; with --model_file also decoded rows."
_CODE_FLAGS = ("seed", "fim_rate", "fim_spm_rate", "eval_output_file", "eval_share", "text_field")
_QA_FLAGS = ("template", "on_overlong", "on_empty_answer", "packing")


def _given(arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Flags that the user gave: the others keep the defaults of the function they go to."""
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


def _alpaca(arguments: argparse.Namespace) -> None:
    from codellama_data.alpaca import convert_alpaca  # noqa: PLC0415

    count = convert_alpaca(arguments.data_path, arguments.output_path)
    print(f"{arguments.output_path}: {count:,} conversations")


def _preprocess(arguments: argparse.Namespace) -> None:
    kind = arguments.dataset_type
    for other, flags in (("code", _CODE_FLAGS), ("qa", _QA_FLAGS)):
        given = _given(arguments, flags)
        if kind != other and given:
            raise DataError(f"--{next(iter(given))} belongs to --dataset_type {other}, found --dataset_type {kind}")

    from codellama_tokenizer import CodeLlamaTokenizer, TokenizerError  # noqa: PLC0415

    try:
        tokenizer = CodeLlamaTokenizer(arguments.model_file)
        if arguments.ray:
            _run_on_ray(arguments)
        else:
            print(_run(arguments, tokenizer).render())
    except TokenizerError as error:
        raise DataError(str(error)) from None


def _run_on_ray(arguments: argparse.Namespace) -> None:
    from codellama_data.on_ray import run_shards  # noqa: PLC0415
    from codellama_data.pool import available_cpus  # noqa: PLC0415

    workers = arguments.num_workers or max(1, available_cpus() // arguments.num_shards)
    shard = functools.partial(
        _run_shard, argparse.Namespace(**{**vars(arguments), "run": None, "num_workers": workers})
    )
    for number, summary in run_shards(shard, arguments.num_shards, workers):
        print(f"shard {number} of {arguments.num_shards}\n{summary.render()}", flush=True)


def _run_shard(arguments: argparse.Namespace, shard_id: int) -> Summary:
    """One shard, on whatever machine Ray chose."""
    from codellama_tokenizer import CodeLlamaTokenizer  # noqa: PLC0415

    from codellama_data.on_ray import shard_path  # noqa: PLC0415

    changed: dict[str, Any] = {"shard_id": shard_id, "no_progress": True}
    for name in ("output_file", "eval_output_file"):
        if getattr(arguments, name) is not None:
            changed[name] = str(shard_path(Path(getattr(arguments, name)), shard_id, arguments.num_shards))
    return _run(argparse.Namespace(**{**vars(arguments), **changed}), CodeLlamaTokenizer(arguments.model_file))


def _run(arguments: argparse.Namespace, tokenizer: CodeLlamaTokenizer) -> Summary:
    common: dict[str, Any] = {
        "num_workers": arguments.num_workers,
        "file_partition": arguments.file_partition,
        "overwrite": arguments.overwrite,
        "progress": not arguments.no_progress,
        "resume": arguments.resume,
        "shard_id": arguments.shard_id,
        "num_shards": arguments.num_shards,
    }
    if arguments.dataset_type == "wiki":
        from codellama_data.wiki import preprocess_wiki  # noqa: PLC0415

        return preprocess_wiki(
            arguments.input_glob, tokenizer, arguments.output_file, seq_length=arguments.seq_length, **common
        )
    if arguments.dataset_type == "qa":
        from codellama_data.qa import QaOptions, preprocess_qa  # noqa: PLC0415

        qa = QaOptions(arguments.seq_length, **_given(arguments, _QA_FLAGS))
        return preprocess_qa(arguments.input_glob, tokenizer, arguments.output_file, qa, **common)
    from codellama_data.code import preprocess_code  # noqa: PLC0415
    from codellama_data.corpus import find_corpus  # noqa: PLC0415

    options = _given(arguments, _CODE_FLAGS)
    corpus = find_corpus(arguments.input_glob, str(options.pop("text_field", "text")))
    return preprocess_code(
        corpus, tokenizer, arguments.output_file, seq_length=arguments.seq_length, **options, **common
    )


def _inspect(arguments: argparse.Namespace) -> None:
    from codellama_data.inspection import render  # noqa: PLC0415
    from codellama_data.reading import open_rows  # noqa: PLC0415

    rows = open_rows(arguments.file, verify=True)
    tokenizer = None
    if arguments.model_file is not None:
        from codellama_tokenizer import CodeLlamaTokenizer, TokenizerError  # noqa: PLC0415

        try:
            tokenizer = CodeLlamaTokenizer(arguments.model_file)
        except TokenizerError as error:
            raise DataError(str(error)) from None
    for line in render(rows, tokenizer, arguments.samples, sys.stdout.isatty()):
        print(line)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(_TERMINATED)  # unwinds like Ctrl-C: workers end, the work folder stays for --resume


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 1 for a mistake in the input, 2 for one in the arguments."""
    parsed = build_parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names and texts may hold what the terminal can not show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        parsed.run(parsed)
    except DataError as error:
        print(f"codellama-data: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("codellama-data: interrupted, go on with --resume", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone; there is nobody to complain to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0
