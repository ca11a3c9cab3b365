"""The training loop: batches in, metrics and checkpoints out, a progress bar meanwhile.

It knows a step as a function from a batch to a loss and a norm, and the state as trees of arrays (or slices of them).
Every process of a job runs this loop. What only one of them may know (a signal, a damaged row, its clock, the end of
its writing) they tell each other before each step, so that all do the same.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from codellama_data import DataError
from codellama_parallel import StepResult

from codellama_app.command import InterruptedRunError, UserError
from codellama_app.config import RunConfig
from codellama_app.full_disk import printing_goes_on
from codellama_app.interrupts import Interrupts
from codellama_app.loss_scale import SMALLEST
from codellama_app.metrics import Metrics
from codellama_app.progress import ProgressBar
from codellama_app.ranks import Ranks
from codellama_app.resume import run_state
from codellama_app.retention import prune_checkpoints
from codellama_app.run_directory import checkpoint_path
from codellama_app.run_progress import Progress
from codellama_app.saving import BackgroundSaver
from codellama_app.schedule import learning_rate
from codellama_app.state import TrainingState
from codellama_app.training_rows import Batch, TrainingRows
from codellama_app.training_step import Step, WaitingStep


@dataclass(frozen=True)
class Run:
    """What a loop works with, beside its configuration.

    Attributes:
        directory: of the run; exists.
        rows: stand at the first batch to come; all ranks read the same.
        step: trains on a batch.
        state: the arrays that the step changes.
        metadata: text that every checkpoint carries.
        data_digest: of the rows.
        max_steps: optimizer steps of the whole run.
        flops_per_token: of a forward and backward pass.
        peak_flops: FLOP/s that all devices together reach in matrix products, measured.
        validate: the held-out loss as it is now; None where nothing is held out.
        ranks: the processes that train together; rank 0 writes the metrics.
    """

    directory: Path
    rows: TrainingRows
    step: Step
    state: TrainingState
    metadata: Mapping[str, str]
    data_digest: str
    max_steps: int
    flops_per_token: float
    peak_flops: float
    validate: Callable[[], float] | None = None
    ranks: Ranks = field(default_factory=Ranks)


@dataclass(frozen=True)
class Trained:
    """How the loop went: seconds of this process's first step, which compiles the graph; the last step's loss."""

    compile_seconds: float
    loss: float | None


def train_steps(config: RunConfig, run: Run, progress: Progress, last_checkpoint: Path | None = None) -> Trained:
    """Trains from the step after `progress.step` to `run.max_steps`; `progress` moves along.

    Args:
        config: the run's.
        run: what the loop works with.
        progress: how far the run is.
        last_checkpoint: the one that it was resumed from.

    Raises:
        InterruptedRunError: Ctrl-C or SIGTERM; the step was finished and a checkpoint saved.
        UserError: the loss is no longer finite, or the last checkpoint could not be saved.
        DataError: a row is damaged; the state before it is saved.
    """
    saver = BackgroundSaver(last_checkpoint, run.ranks)
    if waits_inside := isinstance(run.step, WaitingStep):
        run.step.before_update = saver.wait_until_read
    compile_seconds, loss = 0.0, None
    saved_at, saved_step = time.monotonic(), progress.step
    with contextlib.ExitStack() as opened:
        opened.enter_context(printing_goes_on())
        opened.callback(saver.join)
        interrupts = opened.enter_context(Interrupts())
        metrics = None
        if run.ranks.first:
            metrics = opened.enter_context(Metrics(run.directory, progress.step, config.tensorboard))
        bar = opened.enter_context(ProgressBar(run.max_steps, progress.step, run.flops_per_token, run.peak_flops))
        while progress.step < run.max_steps:
            start = time.perf_counter()
            batch, fault = _next_batch(run.rows)
            minutes = config.save_minutes
            overdue = minutes is not None and time.monotonic() - saved_at >= minutes * 60
            faulty, interrupted, overdue, writing = run.ranks.any(
                fault is not None, interrupts.requested, overdue, saver.writing
            )
            if not writing:
                saver.wait()
            if faulty:
                where = _save_and_wait(config, run, progress, saver)
                reason = fault or "another rank could not read its rows; its log says why"
                raise DataError(f"step {progress.step + 1}: {reason} (the state before it is saved in {where})")
            if interrupted:
                where = _save_and_wait(config, run, progress, saver)
                raise InterruptedRunError(f"interrupted after step {progress.step}; checkpoint saved in {where}")
            if overdue and progress.step > saved_step:
                _save(config, run, progress, saver)
                saved_at, saved_step = time.monotonic(), progress.step
            rate = learning_rate(progress.step + 1, run.max_steps, config.optimizer.learning_rate, config.lr_schedule)
            scale = progress.loss_scale.value
            if not waits_inside:
                saver.wait_until_read()
            result = run.step(rate, scale, batch)
            if not result.finite and not (progress.loss_scale.dynamic and scale > SMALLEST):
                saver.wait()
                raise UserError(_divergence(run, progress, result))
            _advance(progress, batch, result, time.perf_counter() - start)
            compile_seconds = compile_seconds or time.perf_counter() - start
            line = _metrics(run, bar, progress, batch, result, rate, time.perf_counter() - start)
            if run.validate and config.eval_steps and progress.step % config.eval_steps == 0:
                progress.eval_loss, progress.eval_step = run.validate(), progress.step
                line["eval_loss"] = progress.eval_loss
                bar.write(f"step {progress.step}: validation loss {progress.eval_loss:.3f}")
            if progress.loss_scale.dynamic:
                line |= {"loss_scale": scale, "skipped": progress.loss_scale.skipped}
            if metrics is not None:
                metrics.step(line)
            bar.step(result, rate, line["tokens_per_second"])
            loss = result.loss
            if progress.step % config.save_steps == 0 or progress.step == run.max_steps:
                _save(config, run, progress, saver)
                saved_at, saved_step = time.monotonic(), progress.step
        saver.wait()
    if saver.failure is not None:
        kept = f"the last good checkpoint is {saver.last}" if saver.last else "no checkpoint was saved"
        raise UserError(f"the run ended but its last checkpoint was not saved: {saver.failure}; {kept}")
    return Trained(compile_seconds, loss)


def _next_batch(rows: TrainingRows) -> tuple[Batch, str | None]:
    """The next batch, or none and why."""
    try:
        return next(rows), None
    except DataError as error:
        return {}, str(error)


def _divergence(run: Run, progress: Progress, result: StepResult) -> str:
    rows = ", ".join(f"{file.name}:{row}" for file, row in run.rows.places(progress.step))
    return (
        f"step {progress.step + 1}: loss {result.loss}, gradient norm {result.grad_norm}, batch rows {rows}: the"
        " run has diverged; lower optimizer.learning_rate or look at these rows (earlier checkpoints are kept)"
    )


def _advance(progress: Progress, batch: Batch, result: StepResult, seconds: float) -> None:
    """Takes note of a step."""
    progress.loss_scale.update(overflow=not result.finite)
    progress.step += 1
    progress.tokens += _tokens(batch)
    progress.seconds += seconds


def _metrics(
    run: Run, bar: ProgressBar, progress: Progress, batch: Batch, result: StepResult, rate: float, seconds: float
) -> dict[str, float]:
    speed = _tokens(batch) / seconds
    return {
        "step": progress.step,
        "epoch": progress.step / run.rows.steps_per_epoch,
        "loss": result.loss,
        "lr": rate,
        "grad_norm": result.grad_norm,
        "tokens_per_second": speed,
        "tokens_per_second_per_device": speed / run.ranks.size,
        "mfu": bar.mfu(speed),
        "tokens": progress.tokens,
        "seconds": progress.seconds,
    }


def _tokens(batch: Batch) -> int:
    """Tokens that a batch trains on: one fewer than its ids in every row."""
    rows, length = batch["input_ids"].shape
    return rows * (length - 1)


def _save(config: RunConfig, run: Run, progress: Progress, saver: BackgroundSaver) -> Path:
    path = checkpoint_path(run.directory, progress.step)
    saver.save(
        path,
        run.state.tree(),
        metadata={**run.metadata, "step": str(progress.step)},
        state=run_state(config, run.data_digest, progress),
        slices=run.state.slices(),
        after=lambda: prune_checkpoints(path.parent, config.keep_last, config.keep_best),
    )
    return path


def _save_and_wait(config: RunConfig, run: Run, progress: Progress, saver: BackgroundSaver) -> Path:
    """Saves and returns where; UserError where that failed."""
    path = _save(config, run, progress, saver)
    saver.wait()
    if saver.failure is not None:
        raise UserError(f"the run ends after step {progress.step}, which was not saved: {saver.failure}")
    return path
