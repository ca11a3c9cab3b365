"""The incremental forward pass: a few new tokens against a key/value cache.

One network serves prompts (blocks of many tokens) and decoding (one token a row): both write their keys and values
into the cache and look at what stands before them there. Rows of a batch stand at positions of their own. All layers
are one operation of the device table, since that is what a fused operator can do best, and compiles in no time.

Shapes: B batch, S new tokens a row, K key/value heads, L cache length, D head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from codellama_model.layers import DecoderLayer
from codellama_model.llama import LlamaForCausalLM, embedded


class CachedLlama(nn.Cell):
    """`network` with a cache of `length` positions for `batch` rows; its graph is compiled once per S.

    The cache is a pair of Parameters [B * K * L, D] a layer, written in place. A caller may overwrite positions freely:
    a token at position p sees exactly the cache positions 0..p, so what lies behind is garbage that nobody reads.

    Args:
        network: shares its parameters; nothing is copied. Weights set afterwards are not seen.
        batch: rows, B.
        length: positions, L, the last of which is spare: padding is written there and nobody looks at it. At most
            `max_position_embedding` + 1.
    """

    def __init__(self, network: LlamaForCausalLM, batch: int, length: int) -> None:
        super().__init__(auto_prefix=False)
        config = network.config
        if not 1 < length <= config.max_position_embedding + 1:
            raise ValueError(f"a cache of {length} positions does not fit the context {config.max_position_embedding}")
        self.batch, self.length, self.spare = batch, length, length - 1
        self.eps = config.rms_norm_eps
        self.cached_layers = network.operations.cached_layers
        self.cached_head = network.operations.cached_head
        shape = (batch * config.kv_heads * length, config.head_size)
        dtype = network.operations.cache_dtype
        self.keys = _buffers("cache.keys", config.num_layers, shape, dtype)
        self.values = _buffers("cache.values", config.num_layers, shape, dtype)
        # The network's parameters and not its cells: at every call the engine walks over a cell's children, which
        # takes milliseconds where there are hundreds.
        model = network.model
        self.cos, self.sin = model.cos, model.sin
        self.embedding = ms.ParameterTuple(_present(model.tok_embeddings.weight_and_scales()))
        self.layers = ms.ParameterTuple(
            [
                tensor
                for layer, keys, values in zip(model.layers, self.keys, self.values, strict=True)
                for tensor in _layer_tensors(layer, keys, values)
            ]
        )
        self.norm = ms.ParameterTuple([model.norm_out.weight])
        self.head = ms.ParameterTuple(_present(network.head_weight_and_scales()))

    def construct(self, ids: Tensor, positions: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Adds tokens and predicts one more for each row.

        Args:
            ids: int32 [B, S], the new tokens; a row may be padded on the right with any ids.
            positions: int32 [B, S], where they stand; `spare` for padding.
            last: int32 [B], index into `ids.reshape(-1)` of the token of each row whose successor is wanted.

        Returns:
            (greedy int32 [B], logits float32 [B, V]).
        """
        x = embedded(ids, *self.embedding)
        x = self.cached_layers(x, positions, self.cos, self.sin, self.layers, self.eps)
        return self.cached_head(x, last, self.norm[0], self.head[0], self.eps, self.head[1:])


def _layer_tensors(layer: DecoderLayer, keys: Parameter, values: Parameter) -> list[Parameter]:
    """A layer's arguments of the table's `cached_layers`."""
    attention, ffn = layer.attention, layer.feed_forward
    linears = [attention.wq, attention.wk, attention.wv, attention.wo, ffn.w1, ffn.w2, ffn.w3]
    matrices = [linear.weight for linear in linears]
    norms = [layer.attention_norm.weight, layer.ffn_norm.weight]
    scales = _present([linear.weight_scales for linear in linears])
    return [norms[0], *matrices[:4], norms[1], *matrices[4:], keys, values, *scales]


def _present(parameters: Iterable[Parameter | None]) -> list[Parameter]:
    return [parameter for parameter in parameters if parameter is not None]


def _buffers(name: str, count: int, shape: tuple[int, ...], dtype: ms.Type) -> ms.ParameterTuple:
    zeros = (Tensor(np.zeros(shape, np.float32), dtype) for _ in range(count))
    return ms.ParameterTuple(
        [Parameter(value, name=f"{name}.{index}", requires_grad=False) for index, value in enumerate(zeros)]
    )
