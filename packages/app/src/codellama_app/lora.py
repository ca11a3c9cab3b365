"""Low-rank adapters in a network (arXiv:2106.09685): y = W x + alpha / r * B A x, where only A and B train.

Names, shapes and files of adapters: `adapters`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from codellama_model import LlamaForCausalLM
from mindspore import Parameter, Tensor, nn
from numpy.typing import NDArray


class LoraLinear(nn.Cell):
    """Takes the place of a `codellama_model.layers.Linear`, whose weight it shares: x [T, in] -> [T, out]."""

    def __init__(self, base: nn.Cell, lora_a: Parameter, lora_b: Parameter, scale: float) -> None:
        super().__init__(auto_prefix=False)
        self.weight = base.weight
        self.linear = base.linear
        self.lora_a, self.lora_b = lora_a, lora_b
        self.scale = scale

    def construct(self, x: Tensor) -> Tensor:
        low = self.linear(x, self.lora_a) * self.scale
        return self.linear(x, self.weight) + self.linear(low, self.lora_b)


def add_adapters(network: LlamaForCausalLM, tree: Mapping[str, NDArray[np.float32]], scale: float) -> None:
    """Puts the adapters into the network and leaves nothing but them to be trained.

    Args:
        network: is changed in place.
        tree: matrices by name, as `adapters.adapter_shapes` lists them.
        scale: alpha / rank.
    """
    for parameter in network.get_parameters():
        parameter.requires_grad = False
    for stem in dict.fromkeys(name.rsplit(".", 1)[0] for name in tree):
        layer, home, target = stem.removeprefix("model.layers.").split(".")
        owner = getattr(network.model.layers[int(layer)], home)
        base = getattr(owner, target)
        weight_name = base.weight.name
        a, b = (Parameter(Tensor(tree[f"{stem}.{side}"]), name=f"{stem}.{side}") for side in ("lora_a", "lora_b"))
        setattr(owner, target, LoraLinear(base, a, b, scale))
        # MindSpore prefixes the names of what is put into a cell, the shared weight's a second time
        base.weight.name, a.name, b.name = weight_name, f"{stem}.lora_a", f"{stem}.lora_b"
