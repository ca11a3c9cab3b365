"""What the Code Llama paper reports (arXiv:2308.12950), to stand beside a figure of one's own.

Table 2: HumanEval zero-shot and MBPP 3-shot; pass@1 greedy, pass@10 and pass@100 with nucleus sampling at p=0.95 and
temperature 0.8. Table 14: infilling, pass@1, prefix-suffix-middle and suffix-prefix-middle.
"""

from __future__ import annotations

import re

_KS = (1, 10, 100)
# (variant, size): (HumanEval @1 @10 @100, MBPP @1 @10 @100), percent
_TABLE_2 = {
    ("base", "7b"): ((33.5, 59.6, 85.9), (41.4, 66.7, 82.5)),
    ("base", "13b"): ((36.0, 69.4, 89.8), (47.0, 71.7, 87.1)),
    ("base", "34b"): ((48.8, 76.8, 93.0), (55.0, 76.2, 86.6)),
    ("base", "70b"): ((53.0, 84.6, 96.2), (62.4, 81.1, 91.9)),
    ("instruct", "7b"): ((34.8, 64.3, 88.1), (44.4, 65.4, 76.8)),
    ("instruct", "13b"): ((42.7, 71.6, 91.6), (49.4, 71.2, 84.1)),
    ("instruct", "34b"): ((41.5, 77.2, 93.5), (57.0, 74.6, 85.4)),
    ("instruct", "70b"): ((67.8, 90.3, 97.3), (62.2, 79.6, 89.2)),
    ("python", "7b"): ((38.4, 70.3, 90.6), (47.6, 70.3, 84.8)),
    ("python", "13b"): ((43.3, 77.4, 94.1), (49.0, 74.0, 87.6)),
    ("python", "34b"): ((53.7, 82.8, 94.7), (56.2, 76.4, 88.2)),
    ("python", "70b"): ((57.3, 89.3, 98.4), (65.6, 81.5, 91.9)),
}
# size: benchmark: (PSM, SPM), percent
_TABLE_14 = {
    "7b": {
        "infilling-single-line": (74.1, 83.3),
        "infilling-multi-line": (48.2, 50.8),
        "infilling-random-span": (59.7, 39.0),
    },
    "13b": {
        "infilling-single-line": (75.9, 85.6),
        "infilling-multi-line": (51.0, 56.1),
        "infilling-random-span": (63.6, 41.9),
    },
}


def paper_figures(model: str, benchmark: str) -> dict[str, float]:
    """The paper's figures for a model, as shares; empty where it has none.

    Args:
        model: a name or path in which the size and, but for base models, the variant can be seen:
            "codellama_34b", "codellama/CodeLlama-7b-Instruct-hf".
        benchmark: as `load_problems` names it.

    Returns:
        "pass@1" and so on; for infilling "pass@1 (psm)" and "pass@1 (spm)".
    """
    name = model.lower()
    size = re.search(r"(?<!\d)(7|13|34|70)b", name)
    if "llama" not in name or size is None:
        return {}
    variant = next((one for one in ("instruct", "python") if one in name), "base")
    if benchmark in ("humaneval", "mbpp"):
        figures = _TABLE_2[variant, size[0]][benchmark == "mbpp"]
        return {f"pass@{k}": round(value / 100, 3) for k, value in zip(_KS, figures, strict=True)}
    if variant == "base" and benchmark in _TABLE_14.get(size[0], {}):
        psm, spm = _TABLE_14[size[0]][benchmark]
        return {"pass@1 (psm)": round(psm / 100, 3), "pass@1 (spm)": round(spm / 100, 3)}
    return {}
