"""The main job end to end, by its command lines: train, predict, and what happens when the user is wrong."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

INTERRUPTED = 130


def assert_one_line(done: subprocess.CompletedProcess[str], message: str, code: int = 1) -> None:
    """The command failed with this code and exactly one line on stderr."""
    assert done.returncode == code, done.stderr
    assert re.search(message, done.stderr), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_a_run_leaves_everything_that_it_promises(tiny_run):
    assert {path.name for path in tiny_run.directory.iterdir()} == {
        "checkpoints",
        "config.yaml",
        "loss.png",
        "metrics.jsonl",
        "summary.json",
        "tokenizer.model",
    }
    steps = [json.loads(line) for line in (tiny_run.directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps] == list(range(1, 13))
    assert all(math.isfinite(row["loss"]) and row["tokens_per_second"] > 0 for row in steps)
    assert steps[-1]["loss"] < steps[0]["loss"]
    checkpoints = sorted(path.name for path in (tiny_run.directory / "checkpoints").iterdir())
    assert checkpoints == ["step_000005", "step_000010", "step_000012"]
    assert yaml.safe_load((tiny_run.directory / "config.yaml").read_text())["model"]["hidden_size"] == 24
    with Image.open(tiny_run.directory / "loss.png") as picture:
        assert picture.size[0] > 500 and np.asarray(picture.convert("L")).std() > 5  # something is drawn


def test_a_run_says_what_it_does(tiny_run):
    for pattern in ("abc", "20 files", r"held-out loss: +\d", r"bigram model: +\d"):
        assert re.search(pattern, tiny_run.output), pattern
    last = tiny_run.output.splitlines()[-1]
    assert re.fullmatch(f"predict with: codellama-predict --config {tiny_run.config} --prompt .*", last)


def test_held_out_loss_is_that_of_the_saved_checkpoint(tiny_run):
    """The printed figure belongs to the network that is saved: computed again from it, by another path."""
    from codellama_app import CodeLlama, corpus_data, load_config
    from codellama_app.held_out import network_loss
    from codellama_model import CausalLMLoss

    lm = CodeLlama.from_pretrained(tiny_run.directory)
    config = load_config(str(tiny_run.directory / "config.yaml"))
    printed = json.loads((tiny_run.directory / "summary.json").read_text())["held_out_loss"]
    made = corpus_data.prepare(config)
    assert network_loss(CausalLMLoss(lm.network), made.eval_rows, config) == pytest.approx(printed, rel=1e-5)


def test_the_same_seed_trains_the_same_network(tiny_run, command, tmp_path):
    done = command("codellama-train", "--config", tiny_run.config, "--output_dir", tmp_path / "again", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (
        [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (tiny_run.directory, tmp_path / "again")
    )
    np.testing.assert_allclose(first, second, rtol=1e-4)


def test_predict_continues_a_prompt_and_says_how_fast(tiny_run, command, tmp_path):
    prompt = "def read_lines(path):"
    done = command(
        "codellama-predict", "--config", tiny_run.config, "--prompt", prompt, "--max_new_tokens", 9, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(prompt) and len(done.stdout) > len(prompt) + 1
    assert re.fullmatch(r"9 tokens, [\d.]+ tokens/s; the first one after [\d.]+ s\n", done.stderr)


def test_predict_fills_in_the_middle(tiny_run, command, tmp_path):
    done = command(
        "codellama-predict",
        "--config",
        tiny_run.config,
        "--infill",
        r"def f(a):\n    ",
        r"\n    return total",
        "--max_new_tokens",
        5,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("def f(a):\n    ") and done.stdout.endswith("\n    return total\n")


def test_predict_reads_and_writes_json_lines(tiny_run, command, tmp_path):
    rows = [{"task_id": "a", "prompt": "import os"}, {"prompt": "x = 1\n", "suffix": "\ny"}, {"prompt": "class A"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ("codellama-predict", "--config", tiny_run.config, "--max_new_tokens", 6)
    done = command(*common, "--prompt_file", "in.jsonl", "--output_file", "out.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [{key: row[key] for key in row if key != "generation"} for row in written] == rows
    alone = command(*common, "--prompt", "import os", cwd=tmp_path)
    assert alone.stdout == f"import os{written[0]['generation']}\n"


def test_finetuning_starts_from_the_checkpoint(tiny_run, command, tmp_path):
    done = command(
        "codellama-train",
        "--config",
        tiny_run.config,
        "--run_mode",
        "finetune",
        "--load_checkpoint",
        tiny_run.directory / "checkpoints" / "step_000012",
        "--output_dir",
        tmp_path / "tuned",
        "--max_steps",
        2,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    first = json.loads((tmp_path / "tuned" / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    trained = [json.loads(line)["loss"] for line in (tiny_run.directory / "metrics.jsonl").read_text().splitlines()]
    assert first < (trained[0] + trained[-1]) / 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "x", "--load_checkpoint", "missing"], "missing: no such file"),
        (["--prompt", "x" * 5000], "leaves no room in the context of 512"),
        (["--prompt_file", "missing.jsonl"], "missing.jsonl"),
        (["--prompt_file", "/"], "Is a directory: /"),
        (["--prompt", "x", "--output_file", "no/where.jsonl"], "folder does not exist"),
        (["--prompt", "x", "--do_sample", "True", "--temperature", "0"], "temperature must be"),
    ],
)
def test_a_wrong_prediction_ends_in_one_line(tiny_run, command, tmp_path, arguments, message):
    assert_one_line(command("codellama-predict", "--config", tiny_run.config, *arguments, cwd=tmp_path), message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one of --prompt"),
        (["--prompt", "x", "--top_k", "many"], "top_k"),
        (["--promt", "x"], "--promt"),
        (["--prompt", "x", "--stop", ""], "--stop"),
    ],
)
def test_wrong_usage_ends_in_one_line(tiny_run, command, tmp_path, arguments, message):
    assert_one_line(
        command("codellama-predict", "--config", tiny_run.config, *arguments, cwd=tmp_path), message, code=2
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset.corpus", "missing"], "missing"),
        (["--dataset.corpus", "empty"], "no document|empty"),
        (["--optimizer.lr", "1"], "unknown key 'optimizer.lr'"),
        (["--model.num_heads", "5"], "num_heads 5 does not divide"),
        (["--model.vocab_size", "1000000"], "too small for vocab_size 1000000"),
        (["--train_dataset_dir", "missing.mindrecord"], "missing.mindrecord"),
        (["--run_mode", "finetune", "--load_checkpoint", "missing"], "missing"),
    ],
)
def test_wrong_training_ends_in_one_line_and_leaves_no_run(tiny_run, command, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    done = command(
        "codellama-train", "--config", tiny_run.config, "--output_dir", tmp_path / "run", *arguments, cwd=tmp_path
    )
    assert_one_line(done, message)
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_not_utf8_is_named_and_skipped_with_a_count(tiny_run, command, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for path in tiny_run.corpus.iterdir():
        (corpus / path.name).write_bytes(path.read_bytes())
    (corpus / "latin.py").write_bytes("# caf\xe9\n".encode("latin-1"))
    done = command(
        "codellama-train",
        "--config",
        tiny_run.config,
        "--dataset.corpus",
        corpus,
        "--output_dir",
        tmp_path / "run",
        "--max_steps",
        1,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "latin.py: " in done.stdout and "1 documents that are no text" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_training_saves_and_ends_in_one_line(tiny_run, tmp_path, number):
    script = Path(sys.executable).parent / "codellama-train"
    process = subprocess.Popen(
        [script, "--config", tiny_run.config, "--output_dir", tmp_path / "run", "--max_steps", "100000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"CODELLAMA_CACHE": str(tmp_path / "cache")},
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_text().count("\n") >= 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED
    last = errors.rstrip().rsplit("\n", 1)[-1]
    step = int(re.search(r"codellama-train: interrupted after step (\d+); checkpoint saved in .*step_0*\1$", last)[1])
    assert "Traceback" not in errors
    assert metrics.read_text().count("\n") == step
    (saved,) = (tmp_path / "run" / "checkpoints").glob(f"step_{step:06d}")
    from codellama_ckpt import open_checkpoint

    assert open_checkpoint(saved).metadata["step"] == str(step)
