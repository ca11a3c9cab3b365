"""Fused CPU operators for MindSpore graphs.

What they compute: `cached` (decoder layer over a key/value cache, head with greedy choice). Whether they can be used
here: `available`, `reason`. How the network finds them: the entry point `codellama_model.operations`, which names
`operations` below.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from codellama_kernels.library import available, instruction_set, reason, threads

__all__ = ["available", "instruction_set", "operations", "reason", "threads"]


def operations() -> dict[str, Callable[..., Any]]:
    """Name -> operator, as the network's table of operations takes them; empty where the library is missing.

    The reason is logged once, as a warning. Signatures: `codellama_kernels.cached`.
    """
    if not available():
        _warn()
        return {}
    from codellama_kernels import cached  # noqa: PLC0415  (loads MindSpore, which asking for `available` need not)

    return {"cached_layer": cached.cached_layer, "cached_head": cached.cached_head}


@lru_cache(maxsize=1)
def _warn() -> None:
    logging.getLogger(__name__).warning("%s; computing without fused operators", reason())
