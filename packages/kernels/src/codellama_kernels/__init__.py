"""Fused CPU operators for MindSpore graphs.

What they compute: `cached` (decoder layers over key/value caches, head with greedy choice), and for training, with
gradients, `layers` (products, norm, activation, positions, attention), `loss` and `optimizer`; for the processes of one
machine, `shared_sum`. Whether they can be used here: `available`, `reason`. How others find them: the entry points
`codellama_model.operations` and `codellama_parallel.sums`, which name `operations` and `sums` below.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from types import ModuleType
from typing import Any

from codellama_kernels.library import available, has_bfloat16_products, instruction_set, reason, threads

__all__ = ["available", "has_bfloat16_products", "instruction_set", "operations", "reason", "sums", "threads"]


def operations(compute_dtype: str = "float32") -> dict[str, Any]:
    """Name -> operator, as the network's table of operations takes them; empty where the library is missing.

    The reason is logged once, as a warning. Signatures: the modules of the same names as below. "cache_dtype" is the
    element type that the caches should have.

    Args:
        compute_dtype: of the products of prompts: "float32", or "bfloat16" (`cached.cached_layers_bfloat16`). All else
            is float32 either way.

    Raises:
        ValueError: another compute_dtype, or bfloat16 on a processor without such products.
    """
    if compute_dtype not in ("float32", "bfloat16"):
        raise ValueError(f"compute_dtype must be float32 or bfloat16 on CPU, found {compute_dtype!r}")
    if compute_dtype == "bfloat16" and not (available() and has_bfloat16_products()):
        why = reason() or f"this processor has none (in use: {instruction_set()}; needed: Intel AMX)"
        raise ValueError(f"compute_dtype bfloat16 needs products in bfloat16: {why}; choose float32")
    if not available():
        _warn()
        return {}
    import mindspore as ms  # noqa: PLC0415  (which asking for `available` need not load)

    from codellama_kernels import cached, layers, loss, optimizer  # noqa: PLC0415

    return {
        "cached_layers": cached.cached_layers_bfloat16 if compute_dtype == "bfloat16" else cached.cached_layers,
        "cached_head": cached.cached_head,
        "cache_dtype": ms.float16,
        "linear": layers.linear,
        "rms_norm": layers.rms_norm,
        "swiglu": layers.swiglu,
        "rotate": layers.rotate,
        "causal_mask": layers.causal_mask,
        "document_mask": layers.document_mask,
        "causal_attention": layers.causal_attention,
        "linear_cross_entropy": loss.LinearCrossEntropy,
        "vocabulary_slice": loss.vocabulary_slice,
        "vocabulary_slice_gradient": loss.vocabulary_slice_gradient,
        "adamw": optimizer.adamw,
        "squared_norm": optimizer.squared_norm,
    }


def sums() -> ModuleType | None:
    """The module `shared_sum`, by which processes of one machine add up; None where the library is missing."""
    if not available():
        return None
    from codellama_kernels import shared_sum  # noqa: PLC0415

    return shared_sum


@lru_cache(maxsize=1)
def _warn() -> None:
    logging.getLogger(__name__).warning("%s; computing without fused operators", reason())
