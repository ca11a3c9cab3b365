"""Training on several processes: a job's losses, files and resume on another mesh; what is refused before it starts."""

from __future__ import annotations

import socket
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


@pytest.fixture
def port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(folder: Path, rows: Path, output_dir: str, *flags: object) -> subprocess.Popen[str]:
    """`codellama-train` on these rows; what it prints goes through pipes."""
    (folder / "c.yaml").write_text(CONFIG)
    words = ["-m", "codellama_app.train", "--config", "c.yaml", "--output_dir", output_dir]
    words += [f"--{kind}_dataset_dir={rows}" for kind in ("train", "eval")]
    return subprocess.Popen(
        [sys.executable, *words, *map(str, flags)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process: subprocess.Popen[str]) -> str:
    """What a run that ends well prints."""
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    return out


def test_a_job_of_two_launches_trains_as_one_process_and_goes_on_as_one(train_rows, tmp_path, port):
    """Three steps on two ranks, each of a launch of its own as on two machines, and three more in one process.

    A rank of two holds parts of matrices and of the batch's tokens.
    """
    calm = start(tmp_path, train_rows, "calm")
    job = ("--worker_num", 2, "--local_worker_num", 1, "--master_port", port, "--max_steps", 3)
    strategy = ("--parallel_config.model_parallel", 2, "--parallel_config.use_seq_parallel", "True")
    nodes = [start(tmp_path, train_rows, "run", *job, "--node_rank", node, *strategy) for node in range(2)]
    first, second = map(output, nodes)
    assert "processes: 2, data 1 x model 2 x pipeline 1" in first
    assert first.count("trained on 144 tokens") == 1 and "trained on" not in second  # rank 0's progress alone
    directory = tmp_path / "run"
    assert {path.name for path in (directory / "log").glob("rank_*")} == {"rank_0.log", "rank_1.log"}
    (checkpoint,) = (directory / "checkpoints").iterdir()
    assert checkpoint.name == "step_000003"
    assert len(list(checkpoint.glob("*.safetensors"))) == 2

    output(calm)
    output(start(tmp_path, train_rows, "run", "--resume_training", "True", "--resume_anyway", "True"))
    expected, found = read_metrics(tmp_path / "calm"), read_metrics(directory)
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6]
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in found] == pytest.approx([row[key] for row in expected], rel=LOSS_TOLERANCE)


def test_a_rank_hands_the_users_mistake_to_its_launcher(tmp_path, monkeypatch, capsys):
    from codellama_app.command import UserError, run

    def body(_: object) -> None:
        raise UserError("no such file;\ngive another")

    for name, value in {"MS_ROLE": "MS_WORKER", "RANK_ID": "3", "CODELLAMA_ERRORS": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        run("codellama-train", body, [])
    assert ended.value.code == 1 and capsys.readouterr().err == ""
    assert (tmp_path / "rank_3.error").read_text() == "codellama-train: no such file; give another\n"


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
