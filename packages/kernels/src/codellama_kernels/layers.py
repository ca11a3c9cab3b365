"""The operators of a layer over whole sequences, with their gradients: what training consists of.

All compute in float32, repeat bit by bit from run to run, and are meant for graph-mode `Cell.construct`. Each saves for
its gradient what the network holds anyway: RMSNorm adds one number a token, attention one a token and head; SwiGLU and
attention's weights are computed again.

Shapes: B batch, S sequence, T = B * S tokens, N query heads, K key/value heads, D head width, H hidden, F feed-forward.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Tensor, ops

from codellama_kernels.operator import declare, require, sides

Shape = list[int]


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [T, in] times weight [out, in] transposed -> [T, out]."""
    return _linear(x, weight)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [T, H] / sqrt(mean(x^2) + eps) * weight [H] (arXiv:1910.07467)."""
    return _rms_norm(x, weight, Tensor([eps], ms.float32))[0]


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, both [T, F] (arXiv:2002.05202)."""
    return _swiglu(gate, up)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, half-split form: x [B, S, heads, D]; cos and sin [B or 1, S, 1, D], which get no gradient."""
    return _rotate(x, cos, sin)


def causal_mask(length: int) -> Tensor:
    """The first key that each token of a row sees, int32 [1, S]: key 0."""
    return ops.zeros((1, length), ms.int32)


def document_mask(document_ids: Tensor) -> Tensor:
    """The same for packed rows, document_ids int32 [B, S] -> int32 [B, S]: the beginning of the token's document.

    A document is a run of equal ids.
    """
    return _document_starts(document_ids)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Each token attends to the keys from `mask` up to itself; memory grows with S, not with S^2.

    query [B, S, N, D], key and value [B, S, K, D], mask of `causal_mask` or `document_mask` -> [B * S, N * D].
    """
    return _attention(query, key, value, mask, Tensor([scale], ms.float32))[0]


def _linear_shape(x: Shape, weight: Shape) -> Shape:
    tokens, inputs = sides("x", x, 2)
    outputs = sides("weight", weight, 2)[0]
    require("weight", weight, [outputs, inputs])
    return [tokens, outputs]


def _linear_bprop(x: Tensor, weight: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
    return _linear_dx(dout, weight), _linear_dw(dout, x)


def _norm_bprop(x: Tensor, weight: Tensor, eps: Tensor, out: Any, dout: Any) -> tuple[Tensor, Tensor, Tensor]:
    dx, d_weight = _rms_norm_backward(x, weight, out[1], dout[0])
    return dx, d_weight, ops.zeros_like(eps)


def _norm_shape(x: Shape, weight: Shape, eps: Shape) -> tuple[Shape, Shape]:
    tokens, hidden = sides("x", x, 2)
    require("weight", weight, [hidden])
    return [tokens, hidden], [tokens]


def _swiglu_shape(gate: Shape, up: Shape) -> Shape:
    require("up", up, gate)
    return gate


def _swiglu_bprop(gate: Tensor, up: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
    return _swiglu_backward(gate, up, dout)


def _rotate_shape(x: Shape, cos: Shape, sin: Shape) -> Shape:
    batch, length, _, width = sides("x", x, 4)
    require("cos", cos, [1, length, 1, width], [batch, length, 1, width])
    require("sin", sin, cos)
    if width % 2:
        raise ValueError(f"x has heads of {width}; their width must be even")
    return x


def _rotate_bprop(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _rotate_backward(dout, cos, sin), ops.zeros_like(cos), ops.zeros_like(sin)


def _attention_shape(query: Shape, key: Shape, value: Shape, mask: Shape, scale: Shape) -> tuple[Shape, Shape]:
    batch, length, heads, width = sides("query", query, 4)
    kv_heads = sides("key", key, 4)[2]
    require("key", key, [batch, length, kv_heads, width])
    require("value", value, key)
    require("mask", mask, [1, length], [batch, length])
    if heads % kv_heads:
        raise ValueError(f"query has {heads} heads and key {kv_heads}; the first must be a multiple")
    return [batch * length, heads * width], [batch, heads, length]


def _attention_bprop(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: Tensor, out: Any, dout: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    gradients = _attention_backward(query, key, value, mask, scale, out[0], out[1], dout[0])
    return gradients[0], gradients[1], gradients[2], ops.zeros_like(mask), ops.zeros_like(scale)


_linear = declare("linear", ("x", "weight"), _linear_shape, bprop=_linear_bprop)
_linear_dx = declare("linear_dx", ("dy", "weight"), lambda dy, weight: [dy[0], weight[1]])
_linear_dw = declare("linear_dw", ("dy", "x"), lambda dy, x: [dy[1], x[1]])
_rms_norm = declare(
    "rms_norm", ("x", "weight", "eps"), _norm_shape, outputs=(ms.float32, ms.float32), bprop=_norm_bprop
)
_rms_norm_backward = declare(
    "rms_norm_backward",
    ("x", "weight", "rstd", "dy"),
    lambda x, weight, rstd, dy: (x, weight),
    outputs=(ms.float32, ms.float32),
)
_swiglu = declare("swiglu", ("gate", "up"), _swiglu_shape, bprop=_swiglu_bprop)
_swiglu_backward = declare(
    "swiglu_backward", ("gate", "up", "dy"), lambda gate, up, dy: (gate, up), outputs=(ms.float32, ms.float32)
)
_rotate = declare("rotate", ("x", "cos", "sin"), _rotate_shape, bprop=_rotate_bprop)
_rotate_backward = declare("rotate_backward", ("dy", "cos", "sin"), lambda dy, cos, sin: dy)
_document_starts = declare(
    "document_starts", ("document_ids",), lambda ids: sides("document_ids", ids, 2), ms.int32, ("document_ids",)
)
_ATTENTION_INPUTS = ("query", "key", "value", "mask", "scale")
_attention = declare(
    "attention",
    _ATTENTION_INPUTS,
    _attention_shape,
    outputs=(ms.float32, ms.float32),
    integers=("mask",),
    bprop=_attention_bprop,
)
_attention_backward = declare(
    "attention_backward",
    (*_ATTENTION_INPUTS, "out", "lse", "dout"),
    lambda query, key, value, *rest: (query, key, value),
    outputs=(ms.float32, ms.float32, ms.float32),
    integers=("mask",),
)

# Cheap to compute and as large as what the products save: computed again in the backward pass instead of being kept.
for _operator in (_rms_norm, _swiglu):
    _operator.recompute()
