"""One training run from its plan to its summary."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from codellama_app import run_directory
from codellama_app.checkpoint_sizes import TOKENIZER, check_sizes
from codellama_app.command import UserError
from codellama_app.config import RunConfig
from codellama_app.loss_scale import LossScale
from codellama_app.ranks import Ranks
from codellama_app.resume import Found, check_unchanged, find_checkpoint, flat
from codellama_app.retention import remove_leftovers
from codellama_app.run_data import RunData, find_data
from codellama_app.run_plan import describe_batch, describe_plan, flops_per_token, total_steps
from codellama_app.run_progress import Progress
from codellama_app.run_summary import versions, write_summary
from codellama_app.training_rows import TrainingRows


@dataclass(frozen=True)
class Plan:
    """A run with everything resolved and checked that can be without computing.

    Attributes:
        config: the run's.
        data: where its rows are.
        rows: stand at the first batch to come.
        digest: of the rows.
        max_steps: of the whole run.
        found: the checkpoint to go on from.
        text: all that in a few lines.
    """

    config: RunConfig
    data: RunData
    rows: TrainingRows
    digest: str
    max_steps: int
    found: Found | None
    text: str

    @classmethod
    def of(cls, config: RunConfig, processes: int = 1) -> Plan:
        """Resolves a configuration for a job of so many processes. Loads no MindSpore.

        Raises:
            UserError, ConfigError, DataError, TokenizerError, CheckpointError: something is missing or contradictory.
        """
        config.check_job(processes)
        check_sizes(config)
        found = find_checkpoint(Path(config.output_dir)) if config.resume_training else None
        data = find_data(config)
        vocab_size, length = config.llama().vocab_size, config.dataset.seq_length
        first = found.progress.step if found else 0
        rows = TrainingRows(
            data.train_rows, config.step_rows, length, seed=config.seed, vocab_size=vocab_size, start_step=first
        )
        if data.eval_rows is not None:  # refused now rather than at the first validation
            TrainingRows(data.eval_rows, config.dataset.batch_size, length, seed=0, vocab_size=vocab_size)
        elif config.eval_steps is not None:
            raise UserError(f"eval_steps {config.eval_steps} needs rows to validate on: give dataset.eval_dataset_dir")
        digest = rows.digest()
        if found is not None:
            check_unchanged(found, config, digest)
        elif config.resume_training:
            print(f"{config.output_dir} holds no checkpoint yet: from the start", flush=True)
        text = describe_plan(config, rows, data.train_rows, digest, first)
        return cls(config, data, rows, digest, total_steps(config, rows.steps_per_epoch), found, text)

    def one_batch(self) -> str:
        """Reads the first batch and describes it."""
        return describe_batch(next(self.rows))


@dataclass(frozen=True)
class Finished:
    """Losses at the end by what they are of, and the names of what was written."""

    levels: dict[str, float]
    files: tuple[str, ...]


def execute(plan: Plan, ranks: Ranks) -> Finished:
    """Trains as planned, as one of the job's processes; rank 0 alone writes what is not a checkpoint.

    Raises:
        UserError, DataError, CheckpointError: the run could not go on, see the message.
        InterruptedRunError: Ctrl-C or SIGTERM; the checkpoint is saved.
    """
    import mindspore as ms  # noqa: PLC0415

    from codellama_app.adapters import LORA_KEY, AdapterConfig  # noqa: PLC0415
    from codellama_app.codellama import config_metadata  # noqa: PLC0415
    from codellama_app.held_out import bigram_loss  # noqa: PLC0415
    from codellama_app.metrics import draw_loss  # noqa: PLC0415
    from codellama_app.network_setup import trainee  # noqa: PLC0415
    from codellama_app.peak import matmul_flops_per_second  # noqa: PLC0415
    from codellama_app.precision import resolve_compute_dtype  # noqa: PLC0415
    from codellama_app.trainer import Run, train_steps  # noqa: PLC0415

    config, data, found = plan.config, plan.data, plan.found
    llama, directory = config.llama(), Path(config.output_dir)
    (peak,) = ranks.sums([matmul_flops_per_second()])
    compute_dtype, said = resolve_compute_dtype(config.compute_dtype, ms.get_context("device_target"))
    print(
        f"{said}; {len(os.sched_getaffinity(0))} cores, {peak / 1e9:.0f} GFLOP/s in float32 matrix products", flush=True
    )
    progress = found.progress if found else Progress(loss_scale=_loss_scale(config, compute_dtype))
    trained = trainee(config, ranks, found is not None, compute_dtype, progress.loss_scale.dynamic)
    if found is not None:
        trained.state.restore(found.checkpoint)
    ranks.barrier()  # all have read what an earlier run left
    if ranks.first:
        _set_up(plan, directory)

    metadata = config_metadata(llama)
    if config.lora.rank is not None:
        lora = config.lora
        base = str(Path(config.load_checkpoint or "").resolve())
        metadata[LORA_KEY] = AdapterConfig(config.lora.rank, lora.alpha, lora.targets, base).to_json()
    eval_rows = data.eval_rows
    validate = None if eval_rows is None else lambda: trained.held_out(eval_rows)
    summary: dict[str, object] = {}
    if validate is not None and config.run_mode == "finetune" and found is None:
        summary["held_out_loss_before"] = before = validate()
        print(f"held-out loss before the first step: {before:.3f}", flush=True)
    print("compiling the training step, then training:", flush=True)
    result = train_steps(
        config,
        Run(
            directory=directory,
            rows=plan.rows,
            step=trained.step,
            state=trained.state,
            metadata=metadata,
            data_digest=plan.digest,
            max_steps=plan.max_steps,
            flops_per_token=flops_per_token(config),
            peak_flops=peak,
            validate=validate,
            ranks=ranks,
        ),
        progress,
        found.checkpoint.path if found else None,
    )
    print(
        f"trained on {progress.tokens:,} tokens in {progress.seconds:.0f} s"
        f" ({result.compile_seconds:.0f} s of it compiling); last loss {_shown(result.loss)}",
        flush=True,
    )
    levels: dict[str, float] = {}
    if validate is not None and eval_rows is not None:
        levels["held-out loss"] = validate()
        if ranks.first and config.dataset.train_dataset_dir is None:
            levels["bigram model"] = bigram_loss(data.train_rows, eval_rows, config)
    if not ranks.first:
        return Finished(levels, ())
    picture = draw_loss(directory, levels)
    summary |= {
        "steps": progress.step,
        "tokens": progress.tokens,
        "seconds": progress.seconds,
        "loss": result.loss,
        "skipped_steps": progress.loss_scale.skipped,
        **{label.replace(" ", "_").replace("-", "_"): level for label, level in levels.items()},
        "data_digest": plan.digest,
        "versions": versions(),
        "configuration": flat(config),
    }
    write_summary(directory / run_directory.SUMMARY, summary)
    return Finished(levels, ("checkpoints", picture.name, "metrics.jsonl", "config.yaml", "summary.json"))


def _set_up(plan: Plan, directory: Path) -> None:
    """The run's directory, but for what the run itself will write."""
    if plan.found is None:
        run_directory.start(directory)
    else:
        remove_leftovers(plan.found.checkpoint.path.parent)
    (directory / run_directory.CONFIG).write_text(plan.config.to_yaml(), encoding="utf-8")
    if plan.data.model_file is not None and not (directory / TOKENIZER).exists():
        shutil.copyfile(plan.data.model_file, directory / TOKENIZER)


def _loss_scale(config: RunConfig, compute_dtype: str) -> LossScale:
    """Dynamic where small gradients could become 0, which is in float16 alone."""
    scaling = config.loss_scale
    return LossScale(scaling.initial, scaling.factor, scaling.window) if compute_dtype == "float16" else LossScale()


def _shown(loss: float | None) -> str:
    return "not known, as nothing was left to do" if loss is None else f"{loss:.3f}"
