"""What a model is asked: rows of `task_id`, `prompt`, `entry_point`, for `codellama-predict --prompt_file`."""

from __future__ import annotations

import os

from codellama_eval.errors import EvalError
from codellama_eval.files import Row
from codellama_eval.problems import INFILLING, Problem, load_problems, mbpp_examples

STYLES = ("base", "instruct")
ORDERS = ("psm", "spm")
# lm-evaluation-harness, humaneval_instruct
_ASK = "Write a solution to the following problem and make sure that it passes the tests:\n```python\n{prompt}\n```"
# Austin et al. 2021 (arXiv:2108.07732), section 2.1; shown with tasks 2, 3 and 4 in the 3-shot prompt
_ASK_MBPP = (
    "You are an expert Python programmer, and here is your task: {text} Your code should pass these tests:\n\n{tests}\n"
)


def make_prompts(
    benchmark: str = "humaneval",
    data_path: str | os.PathLike[str] | None = None,
    *,
    style: str = "base",
    strip: bool = False,
    order: str = "psm",
) -> list[Row]:
    """A benchmark's prompts.

    Args:
        benchmark: as in `load_problems`.
        data_path: as in `load_problems`.
        style: "base" is text to continue (MBPP: with three solved tasks before it); "instruct" is a user's message, for
            `codellama-predict --chat`.
        strip: without the blanks at the prompt's ends, as bigcode-evaluation-harness asks by default.
        order: infilling prompts in "psm" (prefix, suffix, middle) or "spm" order: the row's `suffix_first`.

    Raises:
        EvalError: an unknown style or order, or one that does not go with the benchmark.
    """
    if style not in STYLES:
        raise EvalError(f"unknown style {style!r}: one of {', '.join(STYLES)}")
    if order not in ORDERS:
        raise EvalError(f"unknown order {order!r}: one of {', '.join(ORDERS)}")
    infilling = benchmark in INFILLING
    if infilling and (style != "base" or strip):
        raise EvalError(f"{benchmark} has one style of prompt: leave style and strip as they are")
    if not infilling and order != "psm":
        raise EvalError(f"order {order} is for infilling, not for {benchmark}")
    problems = load_problems(benchmark, data_path).values()
    examples = ""
    if benchmark == "mbpp" and style == "base":
        examples = "".join(
            f"{_mbpp_task(one)}[BEGIN]\n{one.canonical_solution}\n[DONE]\n\n" for one in mbpp_examples(data_path)
        )
    rows = []
    for problem in problems:
        text = _prompt(problem, style, examples)
        row: Row = {
            "task_id": problem.task_id,
            "prompt": text.strip() if strip else text,
            "entry_point": problem.entry_point,
        }
        if infilling:
            row |= {"suffix": problem.suffix, "suffix_first": order == "spm"}
        rows.append(row)
    return rows


def _prompt(problem: Problem, style: str, examples: str) -> str:
    if problem.description:
        return _mbpp_task(problem) if style == "instruct" else f"{examples}{_mbpp_task(problem)}[BEGIN]\n"
    return _ASK.format(prompt=problem.prompt.strip()) if style == "instruct" else problem.prompt


def _mbpp_task(problem: Problem) -> str:
    return _ASK_MBPP.format(text=problem.description, tests="\n".join(problem.examples))
