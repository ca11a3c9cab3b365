"""Plain programs: what a program can reach of its tests, and that most solutions are plain."""

from __future__ import annotations

import ast
import importlib
import types

import pytest
from codellama_eval import Problem
from codellama_eval.sandbox.plain import MODULES, is_plain, names_used

DANGEROUS = (eval, exec, compile, getattr, setattr, delattr, globals, locals, vars, open, __import__, type, object)


def plain(code: str, *used_by_tests: str) -> bool:
    return is_plain(ast.parse(code), set(used_by_tests))


@pytest.mark.parametrize("name", MODULES)
def test_nothing_that_is_allowed_of_a_module_leads_out(name: str) -> None:
    module = importlib.import_module(name)
    for attribute in MODULES[name]:
        value = getattr(module, attribute, None)
        assert not isinstance(value, types.ModuleType), attribute
        assert not (isinstance(value, type) and issubclass(value, type)), attribute
        assert all(value is not one for one in DANGEROUS), attribute


def test_nearly_all_canonical_solutions_are_plain(problems: dict[str, Problem]) -> None:
    """32, 38 and 50 define helpers that their tests call; 95 stores to a name of a builtin, 160 calls `eval`."""
    found = [
        task_id
        for task_id, problem in problems.items()
        if not plain(problem.program(problem.canonical_solution), *(names_used(problem.tests) - {problem.entry_point}))
    ]
    assert found == ["HumanEval/32", "HumanEval/38", "HumanEval/50", "HumanEval/95", "HumanEval/160"]


@pytest.mark.parametrize(
    "code",
    [
        "import math\ndef f(x): return math.sqrt(x)",
        "from typing import List\ndef f(x: List[int]): return x",
        "from collections import Counter, defaultdict\ndef f(x): return Counter(x).most_common()",
        "import re\ndef f(x): return re.sub('a', 'b', x)",
        "def f(x):\n    try: return int(x)\n    except ValueError as e: return None",
        "def f(x): return f'{x:>3}' + str(type(x) == int) if x is not None else ''",
        "from functools import lru_cache\n@lru_cache(None)\ndef f(x): return 1 if x < 2 else f(x - 1)",
        "f = lambda x: [y for y in x if (z := y) > 1]",
        "from math import *\ndef f(x): return floor(x)",
    ],
)
def test_ordinary_programs_are_plain(code: str) -> None:
    assert plain(code)


@pytest.mark.parametrize(
    "code",
    [
        "import os",
        "import sys",
        "from os import path",
        "from . import x",
        "import math as abs",
        "from math import floor as check_it",
        "import numbers",
        "from typing import Type",
        "from typing import get_type_hints",
        "from typing import *",
        "import functools\nfunctools.update_wrapper(1, 2)",
        "from functools import wraps",
        "from operator import attrgetter",
        "import operator\noperator.attrgetter('a')",
        "import math\nm = math",
        "import math\nprint(math)",
        "import math\nmath.fabs = 1",
        "import random\nrandom.Random",
        "import re\nre.enum",
        "import math\nmath.__dict__",
        "import math\ndef f(math): return math.abs",
        "class A: pass",
        "x = type",
        "x = type(1)",
        "type(type(1))('A', (), {})",
        "type('A', (), {}) == 1",
        "t = type(1) == 1; t = type",
        "getattr(1, 'a')",
        "eval('1')",
        "exec('1')",
        "__import__('os')",
        "globals()",
        "vars()",
        "open('x')",
        "object()",
        "super()",
        "().__class__",
        "(x for x in ()).gi_frame",
        "e.tb_frame",
        "f.f_back",
        "'{0.__class__}'.format(1)",
        "'{0.a}'.format_map(1)",
        "abs = 1",
        "def abs(x): return 1",
        "def f(abs): return 1",
        "def f(x):\n    global abs\n    abs = 1",
        "[abs for abs in x]",
        "(abs := 1)",
        "for abs in x: pass",
        "try: pass\nexcept ValueError as abs: pass",
        "del abs",
        "helper = 1",
        "def helper(): pass",
        "__builtins__",
        "__debug__",
        "match x:\n    case object(__class__=y): pass",
        "async def f(): pass",
        "with x as y: pass",
        "x.y = 1",
        "del x.y",
    ],
)
def test_programs_that_might_reach_their_tests_are_not(code: str) -> None:
    assert not plain(code, "helper", "check_it")


def test_names_that_tests_use() -> None:
    check = "def check(candidate):\n    for i in range(3):\n        assert candidate(i) == poly(math.pi)\n"
    tests = f"import math\n{check}check(f)"
    assert names_used(tests) == {"f", "poly"}
