"""AdamW as torch and the paper define it (arXiv:1711.05101, algorithm 2), updated in place inside a graph.

The arithmetic is the device table's `adamw` and `squared_norm`; here is what belongs to the optimizer as a whole: its
state, which parameters decay, and the order of its writes.
"""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from codellama_model import composed
from codellama_model.ops import Operation, Operations, select


class AdamW(nn.Cell):
    """Updates `parameters` from their gradients; moments are float32.

    Weight decay applies to matrices only: norms (rank 1) are left out, as Llama's training does.

    Args:
        parameters: what to train, in the order in which gradients will come.
        beta1, beta2, eps, weight_decay: as in `torch.optim.AdamW`; Llama 2's values by default.
        operations: the entry of the device table; None chooses by the device at hand.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        beta1: float = 0.9,
        beta2: float = 0.95,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        operations: Operations | None = None,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.parameters = ms.ParameterTuple(parameters)
        self.first = _moments(parameters, "adam_m")
        self.second = _moments(parameters, "adam_v")
        self.step = Parameter(Tensor(np.zeros((), np.float32)), name="adam_step", requires_grad=False)
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.decays = tuple(weight_decay if len(parameter.shape) > 1 else 0.0 for parameter in parameters)
        operations = select() if operations is None else operations
        self.update, self.squared_norm = operations.adamw, operations.squared_norm

    def construct(self, gradients: tuple[Tensor, ...], learning_rate: Tensor, scale: Tensor) -> Tensor:
        """One update from the gradients times `scale`, in the order of the parameters; both scalars float32 Tensors."""
        step = ops.assign_add(self.step, 1.0)
        # An update writes its parameter unseen by the graph: it must wait for everything that reads one, and the
        # gradients are the last to do so.
        scale = ops.depend(scale, gradients)
        done: tuple[Tensor, ...] = ()
        for index, gradient in enumerate(gradients):
            done += (
                self.update(
                    self.parameters[index],
                    self.first[index],
                    self.second[index],
                    gradient,
                    learning_rate,
                    scale,
                    step,
                    self.beta1,
                    self.beta2,
                    self.eps,
                    self.decays[index],
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


def global_norm(gradients: tuple[Tensor, ...], square: Operation | None = None) -> Tensor:
    """The joint 2-norm of all gradients, a scalar.

    `square` is the device table's `squared_norm`, which an optimizer has under that name; None: the composed one.
    """
    total = 0.0
    for gradient in gradients:
        squared = composed.squared_norm(gradient) if square is None else square(gradient)
        total += ops.reshape(squared, ())
    return ops.sqrt(total)


def clip_scale(norm: Tensor, limit: float) -> Tensor:
    """The factor that brings gradients of this joint norm down to `limit`; 1 where they are below it."""
    return limit / ops.maximum(norm, limit)
