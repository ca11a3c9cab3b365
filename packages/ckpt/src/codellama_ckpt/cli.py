"""The command `codellama-ckpt`: convert, shard, merge, inspect, verify.

A user's mistake, a damaged file and a full disk are one line on stderr, exit code 1 or 2.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tqdm import tqdm

from codellama_ckpt import inspection
from codellama_ckpt.checkpoint import TRAINING, Checkpoint
from codellama_ckpt.convert import DTYPES, Job, plan, require_output_file, shard, write_full, write_hugging_face
from codellama_ckpt.distributed import write_distributed
from codellama_ckpt.errors import CheckpointError
from codellama_ckpt.layout import read_layout
from codellama_ckpt.opening import open_checkpoint

_TERMINATED = 128 + signal.SIGTERM
_INTERRUPTED = 128 + signal.SIGINT


class _Parser(argparse.ArgumentParser):
    """argparse prints its usage before an error; here the error is the one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    parser = _Parser(
        prog="codellama-ckpt", description="Convert, shard, merge and check checkpoints of Llama networks."
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser, metavar="COMMAND")

    convert = commands.add_parser("convert", help="one format to another", description=_CONVERT)
    add = convert.add_argument
    add("--input_path", required=True, metavar="IN", help="Hugging Face or Meta directory, or any other checkpoint")
    add("--output_path", required=True, metavar="OUT", help="a .safetensors or .ckpt file; with --reversed a directory")
    add("--dtype", choices=tuple(DTYPES), help="cast floats, rounding to nearest even (default: as they are)")
    add("--reversed", action="store_true", help="write a Hugging Face directory")
    add("--max_shard_size", metavar="SIZE", help="with --reversed: largest file, such as 5GB (default)")
    add("--overwrite", action="store_true", help="with --reversed: replace a directory that is there")
    _add_common(convert)
    convert.set_defaults(run=_convert)

    sharding = commands.add_parser("shard", help="split by a layout file", description=_SHARD)
    add = sharding.add_argument
    add("--input_path", required=True, metavar="FULL", help="a checkpoint of any kind")
    add("--output_path", required=True, metavar="DIR", help="to appear")
    add("--layout", required=True, metavar="LAYOUT.json", help="which rank holds what; codellama-plan writes it")
    add("--format", choices=("sharded", "mindformers"), default="sharded", help="of DIR (default: sharded)")
    add("--overwrite", action="store_true", help="replace a directory that is there")
    _add_common(sharding)
    sharding.set_defaults(run=_shard)

    merge = commands.add_parser("merge", help="shards to one file", description=_MERGE)
    merge.add_argument("--input_path", required=True, metavar="DIR", help="a sharded checkpoint or rank_N directories")
    merge.add_argument("--output_path", required=True, metavar="FULL", help="a .safetensors or .ckpt file")
    _add_common(merge)
    merge.set_defaults(run=_merge)

    inspect = commands.add_parser("inspect", help="what a checkpoint holds", description=_INSPECT)
    inspect.add_argument("path", metavar="PATH", help="a checkpoint of any kind")
    _add_strategy(inspect)
    inspect.set_defaults(run=_inspect)

    verify = commands.add_parser("verify", help="compare with checksums", description=_VERIFY)
    verify.add_argument("path", metavar="PATH", help="a checkpoint of any kind")
    _add_common(verify)
    verify.set_defaults(run=_verify)
    return parser


_CONVERT = """
Convert a checkpoint to one file with MindFormers' names, or with --reversed to a Hugging Face directory. Tensors that
are missing, unknown or misshapen are listed and nothing is written. Output appears whole or not at all.
"""
_SHARD = "Split a checkpoint into one file a rank. Any topology loads the result, not only the layout's."
_MERGE = "Merge a sharded checkpoint, or MindFormers' rank_N directories with their strategy files, into one file."
_INSPECT = "Print names, shapes, types, which rank holds what, and the total size."
_VERIFY = (
    "Read every byte and compare it with the checkpoint's checksums; names the file and the tensor that is damaged."
)


def _add_common(parser: argparse.ArgumentParser) -> None:
    _add_strategy(parser)
    parser.add_argument("--no_progress", action="store_true", help="no progress bar")


def _add_strategy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--strategy",
        metavar="PATH",
        help="of rank_N directories: where the ckpt_strategy_rank_N.ckpt are, or a merged one",
    )


def _convert(arguments: argparse.Namespace) -> None:
    if not arguments.reversed:
        for flag in ("max_shard_size", "overwrite"):
            if getattr(arguments, flag):
                raise CheckpointError(f"--{flag} belongs to --reversed")
        require_output_file(Path(arguments.output_path))
    job = plan(_opened(arguments), arguments.dtype)
    with _bar(job.size, "converting", arguments) as progress:
        if arguments.reversed:
            size = arguments.max_shard_size or "5GB"
            write_hugging_face(
                job, arguments.output_path, max_shard_size=size, overwrite=arguments.overwrite, progress=progress
            )
        else:
            write_full(job, arguments.output_path, progress)
    _report(job, arguments.output_path)


def _shard(arguments: argparse.Namespace) -> None:
    layout = read_layout(arguments.layout)
    job = plan(_opened(arguments))
    with _bar(job.size, "sharding", arguments) as progress:
        if arguments.format == "mindformers":
            write_distributed(
                job.checkpoint, Path(arguments.output_path), layout, overwrite=arguments.overwrite, progress=progress
            )
        else:
            shard(job, arguments.output_path, layout, overwrite=arguments.overwrite, progress=progress)
    _report(job, arguments.output_path)


def _merge(arguments: argparse.Namespace) -> None:
    require_output_file(Path(arguments.output_path))
    checkpoint = _opened(arguments)
    if checkpoint.kind not in ("sharded", "distributed"):
        kind = checkpoint.kind.replace("_", " ")
        raise CheckpointError(f"{arguments.input_path} is no sharded checkpoint but a {kind} one; take convert")
    job = plan(checkpoint)
    with _bar(job.size, "merging", arguments) as progress:
        write_full(job, arguments.output_path, progress)
    _report(job, arguments.output_path)


def _inspect(arguments: argparse.Namespace) -> None:
    checkpoint = open_checkpoint(arguments.path, strategy=arguments.strategy)
    for line in inspection.render(checkpoint):
        print(line)


def _verify(arguments: argparse.Namespace) -> None:
    checkpoint = open_checkpoint(arguments.path, strategy=arguments.strategy)
    names = (*checkpoint.names(), *checkpoint.training_names())
    with _bar(sum(map(checkpoint.size, names)), "verifying", arguments) as progress:
        line = inspection.verify(checkpoint, progress)
    print(line)


def _opened(arguments: argparse.Namespace) -> Checkpoint:
    return open_checkpoint(arguments.input_path, strategy=arguments.strategy)


def _report(job: Job, output: str) -> None:
    left = [name for name in job.dropped if not name.startswith(TRAINING)]
    if len(left) < len(job.dropped):
        left.append(f"the training state ({len(job.dropped) - len(left):,} arrays)")
    if left:
        print(f"no parameters, not taken over: {', '.join(left)}")
    print(f"{output}: {len(job.names):,} tensors, {inspection.human_size(sum(map(job.bytes_of, job.names)))}")


@contextmanager
def _bar(total: int, doing: str, arguments: argparse.Namespace) -> Iterator[Callable[[int], object]]:
    """A bar on a terminal (bytes done, bytes a second, time left); elsewhere stderr is for errors alone."""
    disable = True if arguments.no_progress else None
    with tqdm(total=total, unit="B", unit_scale=True, desc=doing, disable=disable, leave=False) as bar:
        yield bar.update


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(_TERMINATED)  # unwinds like Ctrl-C: nothing half-written stays


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 1 for a mistake in the input, 2 for one in the arguments."""
    parsed = build_parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names may hold what the terminal can not show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        parsed.run(parsed)
    except CheckpointError as error:
        print(f"codellama-ckpt: {error}", file=sys.stderr)
        return 1
    except (OSError, MemoryError) as error:
        if isinstance(error, BrokenPipeError):
            # The reader of our output (`| head`) has gone; there is nobody to complain to.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        print(f"codellama-ckpt: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("codellama-ckpt: interrupted, nothing was written", file=sys.stderr)
        return _INTERRUPTED
    return 0
