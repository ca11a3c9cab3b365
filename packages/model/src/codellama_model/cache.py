"""The incremental forward pass: a few new tokens against a key/value cache.

One network serves prompts (blocks of many tokens) and decoding (one token a row): both write their keys and values
into the cache and attend to all of it, masked by position. Rows of a batch stand at positions of their own.

Shapes: B batch, S new tokens a row, K key/value heads, L cache length, D head width, H hidden, V vocabulary.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from codellama_model.composed import MASKED
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
        self.key_positions = Tensor(np.arange(length, dtype=np.int32).reshape(1, 1, 1, length))
        heads = np.arange(batch * config.kv_heads, dtype=np.int32).reshape(batch, 1, config.kv_heads)
        self.row_starts = Tensor(heads * length)
        self.argmax = ops.Argmax(axis=-1, output_type=ms.int32)

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
        batch, length = ids.shape
        cos = ops.expand_dims(ops.gather(model.cos, positions, 0), 2)
        sin = ops.expand_dims(ops.gather(model.sin, positions, 0), 2)
        hidden_future = self.key_positions > ops.reshape(positions, (batch, 1, length, 1))
        mask = ops.cast(hidden_future, ms.float32) * MASKED
        slots = ops.reshape(self.row_starts + ops.expand_dims(positions, 2), (-1,))
        x = model.tok_embeddings(ids)
        for index, layer in enumerate(model.layers):
            x = layer(x, batch, cos, sin, mask, (self.keys[index], self.values[index]), slots)
        if length > 1:
            x = ops.gather(x, last, 0)
        logits = self.network.head(model.norm_out(x))
        return self.argmax(logits), logits


def _buffers(name: str, count: int, shape: tuple[int, ...]) -> ms.ParameterTuple:
    zeros = (Tensor(np.zeros(shape, np.float32)) for _ in range(count))
    return ms.ParameterTuple(
        [Parameter(value, name=f"{name}.{index}", requires_grad=False) for index, value in enumerate(zeros)]
    )
