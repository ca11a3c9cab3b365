"""The training operators' mathematics in NumPy float64, and derivatives of it by central differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from kernels_oracle import rms_norm, rotate, softmax  # noqa: F401  (part of this oracle)
from numpy.typing import NDArray

Array = NDArray[np.float64]
STEP = 1e-5  # of central differences in float64: error about STEP^2


def swiglu(gate: Array, up: Array) -> Array:
    return gate / (1 + np.exp(-gate)) * up


def attention(query: Array, key: Array, value: Array, first_key: NDArray[np.int32], scale: float) -> Array:
    """query [B, S, N, D], key and value [B, S, K, D]; token t of row b sees the keys first_key[b, t]..t."""
    length, group = query.shape[1], query.shape[2] // key.shape[2]
    key, value = key.repeat(group, axis=2), value.repeat(group, axis=2)
    places = np.arange(length)
    seen = (places <= places[:, None]) & (places >= first_key[:, :, None])  # [B or 1, S, S]
    scores = np.where(seen[:, None], np.einsum("bqnd,bknd->bnqk", query, key) * scale, -np.inf)
    mixed = np.einsum("bnqk,bknd->bqnd", softmax(scores), value)
    return mixed.reshape(len(query) * length, -1)


def log_sum_exp(logits: Array) -> Array:
    largest = logits.max(-1)
    return largest + np.log(np.exp(logits - largest[:, None]).sum(-1))


def cross_entropy(x: Array, weight: Array, labels: NDArray[np.int32], ignore_index: int, z_loss: float) -> Array:
    counted = labels != ignore_index
    logits = x[counted] @ weight.T
    lse = log_sum_exp(logits)
    return (lse - logits[np.arange(len(lse)), labels[counted]] + z_loss * lse**2).sum()


def slope(function: Callable[..., Array], arguments: list[Array], directions: list[Array], weights: Array) -> float:
    """Derivative of sum(function(...) * weights) along `directions`."""
    ahead, behind = (
        [value.astype(np.float64) + sign * STEP * way for value, way in zip(arguments, directions, strict=True)]
        for sign in (1, -1)
    )
    return float(((function(*ahead) - function(*behind)) * weights).sum() / (2 * STEP))
