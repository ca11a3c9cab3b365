"""What the backward pass computes again instead of keeping it.

MindSpore's graph compiler recomputes whatever a marked cell computes, except its outputs. Neighbouring marked cells
become one stretch, which would begin at the first layer's input; so the two branches of a layer are marked, and the
sums between them are not: each branch is computed again from its own input, just before its gradient.

Shapes: T tokens, H hidden.
"""

from __future__ import annotations

from codellama_model import LlamaForCausalLM
from codellama_model.layers import DecoderLayer
from codellama_model.ops import Operation
from mindspore import Tensor, nn

from codellama_parallel.strategy import Recompute


def recompute(network: LlamaForCausalLM, how: Recompute) -> None:
    """Marks the layers of a network as `ParallelConfig.recompute` says; parameters keep their names."""
    if how == "full":
        names = [parameter.name for parameter in network.get_parameters()]
        layers = [RecomputedLayer(layer) for layer in network.model.layers]
        network.model.layers = nn.CellList(layers, auto_prefix=False)
        for parameter, name in zip(network.get_parameters(), names, strict=True):
            parameter.name = name
    elif how == "selective":
        for layer in network.model.layers:
            scores = _Scores(layer.attention.causal_attention)
            scores.recompute()
            del layer.attention.causal_attention  # a plain function, which `nn.Cell` would keep beside the cell
            layer.attention.causal_attention = scores


class RecomputedLayer(nn.Cell):
    """A decoder layer, with its children, of which the inputs of both branches are kept: [T, H] each."""

    def __init__(self, layer: DecoderLayer) -> None:
        super().__init__(auto_prefix=False)
        self.attention_norm, self.attention = layer.attention_norm, layer.attention
        self.ffn_norm, self.feed_forward = layer.ffn_norm, layer.feed_forward
        self.attending = _Attending(self.attention_norm, self.attention)
        self.feeding = _Feeding(self.ffn_norm, self.feed_forward)
        self.attending.recompute()
        self.feeding.recompute()

    def construct(self, x: Tensor, batch: int, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attending(x, batch, cos, sin, mask)
        return x + self.feeding(x)


class _Attending(nn.Cell):
    def __init__(self, norm: nn.Cell, attention: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.norm, self.attention = norm, attention

    def construct(self, x: Tensor, batch: int, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        return self.attention(self.norm(x), batch, cos, sin, mask)


class _Feeding(nn.Cell):
    def __init__(self, norm: nn.Cell, feed_forward: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.norm, self.feed_forward = norm, feed_forward

    def construct(self, x: Tensor) -> Tensor:
        return self.feed_forward(self.norm(x))


class _Scores(nn.Cell):
    """The table's `causal_attention`, as a cell of its own that can be computed again."""

    def __init__(self, causal_attention: Operation) -> None:
        super().__init__()
        self.causal_attention = causal_attention

    def construct(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
        return self.causal_attention(query, key, value, mask, scale)
