"""Problems of every benchmark, prompts, and the paper's figures."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from codellama_eval import EvalError, Outcome, Problem, extract, load_problems, make_prompts, paper_figures, score
from codellama_eval.problems import data_digest, data_file

# sha256 of openai/human-eval's data/HumanEval.jsonl.gz
HUMANEVAL_SHA256 = "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def humaneval_row(**changes: object) -> dict[str, Any]:
    return {
        "task_id": "T/0",
        "prompt": "def f(x):\n",
        "entry_point": "f",
        "canonical_solution": "    return x\n",
        "test": "def check(candidate):\n    assert candidate(1) == 1\n",
    } | changes


def test_humaneval_is_openai_s_file(problems: dict[str, Problem]) -> None:
    assert data_digest(data_file()) == HUMANEVAL_SHA256
    assert list(problems) == [f"HumanEval/{number}" for number in range(164)]
    problem = problems["HumanEval/33"]
    assert problem.tests.endswith("\ncheck(sort_third)")
    assert problem.functions == ("sort_third",)


@pytest.mark.parametrize("name", ["problems.jsonl", "problems.jsonl.gz"])
def test_files_are_read_packed_or_not(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, [humaneval_row(), humaneval_row(task_id="T/1")])
    assert list(load_problems("humaneval", path)) == ["T/0", "T/1"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no problem"),
        ([humaneval_row(), humaneval_row()], "row 2: T/0 is there twice"),
        ([{"task_id": "T/0"}], "row 1 is not of humaneval: no field"),
        ([humaneval_row(test=5)], "'test' must be a text"),
    ],
)
def test_files_of_another_form_are_errors(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(EvalError, match=message):
        load_problems("humaneval", write(tmp_path / "p.jsonl", rows))


def test_missing_files_and_benchmarks_are_errors(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="No such file"):
        load_problems("humaneval", tmp_path / "none.jsonl")
    with pytest.raises(EvalError, match="give --data_path"):
        load_problems("mbpp")
    with pytest.raises(EvalError, match="unknown benchmark 'HumanEval'"):
        load_problems("HumanEval")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b"{}")[:-4])
    with pytest.raises(EvalError, match="no complete gzip file"):
        load_problems("humaneval", tmp_path / "cut.jsonl.gz")


def test_humaneval_prompts(problems: dict[str, Problem]) -> None:
    rows = make_prompts()
    assert [row["task_id"] for row in rows] == list(problems)
    assert rows[0] == {
        "task_id": "HumanEval/0",
        "prompt": problems["HumanEval/0"].prompt,
        "entry_point": "has_close_elements",
    }
    assert make_prompts(strip=True)[0]["prompt"] == rows[0]["prompt"].strip()
    asked = make_prompts(style="instruct")[0]["prompt"]
    assert asked.startswith("Write a solution")
    assert rows[0]["prompt"].strip() in asked
    with pytest.raises(EvalError, match="unknown style"):
        make_prompts(style="chat")
    with pytest.raises(EvalError, match="order spm is for infilling"):
        make_prompts(order="spm")


# the form of google-research/mbpp: mbpp.jsonl
MBPP = [
    {
        "task_id": number,
        "text": f"Write a function to add {number}.",
        "code": f"LIMIT = {number}\ndef helper(x):\n    return x\ndef add_{number}(x):\n    return helper(x) + LIMIT",
        "test_list": [f"assert add_{number}(1) == {number + 1}", f"assert add_{number}(2) == {number + 2}"],
        "test_setup_code": "",
        "challenge_test_list": [],
    }
    for number in (2, 3, 4, 11, 12)
]
PAIRS = {
    "task_id": 13,
    "text": "Write a function to sum a pair.",
    "code": "class Pair(object):\n    def __init__(self, a, b):\n        self.a = a\n        self.b = b\n"
    "def total(p):\n    return p.a + p.b",
    "test_list": ["assert total(Pair(1, 2)) == 3"],
    "test_setup_code": "",
    "challenge_test_list": [],
}


def test_mbpp(tmp_path: Path) -> None:
    path = write(tmp_path / "mbpp.jsonl", [*MBPP, PAIRS])
    problems = load_problems("mbpp", path)
    assert list(problems) == ["MBPP/11", "MBPP/12", "MBPP/13"]
    assert problems["MBPP/11"].functions == ("add_11",)
    row = make_prompts("mbpp", path)[0]
    assert row["prompt"].count("[DONE]") == 3
    assert row["prompt"].endswith("assert add_11(2) == 13\n[BEGIN]\n")
    assert "[BEGIN]" not in make_prompts("mbpp", path, style="instruct")[0]["prompt"]
    samples = [
        {"task_id": task_id, "completion": extract(problem.canonical_solution + "\n[DONE]\nand more", problem)}
        for task_id, problem in problems.items()
    ]
    assert score(samples, benchmark="mbpp", data_path=path) == {"pass@1": 1.0}
    wrong = [{"task_id": task_id, "completion": "def f(): pass"} for task_id in problems]
    assert score(wrong, benchmark="mbpp", data_path=path, strict=True) == {"pass@1": 0.0}


def test_sanitized_mbpp_is_an_array(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": row["text"],
            "test_imports": ["import math"],
            **{k: row[k] for k in ("task_id", "code", "test_list")},
        }
        for row in MBPP
    ]
    path = tmp_path / "sanitized-mbpp.json"
    path.write_text(json.dumps(rows))
    problems = load_problems("mbpp", path)
    assert problems["MBPP/11"].description == "Write a function to add 11."
    assert problems["MBPP/11"].tests.startswith("import math\n")


PLUS = {  # the form of evalplus: HumanEvalPlus.jsonl
    "task_id": "HumanEval/4",
    "prompt": "def mean(x):\n",
    "entry_point": "mean",
    "canonical_solution": "    return sum(x) / len(x)\n",
    "base_input": [[[1.0, 2.0]]],
    "plus_input": [[[0.1, 0.2, 0.3]], [[1, 2]]],
    "atol": 0,
}
FIND_ZERO = {
    "task_id": "HumanEval/32",
    "prompt": "def poly(xs, x):\n    return sum(c * x**i for i, c in enumerate(xs))\n\n\ndef find_zero(xs):\n",
    "entry_point": "find_zero",
    "canonical_solution": "    return -xs[0] / xs[1]\n",
    "base_input": [[[1, 2]]],
    "plus_input": [[[-6, 3]]],
    "atol": 1e-4,
}


@pytest.mark.parametrize("strict", [False, True])
def test_humaneval_plus(tmp_path: Path, strict: bool) -> None:
    path = write(tmp_path / "plus.jsonl", [PLUS, FIND_ZERO])

    def rate(mean: str, find_zero: str) -> float:
        samples = [
            {"task_id": "HumanEval/4", "completion": mean},
            {"task_id": "HumanEval/32", "completion": find_zero},
        ]
        return score(samples, benchmark="humanevalplus", data_path=path, strict=strict)["pass@1"]

    assert rate("    return sum(x) / len(x)\n", "    return -xs[0] / xs[1]\n") == 1.0
    close = "    return sum(x) / len(x) + 1e-9\n"  # within evalplus's 1e-6 for floats
    assert rate(close, "    return -xs[0] / xs[1] + 1e-6\n") == 1.0
    base_only = "    return 1.5\n"  # right for the base input alone
    assert rate(base_only, "    return -0.5\n") == 0.0


INFILLING_FILES = {
    "infilling-single-line": ("HumanEval-SingleLineInfilling.jsonl.gz", 1033),
    "infilling-multi-line": ("HumanEval-MultiLineInfilling.jsonl.gz", 5815),
    "infilling-random-span": ("HumanEval-RandomSpanInfilling.jsonl.gz", 1640),
    "infilling-random-span-light": ("HumanEval-RandomSpanInfillingLight.jsonl.gz", 164),
}


@pytest.mark.parametrize("benchmark", INFILLING_FILES)
def test_infilling(benchmark: str, infilling_data: Path, tmp_path: Path) -> None:
    """Of each set ten tasks or so: prompt and extraction, and the canonical middle passes."""
    from codellama_eval.scoring import evaluate

    name, count = INFILLING_FILES[benchmark]
    path = infilling_data / name
    problems = load_problems(benchmark, path)
    assert len(problems) == count
    row = make_prompts(benchmark, path, order="spm")[0]
    assert set(row) == {"task_id", "prompt", "entry_point", "suffix", "suffix_first"}
    assert row["suffix_first"] is True
    chosen = list(problems.values())[:: max(100, count // 10)]
    samples = [{"task_id": p.task_id, "completion": extract(f"{p.canonical_solution}<EOT>", p)} for p in chosen]
    assert [sample["completion"] for sample in samples] == [p.canonical_solution for p in chosen]
    report, _ = evaluate(samples, benchmark=benchmark, data_path=path, missing="skip", model="CodeLlama-7b-hf")
    assert report.pass_at_k == {"pass@1": 1.0}
    assert report.exact_match == 1.0


def test_paper_figures() -> None:
    assert paper_figures("codellama_34b", "humaneval") == {"pass@1": 0.488, "pass@10": 0.768, "pass@100": 0.93}
    assert paper_figures("codellama/CodeLlama-7b-Instruct-hf", "mbpp")["pass@1"] == 0.444
    assert paper_figures("CodeLlama-13b-Python-hf", "humaneval")["pass@100"] == 0.941
    assert paper_figures("codellama_7b", "infilling-random-span") == {"pass@1 (psm)": 0.597, "pass@1 (spm)": 0.39}
    assert paper_figures("codellama_34b", "infilling-single-line") == {}
    assert paper_figures("codellama_tiny", "humaneval") == {}
    assert paper_figures("starcoder-7b", "humaneval") == {}


def test_canonical_solutions_and_return_none(
    problems: dict[str, Problem], outcomes: Callable[..., list[Outcome]]
) -> None:
    right = outcomes((task_id, problem.canonical_solution) for task_id, problem in problems.items())
    wrong = outcomes((task_id, "    return None\n") for task_id in problems)
    assert sum(outcome.passed for outcome in right) == 164
    assert sum(outcome.passed for outcome in wrong) == 0
