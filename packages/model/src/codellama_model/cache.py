"""The incremental forward pass: a few new tokens against a key/value cache.

One network serves prompts (blocks of many tokens) and decoding (one token a row): both write their keys and values
into the cache and look at what stands before them there. Rows of a batch stand at positions of their own. A layer of it
is one operation of the device table, since that is what a fused operator can do best.

Shapes: B batch, S new tokens a row, K key/value heads, L cache length, D head width, V vocabulary.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from codellama_model.llama import LlamaForCausalLM


class CachedLlama(nn.Cell):
    """`network` with a cache of `length` positions for `batch` rows; its graph is compiled once per S.

    The cache is a pair of Parameters [B * K * L, D] a layer, written in place. A caller may overwrite positions freely:
    a token at position p sees exactly the cache positions 0..p, so what lies behind is garbage that nobody reads.

    Args:
        network: shares its parameters; nothing is copied.
        batch: rows, B.
        length: positions, L, the last of which is spare: padding is written there and nobody looks at it. At most
            `max_position_embedding` + 1.
    """

    def __init__(self, network: LlamaForCausalLM, batch: int, length: int) -> None:
        super().__init__(auto_prefix=False)
        config = network.config
        if not 1 < length <= config.max_position_embedding + 1:
            raise ValueError(f"a cache of {length} positions does not fit the context {config.max_position_embedding}")
        self.network = network
        self.batch, self.length, self.spare = batch, length, length - 1
        shape = (batch * config.kv_heads * length, config.head_size)
        self.keys = _buffers("cache.keys", config.num_layers, shape)
        self.values = _buffers("cache.values", config.num_layers, shape)
        self.eps = config.rms_norm_eps
        self.cached_layer = network.operations.cached_layer
        self.cached_head = network.operations.cached_head

    def construct(self, ids: Tensor, positions: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Adds tokens and predicts one more for each row.

        Args:
            ids: int32 [B, S], the new tokens; a row may be padded on the right with any ids.
            positions: int32 [B, S], where they stand; `spare` for padding.
            last: int32 [B], index into `ids.reshape(-1)` of the token of each row whose successor is wanted.

        Returns:
            (greedy int32 [B], logits float32 [B, V]).
        """
        model = self.network.model
        x = model.tok_embeddings(ids)
        for index, layer in enumerate(model.layers):
            attention, ffn = layer.attention, layer.feed_forward
            x = self.cached_layer(
                x,
                positions,
                model.cos,
                model.sin,
                self.keys[index],
                self.values[index],
                layer.attention_norm.weight,
                attention.wq.weight,
                attention.wk.weight,
                attention.wv.weight,
                attention.wo.weight,
                layer.ffn_norm.weight,
                ffn.w1.weight,
                ffn.w2.weight,
                ffn.w3.weight,
                self.eps,
            )
        return self.cached_head(x, last, model.norm_out.weight, self.network.head_weight(), self.eps)


def _buffers(name: str, count: int, shape: tuple[int, ...]) -> ms.ParameterTuple:
    zeros = (Tensor(np.zeros(shape, np.float32)) for _ in range(count))
    return ms.ParameterTuple(
        [Parameter(value, name=f"{name}.{index}", requires_grad=False) for index, value in enumerate(zeros)]
    )
