"""The cached forward pass (`codellama_model.cache`) of one rank's heads, columns and vocabulary.

A layer's two branches end in a sum over the ranks, so a fused layer can not be used: this is the composed one with
these sums in it. Its tokens are never split: a decoding step has too few.

Shapes: B batch, S new tokens a row, T = B * S, K key/value heads of this rank, L cache length, D head width, H hidden,
V vocabulary, R ranks.
"""

from __future__ import annotations

import mindspore as ms
from codellama_model import composed
from mindspore import Tensor, nn, ops

from codellama_parallel.collectives import AllGather, AllReduce, Group

_LAYER_TENSORS = 11  # of a layer in `CachedLayers`: two norms, seven matrices, keys and values


class CachedLayers(nn.Cell):
    """The table's `cached_layers`; arguments as there, of this rank's slices, in float32 or float16 (not int8)."""

    def __init__(self, members: Group) -> None:
        super().__init__()
        self.sum = AllReduce(members)
        self.write = ops.ScatterUpdate()

    def construct(
        self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, layers: tuple[Tensor, ...], eps: float
    ) -> Tensor:
        for start in range(0, len(layers), _LAYER_TENSORS):
            x = self._layer(x, positions, cos, sin, layers[start : start + _LAYER_TENSORS], eps)
        return x

    def _layer(
        self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, tensors: tuple[Tensor, ...], eps: float
    ) -> Tensor:
        attention_norm, wq, wk, wv, wo, ffn_norm, w1, w2, w3, keys, values = tensors
        batch, length = positions.shape
        width = cos.shape[1]
        kv_heads = wk.shape[0] // width
        context = keys.shape[0] // (batch * kv_heads)
        cos = ops.expand_dims(ops.gather(cos, positions, 0), 2)
        sin = ops.expand_dims(ops.gather(sin, positions, 0), 2)
        future = ops.reshape(ops.arange(context), (1, 1, 1, context)) > ops.reshape(positions, (batch, 1, length, 1))
        mask = ops.cast(future, ms.float32) * composed.MASKED
        starts = ops.reshape(ops.arange(batch * kv_heads) * context, (batch, 1, kv_heads))
        slots = ops.reshape(ops.cast(starts, ms.int32) + ops.expand_dims(positions, 2), (-1,))

        normed = composed.rms_norm(x, attention_norm, eps)
        query = composed.rotate(ops.reshape(_linear(normed, wq), (batch, length, -1, width)), cos, sin)
        key = composed.rotate(ops.reshape(_linear(normed, wk), (batch, length, kv_heads, width)), cos, sin)
        value = ops.reshape(_linear(normed, wv), (-1, width))
        keys = ops.reshape(self.write(keys, slots, ops.reshape(key, (-1, width))), (batch, kv_heads, context, width))
        values = ops.reshape(self.write(values, slots, value), (batch, kv_heads, context, width))
        x = x + self.sum(_linear(composed.cached_attention(query, keys, values, mask, width**-0.5), wo))
        normed = composed.rms_norm(x, ffn_norm, eps)
        return x + self.sum(_linear(composed.swiglu(_linear(normed, w1), _linear(normed, w3)), w2))


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    return composed.linear(x, composed.widened(weight))


class CachedHead(nn.Cell):
    """The table's `cached_head`: x [T, H], last int32 [B], weight [V / R, H] -> (greedy int32 [B], logits [B, V]).

    Here, unlike in training, the logits are gathered: they are one row a sequence, and sampling needs them.
    """

    def __init__(self, members: Group) -> None:
        super().__init__()
        self.gather = AllGather(members)
        self.argmax = ops.Argmax(axis=-1, output_type=ms.int32)

    def construct(
        self, x: Tensor, last: Tensor, norm: Tensor, weight: Tensor, eps: float, scales: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        local = _linear(composed.rms_norm(ops.gather(x, last, 0), norm, eps), weight)
        logits = ops.transpose(self.gather(ops.transpose(local, (1, 0))), (1, 0))
        return self.argmax(logits), logits
