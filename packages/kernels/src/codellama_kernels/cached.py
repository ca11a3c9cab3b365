"""The operators of the cached forward pass: all decoder layers, and the head.

They are plain functions for use inside a graph-mode `Cell.construct`; called eagerly they work but are slow. They
compute in float32 whatever the type of weights and cache; `cached_layers_bfloat16` is the exception.

**Weights** are float32, float16, or int8 with scales: `GROUP` neighbours in a row of an int8 matrix [out, in] share one
float16 factor of its scales [out, ceil(in / GROUP)], and the weight is the product of the two.

**The cache** of a layer is a pair of Parameters `[B * K * L, D]`, float32 or float16: position p of key/value head k of
row b lies at `(b * K + k) * L + p`. `cached_layers` writes them in place, unseen by the graph: the output depends on
the writes, so whatever consumes the output runs after them. To read the caches otherwise, or to call the operator twice
on one cache, make the later call's x depend on the earlier output.

**Padding**: a token whose position is not in 0..L-2 costs nothing. Nothing is written for it, and its row of the output
is its row of x. Position L-1 is spare, so that a caller has a position to give it.

Shapes: B batch, S new tokens a row, T = B * S, N query heads, K key/value heads, D head width, H hidden, F feed-forward
width, L cache positions, P rows of the rotary table, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mindspore as ms
from mindspore import Tensor, ops

from codellama_kernels.library import LIBRARY
from codellama_kernels.operator import require, sides

GROUP = 64

_INPUTS = ("x", "positions", "cos", "sin", "eps")
_MATRICES = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
_LAYER = ("attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3", "keys", "values")
_LAYER_INT8 = (*_LAYER, *(f"scales of {name}" for name in _MATRICES))
_HEAD = ("x", "last", "norm", "weight", "eps")
_HEAD_INT8 = (*_HEAD, "scales of weight")


def cached_layers(
    x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, layers: tuple[Tensor, ...], eps: float
) -> Tensor:
    """Decoder layers one after the other: each y = x + attention(norm(x)), then y + feed_forward(norm(y)).

    A token at position p sees the cache positions 0..p, its own and those of the same call included.

    Args:
        x: float32 [T, H], T = B * S.
        positions: int32 [B, S].
        cos: float32 [P, D], both halves equal; P >= L - 1.
        sin: float32 [P, D].
        layers: of each layer in turn: attention_norm float32 [H], wq [N * D, H], wk [K * D, H], wv [K * D, H],
            wo [H, N * D], ffn_norm float32 [H], w1 [F, H] (the gate), w2 [H, F], w3 [F, H], and its caches keys and
            values, Parameters [B * K * L, D] that are written. The matrices are float32 or float16, each as it likes;
            or all are int8, and the scales of wq, wk, wv, wo, w1, w2 and w3 follow the caches.
        eps: of the norms.

    Returns:
        float32 [T, H].

    Raises:
        ValueError: shapes that do not fit each other (when the graph is compiled).
        TypeError: an element type that is not served.
    """
    return _layers(x, positions, cos, sin, Tensor([eps], ms.float32), *layers)


def cached_layers_bfloat16(
    x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, layers: tuple[Tensor, ...], eps: float
) -> Tensor:
    """`cached_layers`, with the products of prompts in bfloat16.

    From 24 tokens on (T, padding not counted), both operands of every product, weights and caches included, are rounded
    to bfloat16 (8 significant bits; to the nearest, ties to even) and the products summed in float32. Norms, rotation,
    softmax, activation and residuals stay float32, as does what is written to the caches. Fewer tokens are computed as
    `cached_layers` computes them. Weights keep the type and the memory they have: their rounding is part of the call.

    Raises:
        RuntimeError: the processor has no such products (`has_bfloat16_products`), when the graph runs.
    """
    return _layers_bfloat16(x, positions, cos, sin, Tensor([eps], ms.float32), *layers)


def cached_head(
    x: Tensor, last: Tensor, norm: Tensor, weight: Tensor, eps: float, scales: tuple[Tensor, ...] = ()
) -> tuple[Tensor, Tensor]:
    """Logits after some of the tokens, and the first of the largest of each.

    Args:
        x: float32 [T, H], as the last layer left it.
        last: int32 [B], the rows of x that are wanted.
        norm: float32 [H], of the last norm.
        weight: [V, H], float32, float16 or int8.
        eps: of the norm.
        scales: one entry, the weight's, where that is int8.

    Returns:
        (greedy int32 [B], logits float32 [B, V]).

    Raises:
        ValueError: shapes that do not fit each other (when the graph is compiled).
        TypeError: an element type that is not served.
    """
    return _head(x, last, norm, weight, Tensor([eps], ms.float32), *scales)


def _layers_shape(*shapes: list[int]) -> list[int]:
    """Checks the shapes of `cached_layers` and gives its output's."""
    of = dict(zip(_INPUTS, shapes, strict=False))
    layers = _by_layer(shapes, lambda shape: len(shape) == 2)
    batch, length = sides("positions", of["positions"], 2)
    tokens, hidden = sides("x", of["x"], 2)
    rows, width = sides("cos", of["cos"], 2)
    first = layers[0]
    query, key, ffn = (sides(name, first[name], 2)[0] for name in ("wq", "wk", "w1"))
    if width % 2:
        raise ValueError(f"cos has {width} columns; the width of a head must be even")
    if key % width or query % key:
        raise ValueError(
            f"wq has {query} rows and wk {key}: with heads of {width}, wk's must be whole heads and wq's a multiple"
        )
    caches = batch * (key // width)
    positions = sides("keys", first["keys"], 2)[0] // caches
    if positions - 1 > rows:
        raise ValueError(f"a cache of {positions} positions needs {positions - 1} rows of cos, found {rows}")
    require("x", of["x"], [batch * length, hidden])
    require("sin", of["sin"], [rows, width])
    expected = {
        "attention_norm": [hidden],
        "wq": [query, hidden],
        "wk": [key, hidden],
        "wv": [key, hidden],
        "wo": [hidden, query],
        "ffn_norm": [hidden],
        "w1": [ffn, hidden],
        "w2": [hidden, ffn],
        "w3": [ffn, hidden],
        "keys": [caches * positions, width],
        "values": [caches * positions, width],
    }
    expected |= {f"scales of {name}": _scales_shape(expected[name]) for name in _MATRICES}
    for number, layer in enumerate(layers):
        for name, shape in layer.items():
            require(name if len(layers) == 1 else f"{name} of layer {number}", shape, expected[name])
    return [tokens, hidden]


def _layers_type(*types: ms.Type) -> ms.Type:
    found = [one.element_type() for one in types]
    for name, kind in zip(_INPUTS, found, strict=False):
        _require_type(name, kind, ms.int32 if name == "positions" else ms.float32)
    for layer in _by_layer(found, lambda kind: kind == ms.float16):
        for name, kind in layer.items():
            if name.startswith("scales of "):
                _require_type(name, kind, ms.float16)
            elif name in _MATRICES and f"scales of {name}" in layer:
                _require_type(name, kind, ms.int8)
            elif name in _MATRICES or name in ("keys", "values"):
                _require_type(name, kind, ms.float32, ms.float16)
            else:
                _require_type(name, kind, ms.float32)
        if layer["keys"] != layer["values"]:
            raise TypeError(f"keys are {layer['keys']} and values {layer['values']}; they must be of one type")
    return ms.float32


def _head_shape(*shapes: list[int]) -> tuple[list[int], list[int]]:
    """Checks the shapes of `cached_head` and gives its outputs'."""
    of = dict(zip(_HEAD_INT8, shapes, strict=False))
    _, hidden = sides("x", of["x"], 2)
    (batch,) = sides("last", of["last"], 1)
    vocabulary, _ = sides("weight", of["weight"], 2)
    require("norm", of["norm"], [hidden])
    require("weight", of["weight"], [vocabulary, hidden])
    if "scales of weight" in of:
        require("scales of weight", of["scales of weight"], _scales_shape([vocabulary, hidden]))
    return [batch], [batch, vocabulary]


def _head_type(*types: ms.Type) -> tuple[ms.Type, ms.Type]:
    found = dict(zip(_HEAD_INT8, (one.element_type() for one in types), strict=False))
    quantized = "scales of weight" in found
    for name, kind in found.items():
        if name == "last":
            _require_type(name, kind, ms.int32)
        elif name == "weight":
            _require_type(name, kind, *([ms.int8] if quantized else [ms.float32, ms.float16]))
        else:
            _require_type(name, kind, ms.float16 if name.startswith("scales") else ms.float32)
    return ms.int32, ms.float32


def _by_layer(values: Sequence[Any], is_scales: Callable[[Any], bool]) -> list[dict[str, Any]]:
    """Name -> value of each layer. Behind the first layer's caches come its scales, or the next layer's norm."""
    rest = values[len(_INPUTS) :]
    plain = len(_LAYER)
    names = _LAYER_INT8 if len(rest) > plain and is_scales(rest[plain]) else _LAYER
    if not rest or len(rest) % len(names):
        raise ValueError(
            f"layers must hold {plain} tensors a layer, or {len(_LAYER_INT8)} with scales of int8; found {len(rest)}"
        )
    return [dict(zip(names, rest[at : at + len(names)], strict=True)) for at in range(0, len(rest), len(names))]


def _scales_shape(matrix: list[int]) -> list[int]:
    rows, columns = matrix
    return [rows, -(-columns // GROUP)]


def _require_type(name: str, found: ms.Type, *served: ms.Type) -> None:
    if found not in served:
        raise TypeError(f"{name} must be {' or '.join(str(one) for one in served)}, found {found}")


_layers = ops.Custom(f"{LIBRARY}:codellama_cached_layers", _layers_shape, _layers_type, func_type="aot")
_layers_bfloat16 = ops.Custom(
    f"{LIBRARY}:codellama_cached_layers_bfloat16", _layers_shape, _layers_type, func_type="aot"
)
_head = ops.Custom(f"{LIBRARY}:codellama_cached_head", _head_shape, _head_type, func_type="aot")
