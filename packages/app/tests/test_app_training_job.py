"""Training on several processes: a job's losses, files and resume on another mesh; what is refused before it starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from codellama_app.config import load_config
from codellama_app.metrics import read_metrics
from codellama_model.config import ConfigError

LOSS_TOLERANCE = 1e-5  # relative: what ranks add up in another order
PATIENCE = 300
CONFIG = """\
model: {vocab_size: 62, hidden_size: 16, num_layers: 1, num_heads: 2, n_kv_heads: 1, intermediate_size: 24,
        max_position_embedding: 32}
dataset: {seq_length: 12, batch_size: 4, eval_rows: 6}
optimizer: {learning_rate: 1e-2}
lr_schedule: {type: constant, warmup_steps: 1}
max_steps: 6
save_steps: 2
keep_last: 1
"""


def run(folder: Path, rows: Path, *flags: object) -> subprocess.CompletedProcess[str]:
    (folder / "c.yaml").write_text(CONFIG)
    command = [
        "-m",
        "codellama_app.train",
        "--config",
        "c.yaml",
        "--train_dataset_dir",
        rows,
        "--eval_dataset_dir",
        rows,
    ]
    return subprocess.run(
        [sys.executable, *map(str, [*command, *flags])],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_a_job_trains_as_one_process_and_goes_on_as_one(train_rows, tmp_path):
    """Three steps on two ranks, three more on one; a rank of two holds parts of matrices and of the batch's tokens."""
    calm = run(tmp_path, train_rows, "--output_dir", "calm")
    assert calm.returncode == 0, calm.stderr
    job = ("--worker_num", 2, "--parallel_config.model_parallel", 2, "--parallel_config.use_seq_parallel", "True")
    first = run(tmp_path, train_rows, "--output_dir", "run", "--max_steps", 3, *job)
    assert first.returncode == 0, first.stderr
    assert "processes: 2, data 1 x model 2 x pipeline 1" in first.stdout
    assert first.stdout.count("trained on 144 tokens") == 1
    directory = tmp_path / "run"
    assert {path.name for path in (directory / "log").glob("rank_*")} == {"rank_0.log", "rank_1.log"}
    (checkpoint,) = (directory / "checkpoints").iterdir()
    assert checkpoint.name == "step_000003"
    assert len(list(checkpoint.glob("*.safetensors"))) == 2

    second = run(tmp_path, train_rows, "--output_dir", "run", "--resume_training", "True", "--resume_anyway", "True")
    assert second.returncode == 0, second.stderr
    expected, found = read_metrics(tmp_path / "calm"), read_metrics(directory)
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6]
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in found] == pytest.approx([row[key] for row in expected], rel=LOSS_TOLERANCE)


@pytest.mark.parametrize(
    ("keys", "size", "message"),
    [
        ({"data_parallel": 2}, 1, "asks for 2 processes: give --worker_num 2"),
        ({"data_parallel": 2}, 4, "= 2 processes, but the job has 4"),
        ({"model_parallel": 3}, 3, "model_parallel 3 does not divide num_heads"),
        ({"pipeline_stage": 2, "pipeline_offset": "1,-1,0"}, 2, "has 3 numbers for pipeline_stage 2"),
        ({"pipeline_stage": 2, "pipeline_offset": "1,x"}, 2, "pipeline_offset must be 0 or whole numbers"),
        ({"pipeline_stage": 2, "pipeline_offset": "3,-3"}, 2, "leave a stage empty"),
    ],
)
def test_a_job_that_can_not_be_is_refused(keys, size, message):
    with pytest.raises(ConfigError, match=message):
        load_config(
            "codellama_tiny", [(f"parallel_config.{key}", str(value)) for key, value in keys.items()]
        ).check_job(size)


def test_offsets_on_the_command_line_are_numbers():
    config = load_config(
        "codellama_tiny", [("parallel_config.pipeline_stage", "2"), ("parallel_config.pipeline_offset", "1,-1")]
    )
    assert config.parallel_config.pipeline_offset == (1, -1)
    config.check_job(2)


def test_adapters_on_several_processes_are_refused(tmp_path):
    keys = {"run_mode": "finetune", "load_checkpoint": "x", "lora.rank": "4", "parallel_config.data_parallel": "2"}
    with pytest.raises(ConfigError, match=r"lora\.rank 4: adapters train in one process"):
        load_config("codellama_tiny", list(keys.items())).check_job(2)


def test_micro_batches_of_either_name_and_copies_make_a_steps_rows():
    keys = {
        "dataset.batch_size": "3",
        "gradient_accumulation_steps": "2",
        "parallel_config.micro_batch_num": "4",
        "parallel_config.data_parallel": "5",
    }
    config = load_config("codellama_tiny", list(keys.items()))
    assert (config.strategy.micro_batch_num, config.step_rows) == (8, 120)
