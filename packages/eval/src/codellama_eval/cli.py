"""The command `codellama-eval`: prompts, extract, score. A user's mistake is one line on stderr, exit code 1 or 2."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from codellama_eval.errors import EvalError

_TERMINATED = 128 + signal.SIGTERM
_INTERRUPTED = 128 + signal.SIGINT
_BENCHMARKS = "humaneval, infilling-single-line, infilling-multi-line, infilling-random-span, humanevalplus or mbpp"


class _Parser(argparse.ArgumentParser):
    """argparse prints its usage before an error; here the error is the one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    parser = _Parser(prog="codellama-eval", description="HumanEval and its relatives: prompts, extraction, scoring.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser, metavar="COMMAND")

    prompts = commands.add_parser("prompts", help="the benchmark's prompts, for codellama-predict")
    _add_benchmark(prompts)
    add = prompts.add_argument
    add("--output_file", required=True, metavar="O.jsonl", help="rows task_id, prompt, entry_point (infilling: suffix)")
    add(
        "--style", default="base", metavar="base|instruct", help="instruct: messages for predict --chat (default: base)"
    )
    add("--strip", action="store_true", help="prompts without blanks at their ends, as bigcode asks")
    add("--order", default="psm", metavar="psm|spm", help="infilling: prefix or suffix first (default: psm)")
    prompts.set_defaults(run=_prompts)

    extract = commands.add_parser("extract", help="completions out of generated text")
    _add_benchmark(extract)
    add = extract.add_argument
    add("--generations", required=True, metavar="G.jsonl", help="rows task_id, generation")
    add("--output_file", required=True, metavar="samples.jsonl", help="rows task_id, completion, raw")
    add(
        "--stops",
        default="parser",
        metavar="parser|codex|bigcode|evalplus",
        help="where a completion ends: after the function (default), or at a harness's stop strings",
    )
    extract.set_defaults(run=_extract)

    score = commands.add_parser("score", help="run samples in the sandbox, print pass@k")
    _add_benchmark(score)
    add = score.add_argument
    add("samples", metavar="samples.jsonl", help="rows task_id, completion; .gz too")
    add("--k", type=_numbers, default=[1, 10, 100], metavar="1,10,100", help="which pass@k (default: 1,10,100)")
    add("--n_workers", type=int, metavar="N", help="samples at once (default: every available processor)")
    add("--timeout", type=float, metavar="S", help="seconds of processor time a sample (default: 3; humanevalplus: 30)")
    add("--strict", action="store_true", help="programs and tests in separate processes; only literals cross")
    add("--missing", default="error", metavar="error|wrong|skip", help="tasks without samples (default: error)")
    add("--model", metavar="NAME", help="a Code Llama, to print the paper's figures too: codellama_34b")
    add("--report_file", metavar="R.json", help="write the report here too")
    add(
        "--without_layers",
        type=lambda text: text.split(","),
        default=[],
        metavar="user,mount,...",
        help="leave layers of the sandbox out",
    )
    add("--allow_unsandboxed", action="store_true", help="run where nothing keeps samples from writing your files")
    add("--no_progress", action="store_true", help="no progress bar")
    score.set_defaults(run=_score)
    return parser


def _add_benchmark(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--benchmark", default="humaneval", metavar="NAME", help=f"{_BENCHMARKS} (default: humaneval)")
    parser.add_argument("--data_path", metavar="FILE", help="the benchmark's file; HumanEval needs none")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


_numbers.__name__ = "list of numbers"


def _prompts(arguments: argparse.Namespace) -> None:
    from codellama_eval.files import write_rows  # noqa: PLC0415
    from codellama_eval.prompts import make_prompts  # noqa: PLC0415

    rows = make_prompts(
        arguments.benchmark,
        arguments.data_path,
        style=arguments.style,
        strip=arguments.strip,
        order=arguments.order,
    )
    count = write_rows(arguments.output_file, rows)
    print(f"{arguments.output_file}: {count:,} prompts")


def _extract(arguments: argparse.Namespace) -> None:
    from codellama_eval.extraction import extract_file  # noqa: PLC0415

    count = extract_file(
        arguments.generations,
        arguments.output_file,
        benchmark=arguments.benchmark,
        data_path=arguments.data_path,
        stops=arguments.stops,
    )
    print(f"{arguments.output_file}: {count:,} completions")


def _score(arguments: argparse.Namespace) -> None:
    from codellama_eval.files import beginning, write_json  # noqa: PLC0415
    from codellama_eval.sandbox.isolation import LAYERS  # noqa: PLC0415
    from codellama_eval.scoring import RESULTS_SUFFIX, score_file  # noqa: PLC0415

    unknown = [name for name in arguments.without_layers if name not in LAYERS]
    if unknown:
        raise EvalError(f"--without_layers: no layer {unknown[0]!r}; one of {', '.join(LAYERS)}")
    if arguments.report_file is not None:
        beginning(arguments.report_file)
    if not Path(arguments.samples).is_file():
        raise EvalError(f"{arguments.samples}: no such file")
    report = score_file(
        arguments.samples,
        arguments.k,
        benchmark=arguments.benchmark,
        data_path=arguments.data_path,
        n_workers=arguments.n_workers,
        timeout=arguments.timeout,
        strict=arguments.strict,
        missing=arguments.missing,
        model=arguments.model,
        allow_unsandboxed=arguments.allow_unsandboxed,
        without_layers=arguments.without_layers,
        progress=not arguments.no_progress,
    )
    if arguments.report_file is not None:
        write_json(arguments.report_file, report.to_dict())
    *lines, last = report.lines()
    print("\n".join([*lines, f"results: {arguments.samples}{RESULTS_SUFFIX}", last]))


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(_TERMINATED)  # unwinds like Ctrl-C, so that the sandbox ends what it runs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 1 for a mistake in the input, 2 for one in the arguments."""
    parsed = build_parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names and texts may hold what the terminal can not show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        parsed.run(parsed)
    except EvalError as error:
        print(f"codellama-eval: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("codellama-eval: interrupted; nothing was written", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone; there is nobody to complain to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0
