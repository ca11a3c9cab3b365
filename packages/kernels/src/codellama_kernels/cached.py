"""The operators of the cached forward pass: a whole decoder layer, and the head.

Both are plain functions for use inside a graph-mode `Cell.construct`; called eagerly they work but are slow. They
compute in float32 whatever the type of weights and cache.

**The cache** of a layer is a pair of Parameters `[B * K * L, D]`, float32 or float16: position p of key/value head k of
row b lies at `(b * K + k) * L + p`. `cached_layer` writes them in place, unseen by the graph: the output depends on the
writes, so whatever consumes the output runs after them. To read the caches otherwise, or to call the layer twice on
one cache, make the later call's x depend on the earlier output.

**Padding**: a token whose position is not in 0..L-2 costs nothing. Nothing is written for it, and its row of the output
is its row of x. Position L-1 is spare, so that a caller has a position to give it.

Shapes: B batch, S new tokens a row, T = B * S, N query heads, K key/value heads, D head width, H hidden, F feed-forward
width, L cache positions, P rows of the rotary table, V vocabulary.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, ops

from codellama_kernels.library import LIBRARY

_LAYER_INPUTS = (
    "x",
    "positions",
    "cos",
    "sin",
    "keys",
    "values",
    "attention_norm",
    "wq",
    "wk",
    "wv",
    "wo",
    "ffn_norm",
    "w1",
    "w2",
    "w3",
    "eps",
)
_HEAD_INPUTS = ("x", "last", "norm", "weight", "eps")
_INTEGERS = ("positions", "last")
_EITHER = ("keys", "values", "wq", "wk", "wv", "wo", "w1", "w2", "w3", "weight")


def cached_layer(
    x: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    attention_norm: Tensor,
    wq: Tensor,
    wk: Tensor,
    wv: Tensor,
    wo: Tensor,
    ffn_norm: Tensor,
    w1: Tensor,
    w2: Tensor,
    w3: Tensor,
    eps: float,
) -> Tensor:
    """One decoder layer: y = x + attention(norm(x)), then y + feed_forward(norm(y)).

    A token at position p sees the cache positions 0..p, its own and those of the same call included.

    Args:
        x: float32 [T, H], T = B * S.
        positions: int32 [B, S].
        cos: float32 [P, D], both halves equal; P >= L - 1.
        sin: float32 [P, D].
        keys: the layer's key cache, a Parameter [B * K * L, D], float32 or float16; written.
        values: the value cache, as `keys`.
        attention_norm: float32 [H].
        wq: [N * D, H]; the matrices are float32 or float16, each as it likes.
        wk: [K * D, H].
        wv: [K * D, H].
        wo: [H, N * D].
        ffn_norm: float32 [H].
        w1: [F, H], the gate.
        w2: [H, F].
        w3: [F, H].
        eps: of both norms.

    Returns:
        float32 [T, H].

    Raises:
        ValueError: shapes that do not fit each other (when the graph is compiled).
        TypeError: an element type that is not served.
    """
    return _layer(
        x,
        positions,
        cos,
        sin,
        keys,
        values,
        attention_norm,
        wq,
        wk,
        wv,
        wo,
        ffn_norm,
        w1,
        w2,
        w3,
        Tensor([eps], ms.float32),
    )


def cached_head(x: Tensor, last: Tensor, norm: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Logits after some of the tokens, and the first of the largest of each.

    Args:
        x: float32 [T, H], as the last layer left it.
        last: int32 [B], the rows of x that are wanted.
        norm: float32 [H], of the last norm.
        weight: [V, H], float32 or float16.
        eps: of the norm.

    Returns:
        (greedy int32 [B], logits float32 [B, V]).

    Raises:
        ValueError: shapes that do not fit each other (when the graph is compiled).
        TypeError: an element type that is not served.
    """
    return _head(x, last, norm, weight, Tensor([eps], ms.float32))


def _layer_shape(*shapes: list[int]) -> list[int]:
    """Checks the shapes of `cached_layer` and gives its output's."""
    of = dict(zip(_LAYER_INPUTS, shapes, strict=True))
    batch, length = _sides("positions", of["positions"], 2)
    tokens, hidden = _sides("x", of["x"], 2)
    rows, width = _sides("cos", of["cos"], 2)
    query, key, ffn = (_sides(name, of[name], 2)[0] for name in ("wq", "wk", "w1"))
    if width % 2:
        raise ValueError(f"cos has {width} columns; the width of a head must be even")
    if key % width or query % key:
        raise ValueError(
            f"wq has {query} rows and wk {key}: with heads of {width}, wk's must be whole heads and wq's a multiple"
        )
    caches = batch * (key // width)
    positions = _sides("keys", of["keys"], 2)[0] // caches
    if positions - 1 > rows:
        raise ValueError(f"a cache of {positions} positions needs {positions - 1} rows of cos, found {rows}")
    expected = {
        "x": [batch * length, hidden],
        "sin": [rows, width],
        "keys": [caches * positions, width],
        "values": [caches * positions, width],
        "attention_norm": [hidden],
        "wq": [query, hidden],
        "wk": [key, hidden],
        "wv": [key, hidden],
        "wo": [hidden, query],
        "ffn_norm": [hidden],
        "w1": [ffn, hidden],
        "w2": [hidden, ffn],
        "w3": [ffn, hidden],
    }
    _require(of, expected)
    return [tokens, hidden]


def _head_shape(*shapes: list[int]) -> tuple[list[int], list[int]]:
    """Checks the shapes of `cached_head` and gives its outputs'."""
    of = dict(zip(_HEAD_INPUTS, shapes, strict=True))
    _, hidden = _sides("x", of["x"], 2)
    (batch,) = _sides("last", of["last"], 1)
    vocabulary, _ = _sides("weight", of["weight"], 2)
    _require(of, {"norm": [hidden], "weight": [vocabulary, hidden]})
    return [batch], [batch, vocabulary]


def _layer_type(*types: ms.Type) -> ms.Type:
    _require_types(_LAYER_INPUTS, types)
    return ms.float32


def _head_type(*types: ms.Type) -> tuple[ms.Type, ms.Type]:
    _require_types(_HEAD_INPUTS, types)
    return ms.int32, ms.float32


def _sides(name: str, shape: list[int], count: int) -> list[int]:
    if len(shape) != count:
        raise ValueError(f"{name} must have {count} axes, found shape {list(shape)}")
    return list(shape)


def _require(of: dict[str, list[int]], expected: dict[str, list[int]]) -> None:
    for name, shape in expected.items():
        if list(of[name]) != shape:
            raise ValueError(f"{name} must have shape {shape}, found {list(of[name])}")


def _require_types(names: tuple[str, ...], types: tuple[ms.Type, ...]) -> None:
    found = {name: kind.element_type() for name, kind in zip(names, types, strict=True)}
    for name, kind in found.items():
        if name in _INTEGERS:
            served = [ms.int32]
        elif name in _EITHER:
            served = [ms.float32, ms.float16]
        else:
            served = [ms.float32]
        if kind not in served:
            raise TypeError(f"{name} must be {' or '.join(str(one) for one in served)}, found {kind}")
    if "keys" in found and found["keys"] != found["values"]:
        raise TypeError(f"keys are {found['keys']} and values {found['values']}; they must be of one type")


_layer = ops.Custom(f"{LIBRARY}:codellama_cached_layer", _layer_shape, _layer_type, func_type="aot")
_head = ops.Custom(f"{LIBRARY}:codellama_cached_head", _head_shape, _head_type, func_type="aot")
