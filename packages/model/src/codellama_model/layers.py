"""The layers of the Llama network over whole sequences: linear, norm, attention, feed-forward, one decoder layer.

Parameter names follow from the attribute names and are MindFormers'. Nothing here knows a device: what differs by
device is called through the table in `ops`. Nothing knows a rank or a mesh either.

Shapes: B batch, S sequence, T = B * S tokens, D head width, H hidden.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Initializer, Normal, One, Zero, initializer

from codellama_model.composed import widened
from codellama_model.config import LlamaConfig
from codellama_model.ops import Operations


class Linear(nn.Cell):
    """x [T, in] -> [T, out], no bias. weight [out, in].

    Random weights keep the variance of their input (deviation in^-1/2), unless `start` says otherwise. For prediction
    the weight may be float16, or int8 with `weight_scales` (`weights.set_weight`).
    """

    def __init__(self, inputs: int, outputs: int, operations: Operations, start: Initializer | None = None) -> None:
        super().__init__()
        start = Normal(inputs**-0.5) if start is None else start
        self.weight = Parameter(initializer(start, (outputs, inputs), ms.float32), name="weight")
        self.weight_scales: Parameter | None = None
        self.linear = operations.linear

    def construct(self, x: Tensor) -> Tensor:
        return self.linear(x, widened(self.weight, self.weight_scales))


class RMSNorm(nn.Cell):
    """x [T, H] -> [T, H]; arXiv:1910.07467."""

    def __init__(self, size: int, eps: float, operations: Operations) -> None:
        super().__init__()
        self.weight = Parameter(initializer(One(), (size,), ms.float32), name="weight")
        self.eps = eps
        self.rms_norm = operations.rms_norm

    def construct(self, x: Tensor) -> Tensor:
        return self.rms_norm(x, self.weight, self.eps)


class Attention(nn.Cell):
    """Grouped-query attention with rotary positions (arXiv:2305.13245, arXiv:2104.09864)."""

    def __init__(self, config: LlamaConfig, operations: Operations) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.heads, self.kv_heads, self.width = config.num_heads, config.kv_heads, config.head_size
        self.scale = self.width**-0.5
        self.wq = Linear(hidden, self.heads * self.width, operations)
        self.wk = Linear(hidden, self.kv_heads * self.width, operations)
        self.wv = Linear(hidden, self.kv_heads * self.width, operations)
        self.wo = Linear(self.heads * self.width, hidden, operations, start=Zero())
        self.rotate = operations.rotate
        self.causal_attention = operations.causal_attention

    def construct(self, x: Tensor, batch: int, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """x [T, H]; cos and sin [1, S, 1, D]; mask of the table's `causal_mask`."""
        query = self.rotate(ops.reshape(self.wq(x), (batch, -1, self.heads, self.width)), cos, sin)
        key = self.rotate(ops.reshape(self.wk(x), (batch, -1, self.kv_heads, self.width)), cos, sin)
        value = ops.reshape(self.wv(x), (batch, -1, self.kv_heads, self.width))
        return self.wo(self.causal_attention(query, key, value, mask, self.scale))


class FeedForward(nn.Cell):
    """w2(silu(w1 x) * w3 x): SwiGLU (arXiv:2002.05202)."""

    def __init__(self, config: LlamaConfig, operations: Operations) -> None:
        super().__init__()
        hidden, ffn = config.hidden_size, config.intermediate_size
        self.w1 = Linear(hidden, ffn, operations)
        self.w2 = Linear(ffn, hidden, operations, start=Zero())
        self.w3 = Linear(hidden, ffn, operations)
        self.swiglu = operations.swiglu

    def construct(self, x: Tensor) -> Tensor:
        return self.w2(self.swiglu(self.w1(x), self.w3(x)))


class DecoderLayer(nn.Cell):
    """x + attention(norm(x)), then x + feed_forward(norm(x)).

    Both branches end in a matrix of zeros at the start (Fixup, arXiv:1901.09321, section 3): a random network begins as
    its embedding and head alone and learns at once which ids follow which, not through the noise of all layers.
    """

    def __init__(self, config: LlamaConfig, operations: Operations) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, operations)
        self.attention = Attention(config, operations)
        self.ffn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, operations)
        self.feed_forward = FeedForward(config, operations)

    def construct(self, x: Tensor, batch: int, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), batch, cos, sin, mask)
        return x + self.feed_forward(self.ffn_norm(x))
