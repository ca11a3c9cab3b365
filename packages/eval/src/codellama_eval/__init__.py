"""HumanEval, infilling, HumanEval+ and MBPP: problems, prompts, extraction, the sandbox, pass@k. Needs no MindSpore.

Names are imported when they are first used, so that `codellama-eval --help` answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codellama_eval.errors import EvalError
    from codellama_eval.estimator import pass_at_k
    from codellama_eval.execution import Outcome
    from codellama_eval.extraction import extract, extract_file
    from codellama_eval.paper import paper_figures
    from codellama_eval.problems import BENCHMARKS, Problem, load_problems
    from codellama_eval.prompts import make_prompts
    from codellama_eval.report import Report
    from codellama_eval.scoring import evaluate, score, score_file
    from codellama_eval.stops import STOPS

__all__ = [
    "BENCHMARKS",
    "STOPS",
    "EvalError",
    "Outcome",
    "Problem",
    "Report",
    "evaluate",
    "extract",
    "extract_file",
    "load_problems",
    "make_prompts",
    "paper_figures",
    "pass_at_k",
    "score",
    "score_file",
]
__version__ = "0.1.0"

_MODULES = {
    "errors": ("EvalError",),
    "execution": ("Outcome",),
    "extraction": ("extract", "extract_file"),
    "paper": ("paper_figures",),
    "estimator": ("pass_at_k",),
    "problems": ("BENCHMARKS", "Problem", "load_problems"),
    "prompts": ("make_prompts",),
    "report": ("Report",),
    "scoring": ("evaluate", "score", "score_file"),
    "stops": ("STOPS",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
