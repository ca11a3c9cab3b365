"""The one table of what differs by device: operation x {ascend, composed}.

A network is built with one entry (`Operations`) and calls nothing else that a device could do its own way. `composed`
runs on every backend and is what the other entries are held against; `ascend` calls MindSpore's fused operators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import mindspore as ms

from codellama_model import ascend, composed

Operation = Callable[..., ms.Tensor]


@dataclass(frozen=True)
class Operations:
    """One column of the table. Shapes and meaning of each operation: the functions of `composed`."""

    linear: Operation
    rms_norm: Operation
    swiglu: Operation
    rotate: Operation
    causal_mask: Operation
    causal_attention: Operation
    cached_attention: Operation
    cross_entropy: Callable[[int], Operation]


COMPOSED = Operations(
    linear=composed.linear,
    rms_norm=composed.rms_norm,
    swiglu=composed.swiglu,
    rotate=composed.rotate,
    causal_mask=composed.causal_mask,
    causal_attention=composed.causal_attention,
    cached_attention=composed.cached_attention,
    cross_entropy=composed.CrossEntropy,
)

ASCEND = replace(
    COMPOSED,
    rms_norm=ascend.rms_norm,
    causal_mask=ascend.causal_mask,
    causal_attention=ascend.causal_attention,
)

TABLE: dict[str, Operations] = {"composed": COMPOSED, "ascend": ASCEND}


def select(name: str | None = None) -> Operations:
    """The entry of that name, or the one for the device MindSpore runs on.

    Raises:
        ValueError: no such entry.
    """
    if name is None:
        name = "ascend" if ms.get_context("device_target") == "Ascend" else "composed"
    if name not in TABLE:
        raise ValueError(f"no operations named {name!r}; known: {', '.join(TABLE)}")
    return TABLE[name]
