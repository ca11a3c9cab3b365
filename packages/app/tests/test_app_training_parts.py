"""Parts of the training: loss scale, schedule, metrics of a resumed run, plan, differences of configurations."""

from __future__ import annotations

import json

import numpy as np
import pytest
from codellama_app.command import UserError
from codellama_app.config import ScheduleConfig, load_config
from codellama_app.loss_scale import LossScale
from codellama_app.metrics import Metrics, read_metrics
from codellama_app.schedule import learning_rate
from codellama_model.config import ConfigError

HALF_TOLERANCE = 2e-2  # relative: float16 has 11 bits, and four updates of a rate of 0.1 carry its rounding on
OVERFLOWS = [0, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]


def test_the_loss_scale_moves_as_that_of_mindspore():
    """`nn.DynamicLossScaleUpdateCell` is the oracle; factor 2, and a window short enough to see it move."""
    import mindspore as ms
    from mindspore import nn

    ms.set_context(mode=ms.GRAPH_MODE)
    oracle = nn.DynamicLossScaleUpdateCell(loss_scale_value=1024, scale_factor=2, scale_window=3)
    current = ms.Parameter(ms.Tensor(1024.0, ms.float32), name="scale")
    ours = LossScale(1024.0, factor=2.0, window=3)
    for overflow in OVERFLOWS:
        oracle(current, ms.Tensor(bool(overflow)))
        ours.update(bool(overflow))
        assert ours.value == float(current.asnumpy())
    assert ours.skipped == sum(OVERFLOWS)


def test_the_loss_scale_stays_where_it_is_not_dynamic_and_above_one_where_it_is():
    fixed = LossScale()
    fixed.update(overflow=True)
    assert (fixed.value, fixed.skipped, fixed.dynamic) == (1.0, 0, False)
    low = LossScale(2.0, window=10)
    for _ in range(5):
        low.update(overflow=True)
    assert low.value == 1.0


def test_warm_up_by_steps_takes_the_place_of_the_ratio():
    schedule = ScheduleConfig(type="linear", warmup_steps=4, warmup_ratio=0.5)
    rates = [learning_rate(step, 10, 1.0, schedule) for step in range(1, 11)]
    np.testing.assert_allclose(rates, [0.25, 0.5, 0.75, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0])


@pytest.mark.parametrize("tail", ["", '{"step": 4, "lo', '{"step": 4}', "not json\n"])
def test_metrics_of_a_resumed_run_lose_what_comes_again(tmp_path, tail):
    with Metrics(tmp_path) as metrics:
        for step in range(1, 4):
            metrics.step({"step": step, "loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(tail)
    with Metrics(tmp_path, after_step=2) as metrics:
        metrics.step({"step": 3, "loss": 2.0})
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_metrics_wait_for_room_on_a_full_disk(tmp_path, monkeypatch, capsys):
    import errno
    import os

    write, room = os.write, [10, 0]

    def full(file, content):
        if file <= 2 or not room:
            return write(file, content)
        size = room.pop(0)
        if not size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, content[:size])

    with Metrics(tmp_path) as metrics:
        monkeypatch.setattr(os, "write", full)
        for step in range(1, 4):
            metrics.step({"step": step, "loss": 0.5})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    assert capsys.readouterr().err.count("No space left") == 1


def test_tensorboard_gets_what_metrics_get(tmp_path):
    pytest.importorskip("tensorboardX")
    with Metrics(tmp_path, tensorboard=True) as metrics:
        metrics.step({"step": 1, "loss": 2.5})
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in file.read_bytes()


def overrides(rows, directory, **more):
    values = {
        "dataset.train_dataset_dir": rows,
        "dataset.seq_length": 12,
        "dataset.batch_size": 4,
        "output_dir": directory,
        **more,
    }
    return load_config("codellama_tiny", [(key, str(value)) for key, value in values.items()])


def test_a_plan_says_what_will_be_done_and_reads_one_batch(train_rows, tmp_path):
    from codellama_app.run import Plan

    config = overrides(train_rows, tmp_path / "run", max_steps=50, epochs=2, gradient_accumulation_steps=2)
    plan = Plan.of(config)
    assert plan.max_steps == 10  # 40 rows, 8 a step, twice
    for part in ("5.06 M parameters", "10 of 96 tokens (2 x 4 rows of 12)", "2.00 epochs", plan.digest[:16]):
        assert part in plan.text, plan.text
    assert plan.one_batch() == "one batch: input_ids of 8 x 13 ids, 96 tokens under loss"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"max_steps": None}, ConfigError, "give max_steps or epochs"),
        ({"dataset.seq_length": 13}, UserError, r"rows of 12 \+ 1 ids, .* dataset\.seq_length 13"),
        ({"dataset.batch_size": 41}, UserError, r"40 rows, fewer than one step takes \(41"),
        ({"gradient_accumulation_steps": 11}, UserError, r"fewer than one step takes \(44"),
        ({"eval_steps": 5}, UserError, r"eval_steps 5 needs rows to validate on: give dataset\.eval_dataset_dir"),
    ],
)
def test_a_plan_that_can_not_be_is_refused_before_anything_is_compiled(train_rows, tmp_path, more, error, message):
    from codellama_app.run import Plan

    with pytest.raises(error, match=message):
        Plan.of(overrides(train_rows, tmp_path / "run", **more))


def test_sizes_that_are_not_those_of_the_checkpoint_are_refused_by_name(train_rows, tmp_path):
    from codellama_app.run import Plan
    from codellama_ckpt import save_sharded
    from codellama_model import preset

    sizes = preset("codellama_tiny").to_hugging_face() | {"rope_parameters": {"rope_theta": 1e4}, "rope_theta": 1e4}
    save_sharded({"x": np.zeros(1, np.float32)}, tmp_path / "base", metadata={"config": json.dumps(sizes)})
    config = overrides(train_rows, tmp_path / "run", run_mode="finetune", load_checkpoint=tmp_path / "base")
    with pytest.raises(ConfigError, match=r"model\.theta 1000000\.0: .* is a network with 10000\.0"):
        Plan.of(config)


def test_what_changed_since_the_checkpoint_is_shown_and_refused(train_rows, write_rows, tmp_path, capsys):
    from codellama_app.resume import Found, check_unchanged, run_state
    from codellama_app.run_progress import Progress
    from codellama_ckpt import open_checkpoint, save_sharded

    before = overrides(train_rows, tmp_path / "run", max_steps=50)
    state = run_state(before, "digest", Progress())
    save_sharded({"x": np.zeros(1, np.float32)}, tmp_path / "step_000001", state=state)
    found = Found(open_checkpoint(tmp_path / "step_000001"), Progress())

    harmless = {"save_steps": 7, "keep_last": 2, "dataset.eval_rows": 9, "resume_training": True}
    check_unchanged(found, overrides(train_rows, tmp_path / "moved", max_steps=50, **harmless), "digest")
    assert capsys.readouterr().out == ""
    changed = {"max_steps": 60, "optimizer.beta2": 0.99, "model.num_layers": 5}
    with pytest.raises(UserError) as refused:
        check_unchanged(found, overrides(train_rows, tmp_path / "run", **changed), "other")
    shown = capsys.readouterr().out
    for part in (
        "max_steps: 50 then, 60 now",
        "optimizer.beta2: 0.95 then, 0.99 now",
        "model.num_layers: 6 then, 5 now",
        "training rows: digest digest then, other now",
        "--resume_anyway True",
    ):
        assert part in str(refused.value)
        assert part in shown or part.startswith("--")
    check_unchanged(found, overrides(train_rows, tmp_path / "run", **changed, resume_anyway=True), "other")
    assert "max_steps: 50 then, 60 now" in capsys.readouterr().out


def test_a_checkpoint_of_weights_alone_is_not_resumed(tmp_path):
    from codellama_app.resume import find_checkpoint
    from codellama_ckpt import CheckpointError, save_sharded

    assert find_checkpoint(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    assert find_checkpoint(tmp_path) is None
    save_sharded({"x": np.zeros(1, np.float32)}, tmp_path / "checkpoints" / "step_000003")
    with pytest.raises(CheckpointError, match="weights only"):
        find_checkpoint(tmp_path)


def test_the_best_checkpoints_are_among_those_that_were_validated(tmp_path):
    """Step 1 has no validation, step 4 only that of an earlier step: neither is kept for its loss."""
    from codellama_app.retention import PROGRESS, prune_checkpoints
    from codellama_app.run_progress import Progress
    from codellama_ckpt import save_sharded, step_directory

    for step, (loss, of) in {1: (None, 0), 2: (3.0, 2), 3: (2.0, 3), 4: (1.0, 2), 5: (4.0, 5)}.items():
        state = {PROGRESS: Progress(step=step, eval_loss=loss, eval_step=of).to_json()}
        save_sharded({"x": np.zeros(1, np.float32)}, step_directory(tmp_path, step), state=state)
    assert prune_checkpoints(tmp_path, None, 2) == ()
    removed = prune_checkpoints(tmp_path, keep_last=1, keep_best=1)
    assert [path.name for path in removed] == ["step_000001", "step_000002", "step_000004"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000003", "step_000005"]


def test_what_the_device_lacks_is_said():
    from codellama_app.precision import resolve_compute_dtype

    assert resolve_compute_dtype("bfloat16", "Ascend") == ("bfloat16", "compute: bfloat16 on Ascend")
    used, said = resolve_compute_dtype("bfloat16", "CPU")
    assert used == "float32"
    assert "float32 on CPU" in said and "bfloat16 was asked" in said


def test_the_z_loss_adds_the_squared_logarithm_of_the_denominator():
    import mindspore as ms
    from codellama_app.network_setup import training_loss
    from codellama_model import LlamaConfig, LlamaForCausalLM

    ms.set_context(mode=ms.GRAPH_MODE)
    sizes = {"vocab_size": 23, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 8}
    network = LlamaForCausalLM(LlamaConfig(**sizes, max_position_embedding=16))
    head = network.head_weight()
    head.set_data(head * 30)  # a fresh network's logits are near 0, and so all denominators alike
    ids = np.random.default_rng(0).integers(0, 23, (2, 9)).astype(np.int32)
    labels = ids.copy()
    labels[0, :4] = -100
    arguments = (ms.Tensor(ids), ms.Tensor(labels), None)
    (plain, tokens), (with_z, _) = (training_loss(network, weight)(*arguments) for weight in (0.0, 0.01))
    logits = network(ms.Tensor(ids[:, :-1])).asnumpy().astype(np.float64)
    squares = np.log(np.exp(logits).sum(-1)) ** 2
    expected = 0.01 * squares[labels[:, 1:].reshape(-1) >= 0].sum()
    assert int(tokens.asnumpy()) == 13
    assert float(with_z.asnumpy() - plain.asnumpy()) == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_products_in_float16_train_nearly_alike():
    """On the CPU they are slow, but they are the products that a float16 run has on Ascend."""
    import mindspore as ms
    from codellama_app.precision import compute_in
    from codellama_app.training_step import TrainingStep
    from codellama_model import AdamW, CausalLMLoss, LlamaConfig, LlamaForCausalLM

    ms.set_context(mode=ms.GRAPH_MODE)
    sizes = {"vocab_size": 23, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 8}
    ids = np.random.default_rng(0).integers(0, 23, (2, 9)).astype(np.int32)
    found = {}
    for dtype in ("float32", "float16"):
        ms.set_seed(1)
        network = LlamaForCausalLM(LlamaConfig(**sizes, max_position_embedding=16))
        compute_in(network, dtype)
        step = TrainingStep(CausalLMLoss(network), AdamW(network.trainable_params()), 1.0, skip_overflows=True)
        found[dtype] = [step(0.1, 1024.0, {"input_ids": ids}) for _ in range(4)]
    for exact, narrow in zip(*found.values(), strict=True):
        assert narrow.loss == pytest.approx(exact.loss, rel=HALF_TOLERANCE)
        assert narrow.grad_norm == pytest.approx(exact.grad_norm, rel=HALF_TOLERANCE)
    assert found["float16"][-1].loss != found["float32"][-1].loss
