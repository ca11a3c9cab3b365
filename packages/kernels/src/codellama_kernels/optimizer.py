"""The optimizer's update in place, and the squared norm of a gradient."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor

from codellama_kernels.operator import declare, require


def adamw(
    parameter: Tensor,
    first: Tensor,
    second: Tensor,
    gradient: Tensor,
    learning_rate: Tensor,
    scale: Tensor,
    step: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> Tensor:
    """One update of AdamW (arXiv:1711.05101, algorithm 2; `torch.optim.AdamW`), bias correction included, in one pass.

    The graph does not see the writes. Whatever must come after them has to depend on the result, and whatever still
    reads the parameter must come before one of the arguments: a `scale` or `learning_rate` that depends on all
    gradients does that, since these are the last to read the parameters.

    Args:
        parameter: a Parameter of any shape; written.
        first: its first moment, a Parameter of the same shape; written.
        second: its second moment; written.
        gradient: of the same shape.
        learning_rate: scalar.
        scale: scalar, the factor of the gradient.
        step: scalar, the number of this update, from 1.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: factor of the parameter itself, times the learning rate.

    Returns:
        float32 [1]: the step.
    """
    constants = Tensor([beta1, beta2, eps, weight_decay], ms.float32)
    return _adamw(parameter, first, second, gradient, learning_rate, scale, step, constants)


def squared_norm(gradient: Tensor) -> Tensor:
    """The sum of squares of a Tensor of any shape, float32 [1]."""
    return _squared_norm(gradient)


def _adamw_shape(
    parameter: list[int], first: list[int], second: list[int], gradient: list[int], *scalars: list[int]
) -> list[int]:
    for name, shape in (("first", first), ("second", second), ("gradient", gradient)):
        require(name, shape, parameter)
    return [1]


_adamw = declare(
    "adamw",
    ("parameter", "first", "second", "gradient", "learning_rate", "scale", "step", "constants"),
    _adamw_shape,
)
_squared_norm = declare("squared_norm", ("gradient",), lambda gradient: [1])
