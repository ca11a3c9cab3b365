"""`LlamaForCausalLM`: ids in, logits out.

Covers the network and its forward pass over whole sequences; `cache` adds the incremental pass over a key/value
cache, `loss` the training loss. Weights come from a checkpoint reader or from the initializers; no file is read here.

Shapes: B batch, S sequence, T = B * S tokens, H hidden, D head width, V vocabulary, P longest position.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, initializer
from numpy.typing import NDArray

from codellama_model.composed import document_starts, widened
from codellama_model.config import LlamaConfig
from codellama_model.layers import DecoderLayer, Linear, RMSNorm
from codellama_model.ops import Operations, select

# Deviations of random weights, measured on the tiny preset: with 0.02 throughout it needs three times the tokens.
_EMBEDDING_DEVIATION = 0.1
_TIED_DEVIATION = 0.02  # the embedding is the head as well, and the head must start near 0
_HEAD_GAIN = 0.1


def rotary_table(config: LlamaConfig) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cos and sin of every position's angles, float32 [P + 1, D]; the last row is for a cache's spare slot.

    Computed in float32 as transformers' `LlamaRotaryEmbedding` does, rounding included: at position 16000 a float64
    table differs by 1e-3, and the published weights were trained with this one.
    """
    exponents = np.arange(0, config.head_size, 2, dtype=np.float32) / np.float32(config.head_size)
    frequencies = np.float32(1.0) / np.power(np.float32(config.theta), exponents)
    angles = np.arange(config.max_position_embedding + 1, dtype=np.float32)[:, None] * frequencies
    angles = np.concatenate([angles, angles], axis=1)
    return np.cos(angles), np.sin(angles)


def positions_within(document_ids: Tensor) -> Tensor:
    """Position of each token within its document, whose tokens share a number: int32 [B, S] -> int32 [B, S]."""
    index = ops.cast(ops.arange(document_ids.shape[1]), ms.int32)
    return index - document_starts(document_ids)


def embedded(ids: Tensor, weight: Tensor, scales: Tensor | None = None) -> Tensor:
    """Rows of the embedding: ids [B, S], weight [V, H] as `composed.widened` takes it -> float32 [T, H]."""
    ids = ops.reshape(ids, (-1,))
    rows = ops.gather(weight, ids, 0)
    return widened(rows) if scales is None else widened(rows, ops.gather(scales, ids, 0))


class Embedding(nn.Cell):
    """ids [B, S] -> [T, H]. embedding_weight [V, H]."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        shape = (config.vocab_size, config.hidden_size)
        deviation = _TIED_DEVIATION if config.tie_word_embeddings else _EMBEDDING_DEVIATION
        self.embedding_weight = Parameter(initializer(Normal(deviation), shape, ms.float32), name="embedding_weight")
        self.embedding_weight_scales: Parameter | None = None

    def weight_and_scales(self) -> tuple[Parameter, Parameter | None]:
        """[V, H], and [V, groups] where that is int8."""
        return self.embedding_weight, self.embedding_weight_scales

    def construct(self, ids: Tensor) -> Tensor:
        return embedded(ids, self.embedding_weight, self.embedding_weight_scales)


class LlamaModel(nn.Cell):
    """The stack without its head: ids [B, S] -> hidden states [T, H] after the last norm."""

    def __init__(self, config: LlamaConfig, operations: Operations) -> None:
        super().__init__()
        self.tok_embeddings = Embedding(config)
        self.layers = nn.CellList([DecoderLayer(config, operations) for _ in range(config.num_layers)])
        self.norm_out = RMSNorm(config.hidden_size, config.rms_norm_eps, operations)
        cos, sin = rotary_table(config)
        self.cos, self.sin = Tensor(cos), Tensor(sin)
        self.causal_mask, self.document_mask = operations.causal_mask, operations.document_mask

    def construct(self, ids: Tensor, document_ids: Tensor | None = None) -> Tensor:
        batch, length = ids.shape
        if document_ids is None:
            cos = ops.reshape(self.cos[:length], (1, length, 1, -1))
            sin = ops.reshape(self.sin[:length], (1, length, 1, -1))
            mask = self.causal_mask(length)
        else:
            positions = positions_within(document_ids)
            cos = ops.expand_dims(ops.gather(self.cos, positions, 0), 2)
            sin = ops.expand_dims(ops.gather(self.sin, positions, 0), 2)
            mask = self.document_mask(document_ids)
        x = self.tok_embeddings(ids)
        for layer in self.layers:
            x = layer(x, batch, cos, sin, mask)
        return self.norm_out(x)


class LlamaForCausalLM(nn.Cell):
    """The whole network: ids int32 [B, S] -> logits float32 [B * S, V].

    With `document_ids` int32 [B, S], rows hold several documents: each number is a stretch of its own, whose positions
    start at 0 and which sees nothing of its neighbours.

    Args:
        config: its sizes.
        operations: the entry of the device table to compute with; None chooses by the device at hand.
    """

    def __init__(self, config: LlamaConfig, operations: Operations | None = None) -> None:
        super().__init__()
        operations = select() if operations is None else operations
        self.config = config
        self.operations = operations
        self.model = LlamaModel(config, operations)
        self.tied = config.tie_word_embeddings
        self.linear = operations.linear
        if not self.tied:
            start = Normal(_HEAD_GAIN * config.hidden_size**-0.5)  # near 0: every id is about as likely at first
            self.lm_head = Linear(config.hidden_size, config.vocab_size, operations, start=start)

    def head_weight(self) -> Parameter:
        """[V, H]: the head's matrix, which is the embedding where the two are tied."""
        if self.tied:
            return self.model.tok_embeddings.embedding_weight
        return self.lm_head.weight

    def head_weight_and_scales(self) -> tuple[Parameter, Parameter | None]:
        """The head's matrix, and its scales [V, groups] where that is int8."""
        if self.tied:
            return self.model.tok_embeddings.weight_and_scales()
        return self.lm_head.weight, self.lm_head.weight_scales

    def construct(self, ids: Tensor, document_ids: Tensor | None = None) -> Tensor:
        return self.linear(self.model(ids, document_ids), widened(*self.head_weight_and_scales()))
