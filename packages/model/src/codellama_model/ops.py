"""The one table of what differs by device: operation x {ascend, cpu, composed}.

A network is built with one entry (`Operations`) and calls nothing else that a device could do its own way. `composed`
runs on every backend and is what the other entries are held against; `ascend` calls MindSpore's fused operators; `cpu`
holds what an installed package offers under the entry point `codellama_model.operations` (codellama-kernels does), over
`composed` for the rest, and is called with the compute_dtype of prompts. This package imports no such package: without
one, `cpu` is `composed`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib.metadata import entry_points
from typing import Any

import mindspore as ms

from codellama_model import ascend, composed

ENTRY_POINT = "codellama_model.operations"
Operation = Callable[..., Any]


@dataclass(frozen=True)
class Operations:
    """One column of the table. Shapes and meaning of each operation: the functions of `composed`.

    `cache_dtype` is the element type of the caches that `cached_layers` is given.
    """

    linear: Operation
    rms_norm: Operation
    swiglu: Operation
    rotate: Operation
    causal_mask: Operation
    document_mask: Operation
    causal_attention: Operation
    cached_layers: Operation
    cached_head: Operation
    cache_dtype: Any
    linear_cross_entropy: Callable[..., Operation]
    vocabulary_slice: Operation
    vocabulary_slice_gradient: Operation
    adamw: Operation
    squared_norm: Operation


COMPOSED = Operations(
    linear=composed.linear,
    rms_norm=composed.rms_norm,
    swiglu=composed.swiglu,
    rotate=composed.rotate,
    causal_mask=composed.causal_mask,
    document_mask=composed.document_mask,
    causal_attention=composed.causal_attention,
    cached_layers=composed.cached_layers,
    cached_head=composed.cached_head,
    cache_dtype=ms.float32,
    linear_cross_entropy=composed.LinearCrossEntropy,
    vocabulary_slice=composed.vocabulary_slice,
    vocabulary_slice_gradient=composed.vocabulary_slice_gradient,
    adamw=composed.adamw,
    squared_norm=composed.squared_norm,
)

ASCEND = replace(
    COMPOSED,
    rms_norm=ascend.rms_norm,
    causal_mask=ascend.causal_mask,
    document_mask=ascend.document_mask,
    causal_attention=ascend.causal_attention,
)


@lru_cache(maxsize=2)
def _cpu(compute_dtype: str) -> Operations:
    entries = entry_points(group=ENTRY_POINT, name="cpu")
    if not entries:
        return _float32_only(COMPOSED, compute_dtype)
    offered: dict[str, Any] = {}
    for entry in entries:
        offered |= entry.load()(compute_dtype)
    return replace(COMPOSED, **offered)


def _float32_only(operations: Operations, compute_dtype: str) -> Operations:
    if compute_dtype != "float32":
        raise ValueError(f"compute_dtype {compute_dtype} is not served for prompts here; choose float32")
    return operations


TABLE: dict[str, Callable[[str], Operations]] = {
    "ascend": partial(_float32_only, ASCEND),
    "cpu": _cpu,
    "composed": partial(_float32_only, COMPOSED),
}


def select(name: str | None = None, compute_dtype: str = "float32") -> Operations:
    """The entry of that name, or the one for the device MindSpore runs on.

    Args:
        name: of the entry.
        compute_dtype: to what `cached_layers` may round the operands of a prompt's products: "float32", or "bfloat16"
            where an installed package and the processor have such products. All else is float32 either way.

    Raises:
        ValueError: no such entry, or a compute_dtype that it does not serve here.
    """
    if name is None:
        target = ms.get_context("device_target")
        name = target.lower() if target.lower() in TABLE else "composed"
    if name not in TABLE:
        raise ValueError(f"no operations named {name!r}; known: {', '.join(TABLE)}")
    return TABLE[name](compute_dtype)
