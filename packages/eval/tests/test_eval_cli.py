"""The command `codellama-eval`, as a user runs it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from codellama_eval import Problem

RunCli = Callable[..., subprocess.CompletedProcess[str]]


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode in (1, 2)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_prompts_to_generations_to_samples_to_score(
    run_cli: RunCli, tmp_path: Path, problems: dict[str, Problem]
) -> None:
    prompts, generations = tmp_path / "prompts.jsonl", tmp_path / "generations.jsonl"
    samples, report = tmp_path / "samples.jsonl", tmp_path / "report.json"
    assert run_cli("prompts", "--output_file", prompts).stdout == f"{prompts}: 164 prompts\n"
    with generations.open("w") as file:
        for line in prompts.read_text().splitlines():
            row = json.loads(line)
            body = problems[row["task_id"]].canonical_solution
            file.write(json.dumps({**row, "generation": f"{row['prompt']}{body}\n\nprint('more')\n"}) + "\n")
    done = run_cli("extract", "--generations", generations, "--output_file", samples)
    assert done.stdout == f"{samples}: 164 completions\n"
    done = run_cli(
        "score", samples, "--k", "1,10", "--timeout", "10", "--report_file", report, "--model", "codellama_34b"
    )
    lines = done.stdout.splitlines()
    assert ast.literal_eval(lines[-1]) == {"pass@1": 1.0}
    assert "pass@10: left out, a task has 1 sample" in lines
    assert any(line.startswith("sandbox: ") for line in lines)
    values = json.loads(report.read_text())
    assert values["pass_at_k"] == {"pass@1": 1.0}
    assert values["paper"]["pass@1"] == 0.488
    results = [json.loads(line) for line in Path(f"{samples}_results.jsonl").read_text().splitlines()]
    assert [set(row) for row in results] == [{"task_id", "completion", "raw", "result", "passed"}] * 164


def test_return_none_scores_nothing_even_under_O(
    tmp_path: Path, problems: dict[str, Problem], environment: dict[str, str]
) -> None:
    samples = tmp_path / "samples.jsonl"
    samples.write_text("".join(json.dumps({"task_id": t, "completion": "    return None\n"}) + "\n" for t in problems))
    done = subprocess.run(
        [sys.executable, "-O", "-m", "codellama_eval", "score", str(samples), "--timeout", "10"],
        capture_output=True,
        text=True,
        check=True,
        env={**environment, "PYTHONOPTIMIZE": "2"},
    )
    assert done.stdout.splitlines()[-1] == "{'pass@1': 0.0}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "none.jsonl"], "none.jsonl: no such file"),
        (["score"], "required: samples.jsonl"),
        (["score", "{file}", "--k", "a"], "invalid list of numbers"),
        (["score", "{file}", "--benchmark", "mbpp"], "give --data_path"),
        (["score", "{file}", "--without_layers", "walls"], "no layer 'walls'"),
        (["score", "{file}"], "163 of 164 tasks have no sample"),
        (["score", "{file}", "--missing", "skip", "--report_file", "/none/report.json"], "its folder does not exist"),
        (["extract", "--generations", "{file}", "--output_file", "/none/samples.jsonl"], "its folder does not exist"),
        (["extract", "--generations", "{file}", "--output_file", "{folder}/s.jsonl"], "expected a text 'generation'"),
        (["prompts", "--output_file", "{folder}"], "is a folder"),
        (["prompts", "--output_file", "{folder}/p.jsonl", "--style", "x"], "unknown style"),
        (["frobnicate"], "invalid choice"),
    ],
)
def test_mistakes_are_one_line(run_cli: RunCli, tmp_path: Path, arguments: list[str], message: str) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text('{"task_id": "HumanEval/0", "completion": ""}\n')
    filled = [argument.format(file=path, folder=tmp_path) for argument in arguments]
    assert message in one_line(run_cli(*filled))
    assert [one.name for one in tmp_path.iterdir()] == ["samples.jsonl"]


def test_help(run_cli: RunCli) -> None:
    for command in ([], ["prompts"], ["extract"], ["score"]):
        assert "usage: codellama-eval" in run_cli(*command, "--help").stdout
