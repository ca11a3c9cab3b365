"""What a machine's measured rates allow at best: seconds from bytes and FLOPs, and the memory that must be held."""

from collections.abc import Mapping
from typing import Any

from train_protocol import named_size, step_flops

_HALF = 2  # bytes of a float16 weight or cache entry
_TRAINED = 16  # bytes of a weight that is trained: itself, its gradient, two moments, all float32
# Products of bfloat16 parts: three are as accurate as a float16 weight, six as float32.
_PARTS_NARROW, _PARTS_EXACT = 3, 6


class Bounds:
    """Bounds of the network that decodes and of the one that trains.

    Args:
        machine: `product_rate` and `bfloat16_product_rate` in FLOP/s, `read_rate` in bytes/s.
        sizes: of the network that decodes, as its config.json says them.
    """

    def __init__(self, machine: Mapping[str, float], sizes: Mapping[str, Any]) -> None:
        self._machine = machine
        self._layers, self._heads = sizes["num_hidden_layers"], sizes["num_attention_heads"]
        hidden, self._kv_heads = sizes["hidden_size"], sizes["num_key_value_heads"]
        self._width = hidden // self._heads
        attention = hidden * self._width * 2 * (self._heads + self._kv_heads)
        self._matrices = self._layers * (attention + 3 * hidden * sizes["intermediate_size"])
        self._head = sizes["vocab_size"] * hidden  # tied: the embedding is the same numbers

    def seconds(self, work: str, length: int) -> float:
        """decode: a token after `length` others; prefill: a prompt of `length`; train: a step over `length`."""
        exact = self._machine["product_rate"]
        narrow = self._machine["bfloat16_product_rate"]
        if work == "decode":
            return self.bytes(work, length) / self._machine["read_rate"]
        if work == "prefill":
            scores = self._layers * 2 * length * self._heads * self._width  # times two products, half of them masked
            flops = 2.0 * (length * (self._matrices + scores / 2) + self._head)
            return flops / max(exact, narrow / _PARTS_NARROW)
        return step_flops(named_size(f"56m:{length}")) / max(exact, narrow / _PARTS_EXACT)

    def bytes(self, work: str, length: int) -> float:
        """decode and prefill: float16 weights and a float16 cache of `length`; train: weights, gradients, moments."""
        if work != "train":
            cache = self._layers * 2 * self._kv_heads * self._width * length
            return float(_HALF * (self._matrices + self._head + cache))
        size = named_size(f"56m:{length}")
        width = size["hidden_size"] // size["num_heads"]
        attention = size["hidden_size"] * width * 2 * (size["num_heads"] + size["n_kv_heads"])
        layer = attention + 3 * size["hidden_size"] * size["intermediate_size"]
        return float(_TRAINED * (size["num_layers"] * layer + 2 * size["vocab_size"] * size["hidden_size"]))
