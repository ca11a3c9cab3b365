"""The one table of what differs by device: operation x {ascend, cpu, composed}.

A network is built with one entry (`Operations`) and calls nothing else that a device could do its own way. `composed`
runs on every backend and is what the other entries are held against; `ascend` calls MindSpore's fused operators; `cpu`
holds what an installed package offers under the entry point `codellama_model.operations` (codellama-kernels does), over
`composed` for the rest. This package imports no such package: without one, `cpu` is `composed`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
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


@lru_cache(maxsize=1)
def _cpu() -> Operations:
    offered: dict[str, Any] = {}
    for entry in entry_points(group=ENTRY_POINT, name="cpu"):
        offered |= entry.load()()
    return replace(COMPOSED, **offered)


TABLE: dict[str, Callable[[], Operations]] = {
    "ascend": lambda: ASCEND,
    "cpu": _cpu,
    "composed": lambda: COMPOSED,
}


def select(name: str | None = None) -> Operations:
    """The entry of that name, or the one for the device MindSpore runs on.

    Raises:
        ValueError: no such entry.
    """
    if name is None:
        target = ms.get_context("device_target")
        name = target.lower() if target.lower() in TABLE else "composed"
    if name not in TABLE:
        raise ValueError(f"no operations named {name!r}; known: {', '.join(TABLE)}")
    return TABLE[name]()
