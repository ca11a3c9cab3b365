"""The loop: exact resume, what stops a run, what does not, and what it leaves behind."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from codellama_app.command import InterruptedRunError, UserError
from codellama_app.config import DatasetConfig, OptimizerConfig, RunConfig
from codellama_app.loss_scale import LossScale
from codellama_app.metrics import read_metrics
from codellama_app.run_progress import Progress
from codellama_ckpt import CheckpointError
from codellama_data import DataError

BATCH, STEPS = 4, 12
PATIENCE = 60  # seconds; more means that it hangs
EXACT = ("step", "epoch", "loss", "lr", "grad_norm", "tokens", "loss_scale", "skipped", "eval_loss")


def configuration(directory: Path, **keys: object) -> RunConfig:
    values = {
        "model": {"preset": "codellama_tiny"},  # only the loop's keys matter here
        "output_dir": str(directory),
        "max_steps": STEPS,
        "save_steps": 5,
        "dataset": DatasetConfig(seq_length=12, batch_size=BATCH),
        "optimizer": OptimizerConfig(learning_rate=1e-2),
    }
    return RunConfig(**(values | keys))  # type: ignore[arg-type]


def train(
    kit,
    rows: Path,
    directory: Path,
    progress: Progress | None = None,
    step: Callable | None = None,
    vocab_size: int = 61,
    max_steps: int = STEPS,
    **keys,
):
    from codellama_app.trainer import Run, train_steps
    from codellama_app.training_rows import TrainingRows

    directory.mkdir(exist_ok=True)
    config = configuration(directory, **keys)
    progress = progress or Progress()
    read = TrainingRows(rows, BATCH, 12, seed=3, vocab_size=vocab_size, start_step=progress.step)
    losses = iter(range(100, 0, -1)) if keys.get("keep_best") else None
    run = Run(
        directory=directory,
        rows=read,
        step=step or kit.step,
        state=kit.state,
        metadata={"config": "{}"},
        data_digest=read.digest(),
        max_steps=max_steps,
        flops_per_token=1.0,
        peak_flops=1.0,
        validate=None if losses is None else lambda: abs(float(next(losses)) - 96),  # best at the fifth
    )
    return train_steps(config, run, progress)


def exact(directory: Path) -> list[dict[str, float]]:
    return [{key: row[key] for key in EXACT if key in row} for row in read_metrics(directory)]


class Overflowing:
    """The step, with gradients that overflow at some steps: as float16 would make them."""

    def __init__(self, step, at: set[int], done: int = 0) -> None:
        self.step, self.at, self.done = step, at, done

    def __call__(self, rate, scale, batch):
        self.done += 1
        return self.step(rate, math.inf if self.done in self.at else scale, batch)


def test_a_run_resumed_from_any_checkpoint_repeats_every_bit(kit, train_rows, tmp_path):
    """Data order, moments, loss scale, metrics and weights; the resumed process knows nothing but the checkpoint."""
    from codellama_app.resume import find_checkpoint

    overflows = {2, 7, 8, 11}
    scaling = {"factor": 4.0, "window": 2}
    started = Progress(loss_scale=LossScale(1024.0, **scaling))
    train(kit, train_rows, tmp_path / "calm", started, Overflowing(kit.step, overflows))
    expected = kit.arrays()
    assert [row["skipped"] for row in exact(tmp_path / "calm")] == [0, 1, 1, 1, 1, 1, 2, 3, 3, 3, 4, 4]

    for killed_at in (3, 5, 9):
        kit.reset()
        directory = tmp_path / f"killed_{killed_at}"
        started = Progress(loss_scale=LossScale(1024.0, **scaling))

        def killed(rate, scale, batch, step=Overflowing(kit.step, overflows), last=killed_at):  # noqa: B008
            result = step(rate, scale, batch)
            if step.done > last:
                raise MemoryError("the process is gone")
            return result

        with pytest.raises(MemoryError):
            train(kit, train_rows, directory, started, killed, save_steps=2)
        with (directory / "metrics.jsonl").open("a") as lines:
            lines.write('{"step": 99, "lo')  # a line that the kill cut short
        kit.reset()
        found = find_checkpoint(directory)
        assert found.progress.step == killed_at // 2 * 2
        kit.state.restore(found.checkpoint)
        train(
            kit,
            train_rows,
            directory,
            found.progress,
            Overflowing(kit.step, overflows, found.progress.step),
            save_steps=2,
        )
        assert kit.arrays() == expected
        assert exact(directory) == exact(tmp_path / "calm")


def test_a_damaged_checkpoint_is_not_resumed_from(kit, train_rows, tmp_path):
    from codellama_app.resume import find_checkpoint

    train(kit, train_rows, tmp_path / "run", max_steps=2)
    (shard,) = (tmp_path / "run" / "checkpoints" / "step_000002").glob("*.safetensors")
    damaged = bytearray(shard.read_bytes())
    damaged[-40] ^= 1
    shard.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=shard.name):
        kit.state.restore(find_checkpoint(tmp_path / "run").checkpoint)


def test_an_overflow_changes_nothing_but_the_scale(kit, train_rows, tmp_path):
    before = kit.arrays()
    progress = Progress(loss_scale=LossScale(1024.0, window=100))
    train(kit, train_rows, tmp_path / "run", progress, Overflowing(kit.step, {1, 2}), max_steps=2)
    assert kit.arrays() == before
    assert (progress.loss_scale.value, progress.loss_scale.skipped) == (256.0, 2)


def test_a_loss_that_is_not_finite_stops_with_step_rows_and_norm_and_keeps_checkpoints(kit, train_rows, tmp_path):
    from codellama_app.training_rows import TrainingRows

    directory = tmp_path / "run"
    with pytest.raises(UserError) as stopped:
        train(kit, train_rows, directory, step=Overflowing(kit.step, {7}))
    rows = TrainingRows(train_rows, BATCH, 12, seed=3, vocab_size=61)
    numbers = [number for _, number in rows.places(6)]
    assert len(set(numbers)) == BATCH
    for part in ("step 7", "gradient norm", ", ".join(f"train.mindrecord:{number}" for number in numbers)):
        assert part in str(stopped.value)
    assert [path.name for path in (directory / "checkpoints").iterdir()] == ["step_000005"]
    assert len(read_metrics(directory)) == 6


def test_the_named_rows_are_those_that_were_trained_on(train_rows):
    from codellama_app.training_rows import TrainingRows
    from codellama_data import open_rows

    rows = TrainingRows(train_rows, BATCH, 12, seed=3, vocab_size=61)
    whole = open_rows(train_rows)
    for step in range(2 * rows.steps_per_epoch):
        batch = next(rows)["input_ids"]
        numbers = [number for _, number in rows.places(step)]
        np.testing.assert_array_equal(batch, whole.read(numbers)["input_ids"])


def test_a_row_of_impossible_ids_is_named_and_the_state_before_it_is_saved(kit, write_rows, tmp_path):
    ids = np.full((BATCH * 3, 13), 5, np.int32)
    ids[6, 4] = 61
    rows = write_rows(tmp_path / "odd.mindrecord", input_ids=ids)
    with pytest.raises(
        DataError, match=r"step \d: .*odd\.mindrecord: row 6 holds id 61, .*model\.vocab_size"
    ) as stopped:
        train(kit, rows, tmp_path / "run")
    saved = str(stopped.value).rsplit(" in ", 1)[1].rstrip(")")
    assert (Path(saved) / "COMPLETE").is_file()


def test_a_full_disk_is_said_loudly_and_the_run_goes_on(kit, train_rows, tmp_path, monkeypatch, capsys):
    from codellama_app import saving

    whole, calls = saving.save_sharded, []

    def full(tree, path, **options):
        calls.append(path.name)
        if path.name == "step_000010":
            for value in tree.values():
                value.load()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(tree, path, **options)

    monkeypatch.setattr(saving, "save_sharded", full)
    train(kit, train_rows, tmp_path / "run", keep_last=1)
    assert calls == ["step_000005", "step_000010", "step_000012"]
    errors = capsys.readouterr().err
    assert "NOT SAVED" in errors and "No space left" in errors and "step_000005" in errors
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_000012"]


def test_a_last_checkpoint_that_can_not_be_saved_is_an_error_that_names_the_last_good_one(
    kit, train_rows, tmp_path, monkeypatch
):
    from codellama_app import saving

    whole = saving.save_sharded

    def full(tree, path, **options):
        if path.name == "step_000012":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(tree, path, **options)

    monkeypatch.setattr(saving, "save_sharded", full)
    with pytest.raises(UserError, match=r"not saved: .*No space left.*step_000010"):
        train(kit, train_rows, tmp_path / "run")


def test_a_log_on_the_full_disk_does_not_end_the_run(kit, train_rows, tmp_path, monkeypatch):
    """Standard error is /dev/full, where every write fails for want of room, also the one that says so."""
    from codellama_app import saving

    def full(tree, path, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Path("/dev/full").open("w", buffering=1) as log:
        with pytest.raises(OSError, match="No space left"):
            print("a line", file=log, flush=True)
        monkeypatch.setattr(saving, "save_sharded", full)
        monkeypatch.setattr(sys, "stderr", log)
        with pytest.raises(UserError, match="last checkpoint was not saved"):
            train(kit, train_rows, tmp_path / "run")
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            log.close()
    assert len(read_metrics(tmp_path / "run")) == STEPS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_says_where(kit, train_rows, tmp_path, number):
    def signalled(rate, scale, batch, done=[]):  # noqa: B006
        done.append(1)
        if len(done) == 4:
            os.kill(os.getpid(), number)
        return kit.step(rate, scale, batch)

    with pytest.raises(InterruptedRunError, match=r"after step 4; checkpoint saved in .*step_000004"):
        train(kit, train_rows, tmp_path / "run", step=signalled)
    assert len(read_metrics(tmp_path / "run")) == 4


def test_the_newest_and_the_best_checkpoints_are_kept(kit, train_rows, tmp_path):
    train(kit, train_rows, tmp_path / "run", save_steps=1, eval_steps=1, keep_last=2, keep_best=1)
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step_000005", "step_000011", "step_000012"]
    assert [row["eval_loss"] for row in read_metrics(tmp_path / "run")][3:6] == [1, 0, 1]


def test_minutes_make_checkpoints_too(kit, train_rows, tmp_path):
    train(kit, train_rows, tmp_path / "run", save_steps=1000, save_minutes=1e-9)
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == STEPS


def test_the_checkpoint_holds_the_arrays_of_its_step_although_training_went_on(kit, train_rows, tmp_path, monkeypatch):
    """The disk is slow here: the next steps run while the checkpoint is being made."""
    from codellama_app import saving
    from codellama_ckpt import open_checkpoint

    held: dict[str, dict[str, bytes]] = {}
    whole = saving.save_sharded

    def slow(tree, path, **options):
        held[path.name] = kit.arrays()
        whole(tree, path, **options)

    monkeypatch.setattr(saving, "save_sharded", slow)
    train(kit, train_rows, tmp_path / "run", save_steps=1)
    assert len(held) == STEPS
    for name, arrays in held.items():
        checkpoint = open_checkpoint(tmp_path / "run" / "checkpoints" / name)
        assert {key: checkpoint.read(key).tobytes() for key in arrays} == arrays


def test_a_step_in_one_graph_computes_beside_a_save_and_updates_after_it(compiled, tmp_path, monkeypatch):
    """The save begins to read only when everything but the update is done: had that not waited, it would be seen."""
    from codellama_app import saving
    from codellama_app.state import TrainingState, arrays_of
    from codellama_app.training_step import TrainingStep
    from codellama_ckpt import open_checkpoint
    from codellama_model import AdamW, CausalLMLoss, LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 23, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 8}
    network = LlamaForCausalLM(LlamaConfig(**sizes, max_position_embedding=16))
    optimizer = AdamW(network.trainable_params())
    step, state = TrainingStep(CausalLMLoss(network), optimizer, 1.0), TrainingState(arrays_of(optimizer))
    batch = {"input_ids": np.random.default_rng(0).integers(0, 23, (2, 9)).astype(np.int32)}
    step(0.1, 1.0, batch)  # compiles
    before = {name: value.load().tobytes() for name, value in state.tree().items()}

    saver, update_is_next, order = saving.BackgroundSaver(), threading.Event(), []
    whole = saving.save_sharded

    def late(tree, path, **options):
        assert update_is_next.wait(PATIENCE)
        order.append("reads")
        whole(tree, path, **options)

    def wait():
        order.append("computed")
        update_is_next.set()
        saver.wait_until_read()
        order.append("updates")

    monkeypatch.setattr(saving, "save_sharded", late)
    step.before_update = wait
    saver.save(tmp_path / "checkpoints" / "step_000001", state.tree(), metadata={}, state={})
    step(0.1, 1.0, batch)
    saver.wait()
    assert order == ["computed", "reads", "updates"]
    checkpoint = open_checkpoint(tmp_path / "checkpoints" / "step_000001")
    assert {name: checkpoint.read(name).tobytes() for name in before} == before
    after = {name: value.load().tobytes() for name, value in state.tree().items()}
    assert all(after[name] != before[name] for name in before)


def test_metrics_are_json_even_where_a_number_is_not(tmp_path):
    from codellama_app.metrics import Metrics

    with Metrics(tmp_path) as metrics:
        metrics.step({"step": 1, "loss": math.nan, "grad_norm": math.inf})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail) == {"step": 1, "loss": None, "grad_norm": None}
