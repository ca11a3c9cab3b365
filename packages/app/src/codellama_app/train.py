"""`codellama-train`: from a configuration to a trained, saved, measured network."""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from codellama_parallel.launch import Launch, launched

from codellama_app.command import InterruptedRunError, Parser, UserError, run
from codellama_app.config import RunConfig, config_names, load_config
from codellama_app.ranks import add_job_flags, job_of, join, start, started_here

if TYPE_CHECKING:
    from codellama_app.run import Plan

PROGRAM = "codellama-train"
_EXAMPLE = "def read_lines(path):"
# flags that MindFormers' users know, and the key of the configuration that each sets
_FLAGS = {
    "run_mode": "run_mode",
    "train_dataset_dir": "dataset.train_dataset_dir",
    "eval_dataset_dir": "dataset.eval_dataset_dir",
    "load_checkpoint": "load_checkpoint",
    "resume_training": "resume_training",
    "resume_anyway": "resume_anyway",
    "output_dir": "output_dir",
    "max_steps": "max_steps",
    "epochs": "epochs",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "compute_dtype": "compute_dtype",
    "recompute": "recompute",
    "z_loss": "z_loss",
    "save_steps": "save_steps",
    "save_minutes": "save_minutes",
    "keep_last": "keep_last",
    "keep_best": "keep_best",
    "eval_steps": "eval_steps",
    "tensorboard": "tensorboard",
    "seed": "seed",
}
_HELP = {
    "run_mode": "train: from random weights; finetune: from --load_checkpoint",
    "train_dataset_dir": "MindRecord file to train on; without it, rows are made of dataset.corpus",
    "eval_dataset_dir": "MindRecord file for the held-out loss",
    "load_checkpoint": "Hugging Face directory, run directory, sharded or full checkpoint",
    "resume_training": "True: go on from the newest checkpoint in --output_dir",
    "resume_anyway": "True: although the configuration differs from the checkpoint's",
    "output_dir": "directory of the run",
    "max_steps": "optimizer steps",
    "epochs": "passes over the data; the run ends with this or --max_steps",
    "gradient_accumulation_steps": "micro-batches a step",
    "compute_dtype": "float32, float16 or bfloat16, where the device has it",
    "recompute": "True: less memory, more time",
    "z_loss": "weight of the z-loss",
    "save_steps": "a checkpoint every so many steps",
    "save_minutes": "and every so many minutes",
    "keep_last": "newest checkpoints to keep; all by default",
    "keep_best": "checkpoints of the lowest validation loss to keep besides",
    "eval_steps": "a validation every so many steps",
    "tensorboard": "True: write TensorBoard's files too",
    "seed": "of weights and data order",
}


def main() -> NoReturn:
    """The console script."""
    run(PROGRAM, _main)


def _main(arguments: Sequence[str]) -> None:
    parser = Parser(
        prog=PROGRAM,
        description="Train a Code Llama. Any key of the configuration can be set: --optimizer.learning_rate 1e-4",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", required=True, metavar="NAME|FILE", help=f"one of {', '.join(config_names())}, or a file"
    )
    for flag in _FLAGS:
        parser.add_argument(f"--{flag}", help=_HELP[flag], metavar=flag.rsplit("_", 1)[-1].upper())
    add_job_flags(parser)
    parser.add_argument("--dry_run", action="store_true", help="print the plan, read one batch, stop")
    known, overrides = parser.parse_with_overrides(arguments)
    given = [(key, getattr(known, flag)) for flag, key in _FLAGS.items() if getattr(known, flag) is not None]
    config = load_config(known.config, given + overrides)
    job = job_of(known, Path(config.output_dir) / "log")
    if job is not None and not launched():
        _launch(config, job, arguments, known.dry_run)
    else:
        train(config, known.config, dry_run=known.dry_run)


def _launch(config: RunConfig, job: Launch, arguments: Sequence[str], dry_run: bool) -> None:
    """Starts the ranks, once the plan has been found good."""
    from codellama_app.run import Plan  # noqa: PLC0415

    plan = Plan.of(config, job.worker_num)
    _show(plan, dry_run)
    if not dry_run:
        start(job, "codellama_app.train", arguments)


def train(config: RunConfig, name: str, dry_run: bool = False) -> None:
    """Runs a training, or one rank's part of it, and prints what it does; all that it makes is in `config.output_dir`.

    Raises:
        UserError, ConfigError, DataError, TokenizerError, CheckpointError: see the message.
        InterruptedRunError: Ctrl-C or SIGTERM after a step; the checkpoint is saved.
    """
    # NumPy and MindSpore load after the arguments and the configuration have been found good
    from codellama_app.metrics import check_tensorboard  # noqa: PLC0415
    from codellama_app.run import Plan, execute  # noqa: PLC0415

    if config.tensorboard:
        check_tensorboard()
    if dry_run:
        _show(Plan.of(config), dry_run)
        return
    ranks = join()
    quiet = io.StringIO() if started_here() else sys.stdout  # whoever started the ranks has shown the plan
    with contextlib.redirect_stdout(quiet):
        plan = Plan.of(config, ranks.size)
        _show(plan)
    try:
        finished = execute(plan, ranks)
    except InterruptedRunError as error:
        if ranks.first:
            raise
        print(error, flush=True)  # and rank 0 ends with an error, for which msrun stops whoever still runs
        return
    if not ranks.first:
        return
    for label, level in finished.levels.items():
        print(f"{label + ':':15} {level:.3f} nats per token, perplexity {math.exp(level):.1f}", flush=True)
    print(f"saved in {config.output_dir}: {', '.join(finished.files)}")
    if config.lora.rank is None:
        print(f"predict with: {_how_to_predict(config, name, Path(config.output_dir))}")
    else:
        print(f"merge with: codellama-lora merge --adapter_path {config.output_dir} --output_path merged.safetensors")


def _show(plan: Plan, dry_run: bool = False) -> None:
    print(plan.text, flush=True)
    if dry_run:
        print(f"{plan.one_batch()}\nthe configuration as resolved:\n{plan.config.to_yaml().rstrip()}")


def _how_to_predict(config: RunConfig, name: str, directory: Path) -> str:
    inside_hatch = "HATCH_ENV_ACTIVE" in os.environ
    command = "hatch run predict" if inside_hatch else f"codellama-predict --config {name}"
    try:
        default = load_config("codellama_tiny" if inside_hatch else name).output_dir
    except UserError:
        default = ""
    if str(directory) != default:
        command += f" --load_checkpoint {directory}"
    return f'{command} --prompt "{_EXAMPLE}"'


if __name__ == "__main__":
    main()
