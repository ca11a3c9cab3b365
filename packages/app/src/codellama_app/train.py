"""`codellama-train`: from a configuration to a trained, saved, measured network."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from codellama_app.command import Parser, UserError, run
from codellama_app.config import RunConfig, config_names, load_config

PROGRAM = "codellama-train"
_EXAMPLE = "def read_lines(path):"
# flags that MindFormers' users know, and the key of the configuration that each sets
_FLAGS = {
    "run_mode": "run_mode",
    "train_dataset_dir": "dataset.train_dataset_dir",
    "eval_dataset_dir": "dataset.eval_dataset_dir",
    "load_checkpoint": "load_checkpoint",
    "output_dir": "output_dir",
    "max_steps": "max_steps",
    "save_steps": "save_steps",
    "seed": "seed",
}
_HELP = {
    "run_mode": "train: from random weights; finetune: from --load_checkpoint",
    "train_dataset_dir": "MindRecord file to train on; without it, rows are made of dataset.corpus",
    "eval_dataset_dir": "MindRecord file for the held-out loss",
    "load_checkpoint": "Hugging Face directory, run directory, sharded or full checkpoint",
    "output_dir": "directory of the run",
    "max_steps": "optimizer steps",
    "save_steps": "a checkpoint every so many steps",
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
    known, overrides = parser.parse_with_overrides(arguments)
    given = [(key, getattr(known, flag)) for flag, key in _FLAGS.items() if getattr(known, flag) is not None]
    config = load_config(known.config, given + overrides)
    train(config, known.config)


def train(config: RunConfig, name: str) -> None:
    """Runs a training and prints what it does; everything it makes is in `config.output_dir`.

    Raises:
        UserError, ConfigError, DataError, TokenizerError, CheckpointError: see the message.
        InterruptedRunError: Ctrl-C or SIGTERM after a step; the checkpoint is saved.
    """
    # MindSpore takes about a second to load: after the arguments and the configuration have been found good
    from codellama_ckpt import open_checkpoint  # noqa: PLC0415

    from codellama_app import corpus_data, run_directory  # noqa: PLC0415
    from codellama_app.codellama import TOKENIZER  # noqa: PLC0415
    from codellama_app.command import start_mindspore  # noqa: PLC0415
    from codellama_app.held_out import bigram_loss, network_loss  # noqa: PLC0415
    from codellama_app.metrics import draw_loss  # noqa: PLC0415
    from codellama_app.peak import matmul_flops_per_second  # noqa: PLC0415
    from codellama_app.trainer import Trainer  # noqa: PLC0415
    from codellama_app.weights import network_from, random_network  # noqa: PLC0415

    data = config.dataset
    llama = config.llama()
    directory = Path(config.output_dir)
    checkpoint = open_checkpoint(config.load_checkpoint) if config.load_checkpoint else None
    model_file: Path | None = Path(config.tokenizer.model_file) if config.tokenizer.model_file else None
    if data.train_dataset_dir is None:
        made = corpus_data.prepare(config)
        made.tokenizer.check_vocab_size(llama.vocab_size)
        train_rows, eval_rows, model_file = made.train_rows, made.eval_rows, made.tokenizer.model_file
    else:
        train_rows = Path(data.train_dataset_dir)
        eval_rows = Path(data.eval_dataset_dir) if data.eval_dataset_dir else None  # type: ignore[assignment]

    start_mindspore()
    peak = matmul_flops_per_second()
    print(
        f"network: {llama.num_parameters() / 1e6:.1f} M parameters, {llama.num_layers} layers,"
        f" hidden {llama.hidden_size}, {llama.num_heads} heads over {llama.kv_heads} key/value heads\n"
        f"machine: {len(os.sched_getaffinity(0))} cores, {peak / 1e9:.0f} GFLOP/s in float32 matrix products",
        flush=True,
    )
    network = network_from(llama, checkpoint) if checkpoint else random_network(llama, config.seed)
    trainer = Trainer(config, network, train_rows, directory, peak)
    run_directory.start(directory)
    (directory / run_directory.CONFIG).write_text(config.to_yaml(), encoding="utf-8")
    if model_file is not None:
        shutil.copyfile(model_file, directory / TOKENIZER)
    print("compiling the training step, then training:", flush=True)
    result = trainer.run()

    summary = {"steps": config.max_steps, "tokens": result.tokens, "seconds": result.seconds, "loss": result.loss}
    print(
        f"trained on {result.tokens:,} tokens in {result.seconds:.0f} s"
        f" ({result.compile_seconds:.0f} s of it compiling); last loss {result.loss:.3f}",
        flush=True,
    )
    levels: dict[str, float] = {}
    if eval_rows is not None:
        levels["held-out loss"] = network_loss(trainer.loss, eval_rows, config)
    if data.train_dataset_dir is None:
        levels["bigram model"] = bigram_loss(train_rows, eval_rows, config)
    for label, level in levels.items():
        summary[label.replace(" ", "_").replace("-", "_")] = level
        print(f"{label + ':':15} {level:.3f} nats per token, perplexity {math.exp(level):.1f}", flush=True)
    picture = draw_loss(directory, levels)
    (directory / run_directory.SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(f"saved in {directory}: checkpoints, {picture.name}, metrics.jsonl, config.yaml, summary.json")
    print(f"predict with: {_how_to_predict(config, name, directory)}")


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
