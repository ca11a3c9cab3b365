"""The card's data steps end in files that training takes: WikiText to rows, Alpaca to (packed) conversation rows."""

from __future__ import annotations

import json

import pytest

WIKI = (
    """
 = Title =

 A first paragraph , with some words in it ; it has a <unk> word .

 A second one that speaks of 3 @.@ 5 things " quoted " .

"""
    * 200
)
SAMPLES = [
    {"instruction": f"Add {n} and {n + 1}.", "input": "" if n % 2 else "Use Python.", "output": f"print({n} + {n + 1})"}
    for n in range(40)
]


def train(command, tiny_run, rows, folder):
    done = command(
        "codellama-train",
        *("--config", tiny_run.config, "--train_dataset_dir", rows, "--eval_dataset_dir", rows),
        *("--output_dir", folder / "trained", "--max_steps", 2, "--dataset.seq_length", 400, "--dataset.batch_size", 2),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert "held-out loss" in done.stdout
    return [json.loads(line)["loss"] for line in (folder / "trained" / "metrics.jsonl").read_text().splitlines()]


def preprocess(command, tiny_run, folder, *arguments):
    done = command(
        "codellama-data", "preprocess", "--model_file", tiny_run.directory / "tokenizer.model",
        "--seq_length", 400, "--output_file", "rows.mindrecord", *arguments, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_wikitext_becomes_rows_that_train(tiny_run, command, tmp_path):
    (tmp_path / "wiki.train.tokens").write_text(WIKI)
    preprocess(command, tiny_run, tmp_path, "--dataset_type", "wiki", "--input_glob", "wiki.*.tokens")
    assert len(train(command, tiny_run, tmp_path / "rows.mindrecord", tmp_path)) == 2


@pytest.mark.parametrize("packing", [(), ("--packing",)])
def test_alpaca_becomes_conversations_and_rows_that_train(tiny_run, command, tmp_path, packing):
    (tmp_path / "alpaca.json").write_text(json.dumps(SAMPLES))
    done = command(
        "codellama-data", "alpaca", "--data_path", "alpaca.json", "--output_path", "conversations.json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    preprocess(
        command, tiny_run, tmp_path, "--dataset_type", "qa", "--input_glob", "conversations.json",
        "--template", "llama-2", "--on_overlong", "truncate", *packing,
    )  # fmt: skip
    from codellama_data import open_rows

    columns = {"input_ids", "labels"} | ({"document_ids"} if packing else set())
    assert set(open_rows(tmp_path / "rows.mindrecord").columns) == columns
    assert len(train(command, tiny_run, tmp_path / "rows.mindrecord", tmp_path)) == 2
