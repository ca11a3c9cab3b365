"""Weights of other element types than float32, for prediction: float16, or int8 with scales.

The parameters keep their names; int8 adds a second one, NAME_scales, beside each matrix. Norms stay float32.
"""

from __future__ import annotations

import numpy as np
from mindspore import Parameter, Tensor
from numpy.typing import NDArray

from codellama_model.llama import LlamaForCausalLM


def set_weight(
    network: LlamaForCausalLM, name: str, value: NDArray[np.generic], scales: NDArray[np.float16] | None = None
) -> None:
    """Replaces the parameter `name` by `value` [out, in] of any of the types.

    Args:
        network: not compiled yet.
        name: of the parameter, "model.layers.0.attention.wq.weight".
        value: float32 or float16, or int8 with its `scales` (`quantization.quantize`); taken over, not copied.
        scales: float16 [out, groups].
    """
    path, attribute = name.rsplit(".", 1)
    cell = network
    for part in path.split("."):
        cell = cell[int(part)] if part.isdigit() else getattr(cell, part)
    # from_numpy takes the array's memory over; a copy of the largest matrix would be a good part of a small model.
    parameter = Parameter(Tensor.from_numpy(value), name=name, requires_grad=value.dtype == np.float32)
    setattr(cell, attribute, parameter)
    if scales is not None:
        parameter = Parameter(Tensor.from_numpy(scales), name=f"{name}_scales", requires_grad=False)
        setattr(cell, f"{attribute}_scales", parameter)
