"""The number format of training's matrix products: what was asked for where the device has it, float32 elsewhere.

MindSpore's CPU backend has no bfloat16 products, and its float16 ones are slower than float32 (13 to 18 GFLOP/s where
float32 reaches 147 on the same two cores). Prompts have products of their own: `codellama_model.ops.select`.
"""

from __future__ import annotations

import mindspore as ms
from codellama_model import LlamaForCausalLM
from codellama_model.layers import Linear
from mindspore import Tensor, ops

from codellama_app.lora import LoraLinear

_WITH_NARROW_PRODUCTS = ("Ascend",)
_product = ops.MatMul(transpose_b=True)


def resolve_compute_dtype(asked: str, device: str) -> tuple[str, str]:
    """The format that is used, and a line that says so; names as in `RunConfig.compute_dtype`."""
    if asked == "float32" or device in _WITH_NARROW_PRODUCTS:
        return asked, f"compute: {asked} on {device}"
    return (
        "float32",
        f"compute: float32 on {device}, which does not train in {asked} (compute_dtype {asked} was asked)",
    )


def compute_in(network: LlamaForCausalLM, dtype: str) -> None:
    """Has the matrix products of the layers run in `dtype`; weights, their updates and all else stay float32."""
    if dtype == "float32":
        return
    linear = {"float16": _linear_float16, "bfloat16": _linear_bfloat16}[dtype]
    for _, cell in network.model.cells_and_names():
        if isinstance(cell, (Linear, LoraLinear)):
            cell.linear = linear


def _linear_float16(x: Tensor, weight: Tensor) -> Tensor:
    """x [T, in] times weight [out, in] transposed, in float16 -> float32 [T, out]."""
    return ops.cast(_product(ops.cast(x, ms.float16), ops.cast(weight, ms.float16)), ms.float32)


def _linear_bfloat16(x: Tensor, weight: Tensor) -> Tensor:
    """The same in bfloat16."""
    return ops.cast(_product(ops.cast(x, ms.bfloat16), ops.cast(weight, ms.bfloat16)), ms.float32)
