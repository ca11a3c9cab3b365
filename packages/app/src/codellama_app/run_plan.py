"""What a run is going to do, in a few lines: printed at its start, and all that `--dry_run` does."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
from codellama_model.config import ConfigError

from codellama_app.adapters import adapter_shapes
from codellama_app.config import RunConfig
from codellama_app.schedule import learning_rate, warmup_steps
from codellama_app.training_rows import Batch, TrainingRows

_GIB = 1 << 30


def total_steps(config: RunConfig, steps_per_epoch: int) -> int:
    """Optimizer steps of the run: `max_steps` or `epochs`, whichever ends first; ConfigError where neither is given."""
    if config.epochs is None:
        if config.max_steps is None:
            raise ConfigError("the run has no end: give max_steps or epochs, a number above 0")
        return config.max_steps
    return min(config.epochs * steps_per_epoch, config.max_steps or sys.maxsize)


def trained_numbers(config: RunConfig) -> int:
    """How many numbers the optimizer updates."""
    if config.lora.rank is None:
        return config.llama().num_parameters()
    return sum(
        math.prod(shape) for shape in adapter_shapes(config.llama(), config.lora.rank, config.lora.targets).values()
    )


def flops_per_token(config: RunConfig) -> float:
    """Of a forward and backward pass; where only adapters train, the weights themselves get no gradient."""
    llama = config.llama()
    whole = llama.flops_per_token(config.dataset.seq_length)
    if config.lora.rank is None:
        return whole
    embedding = 0 if llama.tie_word_embeddings else llama.vocab_size * llama.hidden_size
    return whole - 2 * (llama.num_parameters() - embedding)


def describe_plan(config: RunConfig, rows: TrainingRows, train_rows: Path, digest: str, first_step: int) -> str:
    """The network, the data, the steps, the memory of what trains."""
    llama, data, optimizer = config.llama(), config.dataset, config.optimizer
    steps = total_steps(config, rows.steps_per_epoch)
    strategy = config.strategy
    tokens = config.step_rows * data.seq_length
    trained, weights = trained_numbers(config), llama.num_parameters()
    # float32 throughout: weights, gradients, two moments; sums where micro-batches add up
    arrays = 4 * (weights + trained * (3 + (strategy.micro_batch_num > 1)))
    rates = (learning_rate(step, steps, optimizer.learning_rate, config.lr_schedule) for step in (1, steps))
    start = f"from step {first_step + 1}" if first_step else "from the start"
    every = f"every {config.save_steps} steps" + (
        f" and {config.save_minutes:g} minutes" if config.save_minutes else ""
    )
    processes = (
        f"processes: {strategy.device_num}, data {strategy.data_parallel} x model {strategy.model_parallel} x pipeline"
        f" {strategy.pipeline_stage}; each has {strategy.micro_batch_num} x {data.batch_size} rows a step"
    )
    return "\n".join(
        (
            *([processes] if strategy.device_num > 1 else []),
            f"network: {weights / 1e6:.3g} M parameters, {llama.num_layers} layers, hidden {llama.hidden_size},"
            f" {llama.num_heads} heads over {llama.kv_heads} key/value heads;"
            f" {trained / 1e6:.3g} M train; {arrays / _GIB:.2f} GiB of weights, gradients and moments",
            f"data: {train_rows}: {rows.steps_per_epoch:,} steps an epoch, digest {digest[:16]}",
            f"steps: {steps:,} of {tokens:,} tokens ({config.step_rows // data.batch_size} x {data.batch_size} rows of"
            f" {data.seq_length}), {steps / rows.steps_per_epoch:.2f} epochs, {start}; checkpoints {every}",
            f"rate: {config.lr_schedule.type}, {warmup_steps(config.lr_schedule, steps)} steps of warm-up to"
            f" {optimizer.learning_rate:g}; first {next(rates):.3g}, last {next(rates):.3g}",
        )
    )


def describe_batch(batch: Batch) -> str:
    """One batch: its shape and how much of it is under loss."""
    ids, labels = batch["input_ids"], batch.get("labels", batch["input_ids"])
    counted = int(np.count_nonzero(labels[:, 1:] >= 0))
    return f"one batch: {', '.join(batch)} of {ids.shape[0]} x {ids.shape[1]} ids, {counted:,} tokens under loss"
