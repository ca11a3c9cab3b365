"""The operations of the network, composed of operators that every MindSpore backend has.

This is the reference ("oracle") entry of the table in `ops`: exact in float32, differentiable by the engine, one
line of mathematics per function. A fused entry of the table must agree with it.

Shapes: B batch, S sequence, T = B * S tokens, N query heads, K key/value heads, G = N / K heads that share one key,
D head width, H hidden, F feed-forward width, V vocabulary, L cache length.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops

from codellama_model.quantization import GROUP

MASKED = -1e9  # added to a score that must not be seen; exp() of it is exactly 0 in float32

_LAYER_TENSORS, _LAYER_SCALES = 11, 7  # of a layer's arguments in `cached_layers`

_matmul = ops.MatMul()
_matmul_transposed = ops.MatMul(transpose_b=True)
_batch_matmul = ops.BatchMatMul()
_batch_matmul_transposed = ops.BatchMatMul(transpose_b=True)
_softmax = ops.Softmax(axis=-1)
_argmax = ops.Argmax(axis=-1, output_type=ms.int32)
_write = ops.ScatterUpdate()
_scatter_add = ops.TensorScatterAdd()
_adam_update = ops.AdamWeightDecay()


def widened(weight: Tensor, scales: Tensor | None = None) -> Tensor:
    """A matrix [out, in] in float32: of float32, of float16, or of int8 with scales float16 [out, groups].

    The layout of int8: `quantization.quantize`.
    """
    if scales is None:
        return weight if weight.dtype == ms.float32 else ops.cast(weight, ms.float32)
    rows, columns = weight.shape
    factors = ops.expand_dims(ops.cast(scales, ms.float32), 2)
    factors = ops.reshape(ops.tile(factors, (1, 1, GROUP)), (rows, -1))[:, :columns]
    return ops.cast(weight, ms.float32) * factors


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


def document_starts(document_ids: Tensor) -> Tensor:
    """Where the document of each token begins in its row: int32 [B, S] -> int32 [B, S].

    A document is a run of equal ids. Work and memory grow with S alone.
    """
    index = ops.cast(ops.arange(document_ids.shape[1]), ms.int32)
    before = ops.concat((document_ids[:, :1] - 1, document_ids[:, :-1]), 1)
    return ops.cummax(ops.cast(document_ids != before, ms.int32) * index, 1)[0]


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


def cached_layers(
    x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, layers: tuple[Tensor, ...], eps: float
) -> Tensor:
    """All decoder layers for a few new tokens a row, against the layers' caches.

    x [T, H]; positions int32 [B, S]; cos and sin [P, D]; layers: of each in turn attention_norm [H], wq [N * D, H],
    wk and wv [K * D, H], wo [H, N * D], ffn_norm [H], w1 [F, H], w2 [H, F], w3 [F, H], and the caches keys and values,
    Parameters [B * K * L, D] that are written in place -> [T, H]. Matrices are float32 or float16, or all int8: then
    their scales follow, in their order (`widened`). A token at position p sees the cache positions 0..p.
    """
    each = _LAYER_TENSORS + _LAYER_SCALES if layers[1].dtype == ms.int8 else _LAYER_TENSORS
    for start in range(0, len(layers), each):
        tensors, scales = layers[start : start + _LAYER_TENSORS], layers[start + _LAYER_TENSORS : start + each]
        x = _cached_layer(x, positions, cos, sin, tensors, scales, eps)
    return x


def _cached_layer(
    x: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    tensors: tuple[Tensor, ...],
    scales: tuple[Tensor, ...],
    eps: float,
) -> Tensor:
    """One of the layers. What depends on the positions alone is the same for all, and the graph computes it once."""
    attention_norm, wq, wk, wv, wo, ffn_norm, w1, w2, w3, keys, values = tensors
    if scales:
        wq, wk, wv, wo = widened(wq, scales[0]), widened(wk, scales[1]), widened(wv, scales[2]), widened(wo, scales[3])
        w1, w2, w3 = widened(w1, scales[4]), widened(w2, scales[5]), widened(w3, scales[6])
    else:
        wq, wk, wv, wo = widened(wq), widened(wk), widened(wv), widened(wo)
        w1, w2, w3 = widened(w1), widened(w2), widened(w3)
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


def cached_head(
    x: Tensor, last: Tensor, norm: Tensor, weight: Tensor, eps: float, scales: tuple[Tensor, ...] = ()
) -> tuple[Tensor, Tensor]:
    """Logits after the tokens `last` int32 [B] of x [T, H], and the first of the largest: (int32 [B], [B, V]).

    `scales` holds the weight's where that is int8.
    """
    weight = widened(weight, scales[0]) if scales else widened(weight)
    logits = linear(rms_norm(ops.gather(x, last, 0), norm, eps), weight)
    return _argmax(logits), logits


class LinearCrossEntropy(nn.Cell):
    """Head and loss in one: hidden states [T, H], the head's weight [V, H], labels int32 [T] -> two scalars.

    The sum of the negative log-likelihoods, in nats, of the labels that are not `ignore_index`, and how many these are
    (float32). The second has no gradient. With `z_loss`, each of these tokens adds z_loss * log(sum of exp(logits))^2,
    which keeps the logits from drifting (arXiv:2204.02311, section 5).
    """

    def __init__(self, ignore_index: int, z_loss: float = 0.0) -> None:
        super().__init__()
        self.ignore_index, self.z_loss = ignore_index, z_loss
        self.cross_entropy = CrossEntropy(ignore_index)

    def construct(self, x: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        counted = ops.cast(labels != self.ignore_index, ms.float32)
        logits = linear(x, weight)
        loss = ops.sum(self.cross_entropy(logits, labels))
        if self.z_loss:
            loss += self.z_loss * ops.sum(ops.square(ops.logsumexp(logits, -1)) * counted)
        return loss, ops.sum(counted)


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


def vocabulary_slice(x: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a slice of the vocabulary adds to a loss whose vocabulary is spread over several.

    x [T, H], weight [V, H] of the slice, labels int32 [T] counted from its first row -> three [T]: the largest logit,
    the sum of exp(logit - largest), and the label's logit, -inf where the label is not in the slice. No gradient is
    taken through these: it is `vocabulary_slice_gradient`.
    """
    logits = linear(x, weight)
    here = _in_slice(labels, weight.shape[0])
    picked = ops.reshape(ops.gather_d(logits, 1, ops.expand_dims(_safe(labels, here), 1)), (-1,))
    largest = ops.ReduceMax()(logits, -1)
    total = ops.sum(ops.exp(logits - ops.expand_dims(largest, 1)), -1)
    return largest, total, ops.select(here, picked, ops.full_like(picked, -float("inf")))


def vocabulary_slice_gradient(
    x: Tensor, weight: Tensor, labels: Tensor, largest: Tensor, total: Tensor, d_lse: Tensor, d_logit: Tensor
) -> tuple[Tensor, Tensor]:
    """A slice's part of the gradients of a loss, (dx [T, H], d_weight [V, H]); dx is yet to be summed over the slices.

    x, weight and labels as in `vocabulary_slice`; largest and total [T] over the whole vocabulary, total the sum of
    exp(logit - largest); d_lse and d_logit [T]: the loss's derivatives by largest + log(total) and by the label's
    logit. For cross-entropy, log(total) + largest - logit, these are 1 and -1, and 0 where a label is not counted.
    """
    logits = linear(x, weight)
    here = _in_slice(labels, weight.shape[0])
    gradient = ops.exp(logits - ops.expand_dims(largest, 1)) * ops.expand_dims(d_lse / total, 1)
    rows = ops.cast(ops.arange(labels.shape[0]), ms.int32)
    indices = ops.stack((rows, _safe(labels, here)), 1)
    gradient = _scatter_add(gradient, indices, d_logit * ops.cast(here, ms.float32))
    return _matmul(gradient, weight), _matmul(ops.transpose(gradient, (1, 0)), x)


def _in_slice(labels: Tensor, size: int) -> Tensor:
    return ops.logical_and(labels >= 0, labels < size)


def adamw(
    parameter: Tensor,
    first: Tensor,
    second: Tensor,
    gradient: Tensor,
    learning_rate: Tensor,
    scale: Tensor,
    step: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> Tensor:
    """One update of AdamW in place (arXiv:1711.05101, algorithm 2; `torch.optim.AdamW`).

    parameter, first and second moment: Parameters of one shape, written; gradient of that shape, taken times `scale`;
    learning_rate, scale and step (this update's number, from 1): scalars. What must come after the update depends on
    the result; a fused entry may write unseen by the graph, so that what reads the parameter must come before one of
    the arguments.

    MindSpore's kernel computes p -= lr' (m / (sqrt(v) + eps') + decay' p), without bias correction: folding that into
    the three scalars makes it exactly the update.
    """
    root = ops.sqrt(1.0 - ops.pow(beta2, step))
    factor = root / (1.0 - ops.pow(beta1, step))
    return _adam_update(
        parameter,
        first,
        second,
        learning_rate * factor,
        beta1,
        beta2,
        eps * root,
        weight_decay / factor,
        gradient * scale,
    )[0]


def squared_norm(gradient: Tensor) -> Tensor:
    """The sum of squares of a Tensor of any shape, a scalar."""
    return ops.sum(ops.square(gradient))


def _safe(labels: Tensor, counted: Tensor) -> Tensor:
    """labels with the ignored ones pointing at column 0, so that they can be looked up."""
    return ops.cast(labels, ms.int32) * ops.cast(counted, ms.int32)
