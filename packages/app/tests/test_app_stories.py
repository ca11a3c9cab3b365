"""A real trained model goes on training from its weights: whole, with adapters, resumed, merged."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from codellama_app.config import load_config
from codellama_app.metrics import read_metrics

JUMP = 1.15  # how far a loss may rise above the one before it and still be the noise of another batch


@pytest.fixture(scope="module")
def stories() -> Path:
    beside = Path(__file__).parents[3].parent / "shared" / "data"
    folder = Path(os.environ.get("CODELLAMA_TEST_DATA", beside)) / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"no {folder} (set CODELLAMA_TEST_DATA)")
    return folder


@pytest.fixture(scope="module")
def rows(stories, write_rows, tmp_path_factory) -> Path:
    """The model's own greedy text, as transformers wrote it down, in overlapping rows of 65 ids."""
    ids = np.array(json.loads((stories / "greedy.json").read_text())["greedy_ids"], np.int32)
    windows = np.stack([ids[start : start + 65] for start in range(0, len(ids) - 65, 8)])
    return write_rows(tmp_path_factory.mktemp("stories") / "greedy.mindrecord", input_ids=windows)


def finetune(stories: Path, rows: Path, run: Path, **keys: object) -> list[float]:
    from codellama_app.ranks import Ranks
    from codellama_app.run import Plan, execute

    values = {
        "run_mode": "finetune",
        "load_checkpoint": stories,
        "model.preset": "checkpoint",
        "output_dir": run,
        "dataset.train_dataset_dir": rows,
        "dataset.seq_length": 64,
        "dataset.batch_size": 4,
        "optimizer.learning_rate": 1e-3,
        "lr_schedule.warmup_steps": 2,
        "max_steps": 8,
        "save_steps": 4,
    } | keys
    overrides = [(key, str(value)) for key, value in values.items()]
    execute(Plan.of(load_config("codellama_tiny", overrides)), Ranks())
    return [row["loss"] for row in read_metrics(run)]


def test_its_loss_on_its_own_greedy_text_starts_low_and_does_not_jump(stories, rows, tmp_path):
    losses = finetune(stories, rows, tmp_path / "whole")
    assert losses[0] < 2
    assert all(after < JUMP * before for before, after in pairwise(losses)), losses
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_adapters_train_are_resumed_exactly_and_merge_into_what_they_were(stories, rows, tmp_path):
    from codellama_app import CodeLlama
    from codellama_app.adapters import merge_adapters, open_adapters
    from codellama_ckpt import open_checkpoint

    lora = {"lora.rank": 4, "lora.targets": "wq,wv,w2", "optimizer.learning_rate": 1e-2}
    losses = finetune(stories, rows, tmp_path / "run", **lora)
    assert losses[0] < 2 and losses[-1] < losses[0]
    saved = open_checkpoint(tmp_path / "run" / "checkpoints" / "step_000008")
    assert saved.names() and all(name.endswith((".lora_a", ".lora_b")) for name in saved)

    (tmp_path / "run" / "checkpoints" / "step_000008").rename(tmp_path / "step_000008")  # as if killed after step 4
    again = finetune(stories, rows, tmp_path / "run", **lora, resume_training=True)
    assert again == losses
    resumed = open_checkpoint(tmp_path / "run" / "checkpoints" / "step_000008")
    assert all(resumed.read(name).tobytes() == saved_value for name, saved_value in _parts(tmp_path / "step_000008"))

    merge_adapters(stories, open_adapters(tmp_path / "run"), tmp_path / "merged.safetensors")
    ids = np.array(json.loads((stories / "greedy.json").read_text())["greedy_ids"], np.int32)[None, :65]
    logits = CodeLlama.from_pretrained(tmp_path / "merged.safetensors").logits(ids)[0, :-1]
    chosen = np.take_along_axis(logits, ids[0, 1:, None], -1)[:, 0]
    largest = logits.max(-1)
    nll = largest + np.log(np.exp(logits - largest[:, None]).sum(-1)) - chosen
    assert nll.mean() < losses[0]  # the merged network has learnt what the adapters have


def _parts(folder: Path) -> list[tuple[str, bytes]]:
    from safetensors.numpy import load_file

    return [(name, value.tobytes()) for path in folder.glob("*.safetensors") for name, value in load_file(path).items()]
