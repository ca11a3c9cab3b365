"""The Llama forward pass in NumPy float64, as plainly as it can be said: the oracle of the tests.

Shapes: B batch, S sequence, N query heads, K key/value heads, D head width, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from codellama_model import LlamaConfig


def rms_norm(x, weight, eps):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * weight


def rotate(x, theta):
    """x [B, S, heads, D]: pair (i, i + D/2) of position s turned by s * theta^(-2i/D)."""
    length, width = x.shape[1], x.shape[3]
    angles = np.arange(length)[:, None] * theta ** (-np.arange(0, width, 2) / width)
    cos, sin = np.cos(angles)[:, None, :], np.sin(angles)[:, None, :]
    left, right = x[..., : width // 2], x[..., width // 2 :]
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def attention(x, weights, config):
    batch, length, _ = x.shape
    q, k, v = (
        (x @ weights[f"w{which}.weight"].T).reshape(batch, length, -1, config.head_size) for which in ("q", "k", "v")
    )
    q, k = rotate(q, config.theta), rotate(k, config.theta)
    shared = config.num_heads // config.kv_heads
    k, v = np.repeat(k, shared, axis=2), np.repeat(v, shared, axis=2)
    scores = np.einsum("bsnd,btnd->bnst", q, k) / np.sqrt(config.head_size)
    scores = np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)
    mixed = np.einsum("bnst,btnd->bsnd", softmax(scores), v)
    return mixed.reshape(batch, length, -1) @ weights["wo.weight"].T


def feed_forward(x, weights):
    gate = x @ weights["w1.weight"].T
    return (gate / (1 + np.exp(-gate)) * (x @ weights["w3.weight"].T)) @ weights["w2.weight"].T


def logits(config: LlamaConfig, tree: Mapping[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
    """ids [B, S] -> [B, S, V]."""
    tree = {name: value.astype(np.float64) for name, value in tree.items()}
    embedding = tree["model.tok_embeddings.embedding_weight"]
    x = embedding[ids]
    for index in range(config.num_layers):
        prefix = f"model.layers.{index}."
        layer = {name.removeprefix(prefix): value for name, value in tree.items() if name.startswith(prefix)}
        inner = {name.split(".", 1)[1]: value for name, value in layer.items()}
        x = x + attention(rms_norm(x, layer["attention_norm.weight"], config.rms_norm_eps), inner, config)
        x = x + feed_forward(rms_norm(x, layer["ffn_norm.weight"], config.rms_norm_eps), inner)
    x = rms_norm(x, tree["model.norm_out.weight"], config.rms_norm_eps)
    return x @ (embedding if config.tie_word_embeddings else tree["lm_head.weight"]).T
