"""The operators' mathematics in NumPy float64, one line at a time, and random inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
ORDER = ("attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3")
MATRICES = tuple(name for name in ORDER if "norm" not in name)
GROUP = 64


@dataclass(frozen=True)
class Sizes:
    """One layer: query heads N, key/value heads K, head width D, hidden H, feed-forward F."""

    heads: int
    kv_heads: int
    width: int
    hidden: int
    ffn: int

    def weights(self, generator: np.random.Generator) -> dict[str, NDArray[np.float32]]:
        query, key = self.heads * self.width, self.kv_heads * self.width
        shapes = {
            "attention_norm": (self.hidden,),
            "wq": (query, self.hidden),
            "wk": (key, self.hidden),
            "wv": (key, self.hidden),
            "wo": (self.hidden, query),
            "ffn_norm": (self.hidden,),
            "w1": (self.ffn, self.hidden),
            "w2": (self.hidden, self.ffn),
            "w3": (self.ffn, self.hidden),
        }
        drawn = {}
        for name, shape in shapes.items():
            scale = 1.0 if len(shape) == 1 else shape[1] ** -0.5
            drawn[name] = (scale * generator.standard_normal(shape)).astype(np.float32)
        return drawn


def quantized(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """weight [out, in] as whole numbers and the scales [out, groups] of their groups."""
    rows, columns = weight.shape
    groups = -(-columns // GROUP)
    padded = np.zeros((rows, groups * GROUP))
    padded[:, :columns] = weight
    padded = padded.reshape(rows, groups, GROUP)
    scales = (np.abs(padded).max(-1) / 127).astype(np.float16)
    numbers = np.clip(np.rint(padded / np.maximum(scales[..., None], 1e-8)), -127, 127).astype(np.int8)
    return np.ascontiguousarray(numbers.reshape(rows, -1)[:, :columns]), scales


def dequantized(numbers: NDArray[np.int8], scales: NDArray[np.float16]) -> Array:
    return numbers * scales.astype(np.float64).repeat(GROUP, axis=1)[:, : numbers.shape[1]]


def rotary(positions: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cos and sin [positions, width], both halves equal."""
    angles = np.arange(positions)[:, None] * 1e4 ** (-np.arange(0, width, 2) / width)
    angles = np.concatenate([angles, angles], axis=1)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    left, right = np.split(x, 2, axis=-1)
    return x * cos + np.concatenate([-right, left], axis=-1) * sin


def softmax(scores: Array) -> Array:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def exact(x: Array) -> Array:
    return x


def bfloat16(x: Array) -> Array:
    """x rounded to float32 and then to 8 significant bits, to the nearest, ties to even."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(np.float64)


def layer(
    x: NDArray[np.float32],
    positions: NDArray[np.int32],
    cos: NDArray[np.float32],
    sin: NDArray[np.float32],
    keys: NDArray[np.float32],
    values: NDArray[np.float32],
    weights: dict[str, NDArray[np.float32]],
    eps: float,
    rounded: Callable[[Array], Array] = exact,
) -> tuple[Array, Array, Array]:
    """What `cached_layer` does: (output, keys, values) with the caches as they are afterwards, in float64.

    `rounded` is applied to the operands of every product.
    """
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    w = {name: rounded(value) if name in MATRICES else value for name, value in w.items()}
    batch, length = positions.shape
    width = cos.shape[1]
    heads, kv_heads = w["wq"].shape[0] // width, w["wk"].shape[0] // width
    cached_keys = keys.astype(np.float64).reshape(batch, kv_heads, -1, width)
    cached_values = values.astype(np.float64).reshape(cached_keys.shape)
    spare = cached_keys.shape[2] - 1
    tokens = [(row, column) for row in range(batch) for column in range(length) if 0 <= positions[row, column] < spare]
    out = x.astype(np.float64).reshape(batch, length, -1).copy()
    queries = {}
    for row, column in tokens:
        position = positions[row, column]
        normed = rounded(rms_norm(out[row, column], w["attention_norm"], eps))
        turn = (cos[position].astype(np.float64), sin[position].astype(np.float64))
        queries[row, column] = rotate((w["wq"] @ normed).reshape(heads, width), *turn)
        cached_keys[row, :, position] = rotate((w["wk"] @ normed).reshape(kv_heads, width), *turn)
        cached_values[row, :, position] = (w["wv"] @ normed).reshape(kv_heads, width)
    if keys.dtype == np.float16:
        cached_keys = cached_keys.astype(np.float16).astype(np.float64)
        cached_values = cached_values.astype(np.float16).astype(np.float64)
    for row, column in tokens:
        seen = positions[row, column] + 1
        group = heads // kv_heads
        key = cached_keys[row, :, :seen].repeat(group, axis=0)
        value = cached_values[row, :, :seen].repeat(group, axis=0)
        query = rounded(queries[row, column] * (width**-0.5 * np.log2(np.e)))
        scores = np.einsum("nd,npd->np", query, rounded(key))
        shares = np.exp2(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("np,npd->nd", rounded(shares), rounded(value)) / shares.sum(-1, keepdims=True)
        middle = out[row, column] + w["wo"] @ rounded(mixed.reshape(-1))
        normed = rounded(rms_norm(middle, w["ffn_norm"], eps))
        gate = w["w1"] @ normed
        out[row, column] = middle + w["w2"] @ rounded(gate / (1 + np.exp(-gate)) * (w["w3"] @ normed))
    return out.reshape(x.shape), cached_keys.reshape(keys.shape), cached_values.reshape(values.shape)


def head(
    x: NDArray[np.float32],
    last: NDArray[np.int32],
    norm: NDArray[np.float32],
    weight: NDArray[np.float32],
    eps: float,
) -> tuple[NDArray[np.int64], Array]:
    """What `cached_head` does: (greedy, logits)."""
    normed = rms_norm(x.astype(np.float64)[last], norm.astype(np.float64), eps)
    logits = normed @ weight.astype(np.float64).T
    return logits.argmax(-1), logits
