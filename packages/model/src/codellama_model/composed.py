"""The operations of the network, composed of operators that every MindSpore backend has.

This is the reference ("oracle") entry of the table in `ops`: exact in float32, differentiable by the engine, one
line of mathematics per function. A fused entry of the table must agree with it.

Shapes: B batch, S sequence, T = B * S tokens, N query heads, K key/value heads, G = N / K heads that share one key,
D head width, H hidden, F feed-forward width, V vocabulary, L cache length.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops

MASKED = -1e9  # added to a score that must not be seen; exp() of it is exactly 0 in float32

_matmul_transposed = ops.MatMul(transpose_b=True)
_batch_matmul = ops.BatchMatMul()
_batch_matmul_transposed = ops.BatchMatMul(transpose_b=True)
_softmax = ops.Softmax(axis=-1)
_argmax = ops.Argmax(axis=-1, output_type=ms.int32)
_write = ops.ScatterUpdate()


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [T, in] times weight [out, in] transposed -> [T, out]."""
    return _matmul_transposed(x, weight)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [T, H] / root of its mean square, times weight [H] (arXiv:1910.07467)."""
    variance = ops.ReduceMean(keep_dims=True)(ops.square(x), -1)
    return x * ops.rsqrt(variance + eps) * weight


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, both [T, F] (arXiv:2002.05202)."""
    return ops.silu(gate) * up


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in the half-split form of Hugging Face and MindFormers (arXiv:2104.09864).

    x [B, S, heads, D]; cos and sin [B or 1, S, 1, D], both halves equal.
    """
    half = x.shape[-1] // 2
    left, right = ops.split(x, half, axis=-1)
    return x * cos + ops.concat((-right, left), axis=-1) * sin


def causal_mask(length: int) -> Tensor:
    """[1, 1, S, S], 0 where a token may look and `MASKED` where the key lies in its future."""
    positions = ops.arange(length)
    future = ops.expand_dims(positions, 1) < ops.expand_dims(positions, 0)
    return ops.reshape(ops.cast(future, ms.float32) * MASKED, (1, 1, length, length))


def document_mask(document_ids: Tensor) -> Tensor:
    """`causal_mask` of packed rows: document_ids int32 [B, S] -> [B, 1, S, S]; no token sees another document."""
    length = document_ids.shape[1]
    other = ops.expand_dims(document_ids, 2) != ops.expand_dims(document_ids, 1)
    return ops.minimum(ops.expand_dims(ops.cast(other, ms.float32) * MASKED, 1), causal_mask(length))


def causal_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attention within one block of tokens, all of whose keys are at hand.

    query [B, S, N, D], key and value [B, S, K, D], mask of `causal_mask` or `document_mask` -> [B * S, N * D].
    """
    key = ops.transpose(key, (0, 2, 1, 3))
    value = ops.transpose(value, (0, 2, 1, 3))
    return cached_attention(query, key, value, mask, scale)


def cached_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attention of new tokens to a cache.

    query [B, S, N, D], key and value [B, K, L, D], mask [B or 1, 1, S, L] added to the scores -> [B * S, N * D].
    The G query heads of one key are stacked along the sequence, so that keys are never repeated in memory.
    """
    batch, length, heads, width = query.shape
    kv_heads, context = key.shape[1], key.shape[2]
    rows = heads // kv_heads * length
    query = query * scale
    if length > 1:  # for one token, [B, 1, N, D] already lies in memory as [B, N, 1, D]
        query = ops.transpose(query, (0, 2, 1, 3))
    query = ops.reshape(query, (batch * kv_heads, rows, width))
    key = ops.reshape(key, (batch * kv_heads, context, width))
    value = ops.reshape(value, (batch * kv_heads, context, width))
    scores = ops.reshape(_batch_matmul_transposed(query, key), (batch, heads, length, context))
    weights = ops.reshape(_softmax(scores + mask), (batch * kv_heads, rows, context))
    mixed = ops.reshape(_batch_matmul(weights, value), (batch, heads, length, width))
    if length > 1:
        mixed = ops.transpose(mixed, (0, 2, 1, 3))
    return ops.reshape(mixed, (batch * length, heads * width))


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
    """One decoder layer for a few new tokens a row, against the layer's cache.

    x [T, H]; positions int32 [B, S]; cos and sin [P, D]; keys and values: Parameters [B * K * L, D], written in place;
    the rest are the layer's weights -> [T, H]. A token at position p sees the cache positions 0..p. What depends on the
    positions alone is the same for every layer, and the graph's common subexpressions are computed once.
    """
    batch, length = positions.shape
    width = cos.shape[1]
    kv_heads = wk.shape[0] // width
    context = keys.shape[0] // (batch * kv_heads)
    cos = ops.expand_dims(ops.gather(cos, positions, 0), 2)
    sin = ops.expand_dims(ops.gather(sin, positions, 0), 2)
    future = ops.reshape(ops.arange(context), (1, 1, 1, context)) > ops.reshape(positions, (batch, 1, length, 1))
    mask = ops.cast(future, ms.float32) * MASKED
    starts = ops.reshape(ops.arange(batch * kv_heads) * context, (batch, 1, kv_heads))
    slots = ops.reshape(ops.cast(starts, ms.int32) + ops.expand_dims(positions, 2), (-1,))

    normed = rms_norm(x, attention_norm, eps)
    query = rotate(ops.reshape(linear(normed, wq), (batch, length, -1, width)), cos, sin)
    key = rotate(ops.reshape(linear(normed, wk), (batch, length, kv_heads, width)), cos, sin)
    value = ops.reshape(linear(normed, wv), (-1, width))
    keys = ops.reshape(_write(keys, slots, ops.reshape(key, (-1, width))), (batch, kv_heads, context, width))
    values = ops.reshape(_write(values, slots, value), (batch, kv_heads, context, width))
    x = x + linear(cached_attention(query, keys, values, mask, width**-0.5), wo)
    normed = rms_norm(x, ffn_norm, eps)
    return x + linear(swiglu(linear(normed, w1), linear(normed, w3)), w2)


def cached_head(x: Tensor, last: Tensor, norm: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Logits after the tokens `last` int32 [B] of x [T, H], and the first of the largest: (int32 [B], [B, V])."""
    logits = linear(rms_norm(ops.gather(x, last, 0), norm, eps), weight)
    return _argmax(logits), logits


class LinearCrossEntropy(nn.Cell):
    """Head and loss in one: hidden states [T, H], the head's weight [V, H], labels int32 [T] -> two scalars.

    The sum of the negative log-likelihoods, in nats, of the labels that are not `ignore_index`, and how many these are
    (float32). The second has no gradient.
    """

    def __init__(self, ignore_index: int) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.cross_entropy = CrossEntropy(ignore_index)

    def construct(self, x: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        counted = ops.cast(labels != self.ignore_index, ms.float32)
        return ops.sum(self.cross_entropy(linear(x, weight), labels)), ops.sum(counted)


class CrossEntropy(nn.Cell):
    """Negative log-likelihoods of labels [T] under logits [T, V] -> [T], 0 where the label is `ignore_index`.

    Its gradient is written out, softmax minus one-hot: the engine's own holds several [T, V] arrays and takes
    seven times as long on CPU.
    """

    def __init__(self, ignore_index: int) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.log_softmax = ops.LogSoftmax(axis=-1)
        self.softmax = ops.Softmax(axis=-1)
        self.scatter_add = ops.TensorScatterAdd()

    def construct(self, logits: Tensor, labels: Tensor) -> Tensor:
        counted = labels != self.ignore_index
        picked = ops.gather_d(self.log_softmax(logits), 1, ops.expand_dims(_safe(labels, counted), 1))
        return -ops.reshape(picked, (-1,)) * ops.cast(counted, logits.dtype)

    def bprop(self, logits: Tensor, labels: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        counted = labels != self.ignore_index
        safe = _safe(labels, counted)
        rows = ops.arange(labels.shape[0]).astype(ms.int32)
        indices = ops.stack((rows, safe), 1)
        gradient = self.scatter_add(self.softmax(logits), indices, -ops.ones_like(safe).astype(logits.dtype))
        return gradient * ops.expand_dims(dout * ops.cast(counted, logits.dtype), 1), ops.zeros_like(labels)


def _safe(labels: Tensor, counted: Tensor) -> Tensor:
    """labels with the ignored ones pointing at column 0, so that they can be looked up."""
    return ops.cast(labels, ms.int32) * ops.cast(counted, ms.int32)
