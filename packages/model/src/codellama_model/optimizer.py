"""AdamW as torch and the paper define it, updated in place inside a graph.

MindSpore's `nn.AdamWeightDecay` leaves out the bias correction; its kernel is used here with the correction folded into
its scalars, so that one fused pass per parameter gives exactly the update of arXiv:1711.05101, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops


class AdamW(nn.Cell):
    """Updates `parameters` from their gradients; moments are float32.

    Weight decay applies to matrices only: norms (rank 1) are left out, as Llama's training does.

    Args:
        parameters: what to train, in the order in which gradients will come.
        beta1, beta2, eps, weight_decay: as in `torch.optim.AdamW`; Llama 2's values by default.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        beta1: float = 0.9,
        beta2: float = 0.95,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.parameters = ms.ParameterTuple(parameters)
        self.first = _moments(parameters, "adam_m")
        self.second = _moments(parameters, "adam_v")
        self.step = Parameter(Tensor(np.zeros((), np.float32)), name="adam_step", requires_grad=False)
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.decays = tuple(weight_decay if len(parameter.shape) > 1 else 0.0 for parameter in parameters)
        self.update = ops.AdamWeightDecay()

    def construct(self, gradients: tuple[Tensor, ...], learning_rate: Tensor, scale: Tensor) -> Tensor:
        """One update from the gradients times `scale`, in the order of the parameters; both scalars float32 Tensors."""
        step = ops.assign_add(self.step, 1.0)
        # the kernel computes p -= lr' (m / (sqrt(v) + eps') + decay' p); these three make it AdamW's update
        root = ops.sqrt(1.0 - ops.pow(self.beta2, step))
        factor = root / (1.0 - ops.pow(self.beta1, step))
        rate, eps = learning_rate * factor, self.eps * root
        done: tuple[Tensor, ...] = ()
        for index, gradient in enumerate(gradients):
            done += (
                self.update(
                    self.parameters[index],
                    self.first[index],
                    self.second[index],
                    rate,
                    self.beta1,
                    self.beta2,
                    eps,
                    self.decays[index] / factor,
                    gradient * scale,
                ),
            )
        return ops.depend(step, done)


def _moments(parameters: Sequence[Parameter], prefix: str) -> ms.ParameterTuple:
    return ms.ParameterTuple(
        [
            Parameter(Tensor(np.zeros(p.shape, np.float32)), name=f"{prefix}.{p.name}", requires_grad=False)
            for p in parameters
        ]
    )


def global_norm(gradients: tuple[Tensor, ...]) -> Tensor:
    """The joint 2-norm of all gradients, a scalar."""
    total = 0.0
    for gradient in gradients:
        total += ops.sum(ops.square(gradient))
    return ops.sqrt(total)


def clip_scale(norm: Tensor, limit: float) -> Tensor:
    """The factor that brings gradients of this joint norm down to `limit`; 1 where they are below it."""
    return limit / ops.maximum(norm, limit)
