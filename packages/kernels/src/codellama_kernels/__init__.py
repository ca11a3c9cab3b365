"""Fused CPU operators for MindSpore graphs.

What they compute: `cached` (decoder layers over key/value caches, head with greedy choice), and for training, with
gradients, `layers` (products, norm, activation, positions, attention), `loss` and `optimizer`. Whether they can be used
here: `available`, `reason`. How the network finds them: the entry point `codellama_model.operations`, which names
`operations` below.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from codellama_kernels.library import available, instruction_set, reason, threads

__all__ = ["available", "instruction_set", "operations", "reason", "threads"]


def operations() -> dict[str, Any]:
    """Name -> operator, as the network's table of operations takes them; empty where the library is missing.

    The reason is logged once, as a warning. Signatures: the modules of the same names as below. "cache_dtype" is the
    element type that the caches should have.
    """
    if not available():
        _warn()
        return {}
    import mindspore as ms  # noqa: PLC0415  (which asking for `available` need not load)

    from codellama_kernels import cached, layers, loss, optimizer  # noqa: PLC0415

    return {
        "cached_layers": cached.cached_layers,
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


@lru_cache(maxsize=1)
def _warn() -> None:
    logging.getLogger(__name__).warning("%s; computing without fused operators", reason())
