"""From what models write to what runs: every row of a table of faults, over all 164 tasks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from codellama_eval import STOPS, EvalError, Outcome, Problem, extract, extract_file
from codellama_eval.extraction import CUTS, first_line
from codellama_eval.stops import cut

Outcomes = Callable[..., list[Outcome]]
CHATTER = (
    "\n\n# Test the function\nprint(1)\n\n\ndef main():\n    print(2)\n\n\nif __name__ == '__main__':\n    main()\n"
)
TAIL = "\n\ndef unfinished(a, b):\n    return (a +"


def definition(problem: Problem) -> str:
    """The entry point alone, as a chat model writes it: without imports and helpers of the prompt."""
    program = problem.program(problem.canonical_solution)
    start = re.search(rf"^def {problem.entry_point}\b", program, re.M)
    assert start is not None
    return program[start.start() :]


def at_first_blank_line(body: str) -> str:
    return body.partition("\n\n")[0]


# what a harness would save: (how many of 164 pass as it is, the text)
ROWS: dict[str, tuple[int, Callable[[Problem], str]]] = {
    "body": (164, lambda p: p.canonical_solution),
    "body cut by Codex's stops": (164, lambda p: cut(p.canonical_solution, STOPS["codex"])),
    "body cut by bigcode's stops": (164, lambda p: cut(p.canonical_solution, STOPS["bigcode"])),
    "body cut by evalplus's stops": (164, lambda p: cut(p.canonical_solution, STOPS["evalplus"])),
    "prompt echoed": (164, lambda p: p.prompt + p.canonical_solution),
    "entry point's def only": (164, definition),
    "body stripped": (0, lambda p: p.canonical_solution.lstrip()),
    "first line one blank deeper": (4, lambda p: " " + p.canonical_solution),
    "unfinished tail": (0, lambda p: p.canonical_solution + TAIL),
    "fences": (0, lambda p: f"```python\n{p.prompt}{p.canonical_solution}```\n"),
}


@pytest.mark.parametrize("row", ROWS)
def test_what_models_write_passes_once_it_is_extracted(
    row: str, problems: dict[str, Problem], outcomes: Outcomes
) -> None:
    expected, write = ROWS[row]
    texts = {task_id: write(problem) for task_id, problem in problems.items()}
    assert sum(outcome.passed for outcome in outcomes(texts.items())) == expected
    extracted = [(task_id, extract(text, problems[task_id])) for task_id, text in texts.items()]
    failed = [sample for sample, outcome in zip(extracted, outcomes(extracted), strict=True) if not outcome.passed]
    assert failed == []


def test_without_the_prompt_imports_and_helpers_are_missing(problems: dict[str, Problem], sandbox: object) -> None:
    from codellama_eval.execution import Executor
    from codellama_eval.sandbox.workers import Sandbox

    assert isinstance(sandbox, Sandbox)
    bare = {
        task_id: Problem(task_id, "", p.entry_point, p.canonical_solution, p.tests, functions=p.functions)
        for task_id, p in problems.items()
    }
    found = Executor(sandbox, bare, strict=False, timeout=6.0).run(
        [(task_id, definition(problem)) for task_id, problem in problems.items()], lambda: None
    )
    assert sum(outcome.passed for outcome in found) == 141


def test_a_cut_at_the_first_blank_line_loses_functions(problems: dict[str, Problem], outcomes: Outcomes) -> None:
    samples = [(task_id, at_first_blank_line(p.canonical_solution)) for task_id, p in problems.items()]
    assert sum(outcome.passed for outcome in outcomes(samples)) == 130


def test_stops_searched_for_from_the_beginning_lose_everything(
    problems: dict[str, Problem], outcomes: Outcomes
) -> None:
    samples = []
    for task_id, problem in problems.items():
        wrong = cut(problem.program(problem.canonical_solution), STOPS["codex"])
        samples.append((task_id, wrong[len(problem.prompt) :]))
    assert sum(outcome.passed for outcome in outcomes(samples)) == 0


def some(problems: dict[str, Problem]) -> dict[str, Problem]:
    """Every eighth task, for what differs little from task to task."""
    return dict(list(problems.items())[::8])


OWN_ROWS: dict[str, Callable[[Problem], str]] = {
    "goes on with prints, further functions and a main": lambda p: p.canonical_solution + CHATTER,
    "goes on with the same function, wrong": lambda p: (
        f"{p.canonical_solution}\n\ndef {p.entry_point}(*a):\n    return None\n"
    ),
    "echoed prompt without its last newline": lambda p: p.prompt.rstrip() + "\n" + p.canonical_solution,
    "echoed prompt after a blank, and chatter": lambda p: " " + p.prompt + p.canonical_solution + CHATTER,
    "Windows' line ends": lambda p: p.canonical_solution.replace("\n", "\r\n"),
    "all lines one blank deeper": lambda p: "".join(f" {line}" for line in p.canonical_solution.splitlines(True)),
    "end mark and more": lambda p: p.canonical_solution + "</s> and so on",
    "EOT": lambda p: p.canonical_solution + "▁<EOT>",
    "closing fence of a block that the prompt had opened": lambda p: (
        p.canonical_solution + "```\n\nThis function returns 1.\n"
    ),
    "prose, a block, prose": lambda p: (
        f"Sure! Here it is:\n\n```python\n{p.prompt}{p.canonical_solution}```\nIt works like this:\n```\nfoo\n```"
    ),
    "a block that is never closed": lambda p: f"Here:\n```\n{p.prompt}{p.canonical_solution}",
    "an example block first": lambda p: (
        f"Usage:\n```python\nprint(1)\n```\nCode:\n```python\n{p.prompt}{p.canonical_solution}```"
    ),
    "PYTHON tags": lambda p: f"[PYTHON]\n{p.prompt}{p.canonical_solution}[/PYTHON]\n[TESTS]\nassert 1\n[/TESTS]",
    "PYTHON tag never closed": lambda p: f"[PYTHON]\n{p.prompt}{p.canonical_solution}",
    "the whole dialogue": lambda p: f"<s>[INST] Solve it [/INST] {p.prompt}{p.canonical_solution}</s>",
    "70B's turn": lambda p: f" Source: assistant\nDestination: user\n\n{p.prompt}{p.canonical_solution}<step>",
    "a future import, which is legal at the top only": lambda p: (
        "```python\nfrom __future__ import annotations\n" + p.prompt + p.canonical_solution + "```"
    ),
    "tests after the function": lambda p: p.prompt + p.canonical_solution + f"\n\nassert {p.entry_point}() == 1\n",
    "an unfinished string": lambda p: p.canonical_solution + '\n\ndef other():\n    """Not',
}


@pytest.mark.parametrize("row", OWN_ROWS)
def test_what_else_models_write(row: str, problems: dict[str, Problem], outcomes: Outcomes) -> None:
    extracted = [(task_id, extract(OWN_ROWS[row](one), one)) for task_id, one in some(problems).items()]
    failed = [sample for sample, outcome in zip(extracted, outcomes(extracted), strict=True) if not outcome.passed]
    assert failed == []


@pytest.mark.parametrize("stops", STOPS)
def test_conventional_stops_cut_the_continuation_only(
    stops: str, problems: dict[str, Problem], outcomes: Outcomes
) -> None:
    samples = []
    for task_id, problem in some(problems).items():
        for text in (problem.prompt + problem.canonical_solution + CHATTER, problem.canonical_solution + CHATTER):
            samples.append((task_id, extract(text, problem, stops)))
    assert all(outcome.passed for outcome in outcomes(samples))


def problem(prompt: str = 'def f(x):\n    """Doc."""\n', **values: object) -> Problem:
    fields = {"task_id": "T/0", "entry_point": "f", "canonical_solution": "    return x\n", "tests": ""} | values
    return Problem(prompt=prompt, **fields)  # type: ignore[arg-type]


def test_helpers_that_the_function_needs_stay_and_others_go() -> None:
    text = "    return helper(x) + LIMIT\n\nLIMIT = 3\n\nUNUSED = 4\n\ndef helper(x):\n    return math.sqrt(x)\n"
    text += "\nimport math\n"
    text += "\ndef unused():\n    pass\n\nprint(f(1))\n"
    kept = extract(text, problem())
    for line in ("LIMIT = 3", "def helper(x):", "import math"):
        assert line in kept
    for line in ("UNUSED", "unused", "print"):
        assert line not in kept


def test_a_decorated_helper_keeps_its_decorator() -> None:
    kept = extract("    return g(x)\n\n@cache\ndef g(x):\n    return x\n\nfrom functools import cache\n", problem())
    assert "@cache\ndef g" in kept
    assert "from functools import cache" in kept


def test_a_decorated_program_keeps_its_decorator() -> None:
    assert "@cache\ndef f" in extract("from functools import cache\n\n@cache\ndef f(x):\n    return x\n", problem())


def test_a_chat_answer_of_unindented_lines_becomes_a_body() -> None:
    kept = extract("total = 0\nfor one in x:\n    total += one\nreturn total\n", problem())
    assert kept == "    total = 0\n    for one in x:\n        total += one\n    return total\n"


def test_nothing_is_invented_for_an_empty_answer() -> None:
    assert extract("", problem()).strip() == ""
    assert extract("I can not do that.", problem()).strip() in ("", "I can not do that.")


@pytest.mark.parametrize("stops", CUTS)
@pytest.mark.parametrize(
    "text", ["(" * 5000, "-" * 100_000 + "1", "\0", "\ud800", "```" * 1000, "[PYTHON]", "  \n\t\n", "é∑"]
)
def test_no_text_breaks_the_extraction(text: str, stops: str) -> None:
    assert isinstance(extract(text, problem(), stops), str)
    assert isinstance(extract(text, problem("a", suffix="b", infilling=True), stops), str)


def test_mbpp_answers_end_at_done() -> None:
    mbpp = problem("", functions=("f",))
    assert extract("[BEGIN]\ndef f(x):\n    return x\n[DONE]\nYou are an expert", mbpp) == "def f(x):\n    return x\n"


def test_an_infilling_ends_before_the_suffix_and_keeps_whole_lines() -> None:
    lines = problem("def f(x):\n    y = 1\n", suffix="    z = y + 10\n    return z\n", infilling=True)
    assert extract("    y = x", lines) == "    y = x\n"
    assert extract("    y = x\n    z = y + 10\n    return z\n\n", lines) == "    y = x\n"
    assert extract("def f(x):\n    y = 1\n    y = x\n", lines) == "    y = x\n"
    assert extract("    y = x\n    z = (", lines) == "    y = x\n"
    span = problem("def f(x):\n    return x", suffix=" + 2\n", infilling=True)
    assert extract(" * 3<EOT>", span) == " * 3"
    assert first_line("\n    y = 1\n    z = 2\n") == "    y = 1\n"


def test_the_file_keeps_the_raw_text(tmp_path: Path) -> None:
    generations = tmp_path / "generations.jsonl"
    raw = "    return a\n\nprint(1)"
    generations.write_text(json.dumps({"task_id": "HumanEval/0", "generation": raw, "prompt": "x"}) + "\n")
    assert extract_file(generations, tmp_path / "samples.jsonl") == 1
    row = json.loads((tmp_path / "samples.jsonl").read_text())
    assert row == {"task_id": "HumanEval/0", "completion": "    return a\n", "raw": raw}


def test_unknown_tasks_and_stops_are_errors(tmp_path: Path) -> None:
    generations = tmp_path / "generations.jsonl"
    generations.write_text('{"task_id": "HumanEval/999", "generation": ""}\n')
    with pytest.raises(EvalError, match="HumanEval/999"):
        extract_file(generations, tmp_path / "samples.jsonl")
    assert not (tmp_path / "samples.jsonl").exists()
    with pytest.raises(EvalError, match="unknown stops"):
        extract("", problem(), "Codex")
