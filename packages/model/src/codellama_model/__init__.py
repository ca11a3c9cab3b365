"""The Llama network on MindSpore: `LlamaForCausalLM`, its cache, generation and training loss.

`codellama_model.config` (also exported here) imports without MindSpore; everything else loads MindSpore on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from codellama_model.config import PRESETS, ConfigError, LlamaConfig, preset

if TYPE_CHECKING:
    from codellama_model.cache import CachedLlama
    from codellama_model.generation import GenerationError, Generator, Token, sequence_logits
    from codellama_model.llama import LlamaForCausalLM
    from codellama_model.loss import IGNORE_INDEX, CausalLMLoss
    from codellama_model.ops import Operations, select
    from codellama_model.optimizer import AdamW, clip_scale, global_norm
    from codellama_model.quantization import WEIGHT_DTYPES, WeightDtype, dequantize, quantize
    from codellama_model.sampling import Sampling
    from codellama_model.weights import set_weight

_HOMES = {
    "CachedLlama": "cache",
    "GenerationError": "generation",
    "Generator": "generation",
    "Token": "generation",
    "sequence_logits": "generation",
    "LlamaForCausalLM": "llama",
    "IGNORE_INDEX": "loss",
    "CausalLMLoss": "loss",
    "Operations": "ops",
    "select": "ops",
    "AdamW": "optimizer",
    "clip_scale": "optimizer",
    "global_norm": "optimizer",
    "dequantize": "quantization",
    "quantize": "quantization",
    "Sampling": "sampling",
    "WEIGHT_DTYPES": "quantization",
    "WeightDtype": "quantization",
    "set_weight": "weights",
}

__all__ = [
    "IGNORE_INDEX",
    "PRESETS",
    "WEIGHT_DTYPES",
    "AdamW",
    "CachedLlama",
    "CausalLMLoss",
    "ConfigError",
    "GenerationError",
    "Generator",
    "LlamaConfig",
    "LlamaForCausalLM",
    "Operations",
    "Sampling",
    "Token",
    "WeightDtype",
    "clip_scale",
    "dequantize",
    "global_norm",
    "preset",
    "quantize",
    "select",
    "sequence_logits",
    "set_weight",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # noqa: PLC0415  (only where something is loaded)

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
