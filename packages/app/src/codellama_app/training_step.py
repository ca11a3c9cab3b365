"""One optimizer step in graphs: loss, gradients, clipping, update; over one micro-batch or several.

The loss of a step is the sum over all its tokens under loss, divided once. Gradients stay sums until the update, whose
scale carries everything that they are divided by: tokens, loss scale, clipping.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import mindspore as ms
import numpy as np
from codellama_model import AdamW, clip_scale, global_norm
from codellama_parallel import StepResult
from mindspore import Parameter, Tensor, nn, ops
from numpy.typing import NDArray

from codellama_app.loss_inputs import loss_inputs

Batch = Mapping[str, NDArray[np.int32]]


class Step(Protocol):
    """What the loop calls: trains on a batch.

    Where overflows are part of the method (dynamic loss scaling), gradients that are not finite must change nothing.
    Otherwise they end the run, and what became of the weights does not matter: the checkpoints are older.
    """

    def __call__(self, learning_rate: float, loss_scale: float, batch: Batch) -> StepResult: ...


@runtime_checkable
class WaitingStep(Step, Protocol):
    """A step that can wait within.

    Attributes:
        before_update: called once a step, from any thread, when only the update is left to do: until it returns, the
            arrays that the step changes (the count of the updates aside) are as they were.
    """

    before_update: Callable[[], object]


class TrainingStep:
    """The step of one process, a `WaitingStep`.

    Args:
        loss: maps (input_ids, labels[, document_ids]) to the summed loss and the number of tokens under it.
        optimizer: over what is to be trained.
        max_grad_norm: the gradients' joint 2-norm is clipped to it.
        micro_batches: a batch is cut into so many, whose gradients are added up in place.
        skip_overflows: gradients that are not finite change nothing.
    """

    def __init__(
        self,
        loss: nn.Cell,
        optimizer: AdamW,
        max_grad_norm: float,
        micro_batches: int = 1,
        skip_overflows: bool = False,
    ) -> None:
        self.micro_batches, self.max_grad_norm, self.skip_overflows = micro_batches, max_grad_norm, skip_overflows
        self.before_update: Callable[[], object] = _nothing
        self._whole = None
        if micro_batches == 1 and not skip_overflows:
            # one graph: the gradients never rest in memory of their own
            self._waits_inside = ms.get_context("device_target") == "CPU"  # where graphs can call Python
            waiting = _waiting(self) if self._waits_inside else None
            self._whole = _WholeStep(loss, optimizer, max_grad_norm, waiting)
            return
        # An `if` in a graph would decide about the update too, but MindSpore 2.10 (CPU) does not see what is set into
        # parameters after such a graph's first run. So the gradients rest in sums, and Python decides.
        sums = _zeros_like(optimizer.parameters)
        self._accumulate = _Accumulate(loss, optimizer, sums)
        self._norm, self._update, self._clear = _Norm(optimizer, sums), _Update(optimizer, sums), _Clear(sums)

    def __call__(self, learning_rate: float, loss_scale: float, batch: Batch) -> StepResult:
        """Trains on `batch` (columns int32 [micro_batches * B, S + 1]) with the loss multiplied by `loss_scale`."""
        rate, scale = _scalar(learning_rate), _scalar(loss_scale)
        if self._whole is not None:
            if not self._waits_inside:
                self.before_update()
            total, tokens, norm = (_number(value) for value in self._whole(rate, scale, *loss_inputs(batch)))
            return StepResult(total / max(tokens, 1.0), norm, int(tokens))
        parts = [self._accumulate(scale, *loss_inputs(part)) for part in split(batch, self.micro_batches)]
        total = math.fsum(_number(part[0]) for part in parts)
        tokens = math.fsum(_number(part[1]) for part in parts)
        divisor = max(tokens, 1.0) * loss_scale
        result = StepResult(total / max(tokens, 1.0), _number(self._norm()) / divisor, int(tokens))
        self.before_update()
        if result.finite or not self.skip_overflows:
            clipping = self.max_grad_norm / max(result.grad_norm, self.max_grad_norm)
            self._update(rate, _scalar(clipping / divisor))
        self._clear()
        return result


def _nothing() -> None:
    """What happens before an update unless somebody wishes otherwise."""


def _waiting(step: WaitingStep) -> ops.Custom:
    """An operator that calls the step's `before_update` and returns its argument, a float32 scalar; about 0.1 ms."""

    def wait(value: NDArray[np.float32]) -> NDArray[np.float32]:
        step.before_update()
        return value

    return ops.Custom(wait, lambda shape: shape, lambda dtype: dtype, func_type="pyfunc")


def split(batch: Batch, parts: int) -> Sequence[Batch]:
    """A batch as micro-batches of consecutive rows."""
    rows = len(next(iter(batch.values()))) // parts
    return [{name: column[i * rows : (i + 1) * rows] for name, column in batch.items()} for i in range(parts)]


class _ScaledLoss(nn.Cell):
    """(loss scale, inputs) -> the scaled sum, which is differentiated; the sum; the number of tokens."""

    def __init__(self, loss: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.loss = loss
        self.set_train(True)

    def construct(
        self, loss_scale: Tensor, input_ids: Tensor, labels: Tensor, document_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        total, tokens = self.loss(input_ids, labels, document_ids)
        return total * loss_scale, total, tokens


class _WholeStep(nn.Cell):
    """A step of one micro-batch: (rate, loss scale, inputs) -> (sum of the loss, tokens, norm)."""

    def __init__(self, loss: nn.Cell, optimizer: AdamW, max_grad_norm: float, waiting: ops.Custom | None) -> None:
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm
        self.waiting = waiting
        self.gradient = ops.value_and_grad(_ScaledLoss(loss), None, optimizer.parameters, has_aux=True)
        self.set_train(True)

    def construct(
        self,
        learning_rate: Tensor,
        loss_scale: Tensor,
        input_ids: Tensor,
        labels: Tensor,
        document_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        (_, total, tokens), gradients = self.gradient(loss_scale, input_ids, labels, document_ids)
        divisor = ops.maximum(tokens, 1.0) * loss_scale
        norm = global_norm(gradients, self.optimizer.squared_norm) / divisor
        scale = clip_scale(norm, self.max_grad_norm) / divisor
        if self.waiting is not None:
            scale = self.waiting(scale)  # comes after all gradients, and everything that is updated needs it
        updated = self.optimizer(gradients, learning_rate, scale)
        return ops.depend(total, updated), tokens, norm


class _Accumulate(nn.Cell):
    """A micro-batch: (loss scale, inputs) -> (sum of the loss, tokens); its gradients are added to `sums`."""

    def __init__(self, loss: nn.Cell, optimizer: AdamW, sums: ms.ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.sums = sums
        self.gradient = ops.value_and_grad(_ScaledLoss(loss), None, optimizer.parameters, has_aux=True)
        self.set_train(True)

    def construct(
        self, loss_scale: Tensor, input_ids: Tensor, labels: Tensor, document_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        (_, total, tokens), gradients = self.gradient(loss_scale, input_ids, labels, document_ids)
        added: tuple[Tensor, ...] = ()
        for index, gradient in enumerate(gradients):
            added += (ops.assign_add(self.sums[index], gradient),)
        return ops.depend(total, added), tokens


class _Norm(nn.Cell):
    """-> the joint 2-norm of the summed gradients."""

    def __init__(self, optimizer: AdamW, sums: ms.ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer
        self.sums = sums

    def construct(self) -> Tensor:
        return global_norm(tuple(self.sums), self.optimizer.squared_norm)


class _Update(nn.Cell):
    """An update from the summed gradients: (rate, factor on them) -> the number of updates so far."""

    def __init__(self, optimizer: AdamW, sums: ms.ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer
        self.sums = sums

    def construct(self, learning_rate: Tensor, scale: Tensor) -> Tensor:
        return self.optimizer(tuple(self.sums), learning_rate, scale)


class _Clear(nn.Cell):
    """Sets the sums to 0."""

    def __init__(self, sums: ms.ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.sums = sums

    def construct(self) -> bool:
        for one in self.sums:
            ops.assign(one, ops.zeros_like(one))
        return True


def _zeros_like(parameters: ms.ParameterTuple) -> ms.ParameterTuple:
    return ms.ParameterTuple(
        [
            Parameter(Tensor(np.zeros(p.shape, np.float32)), name=f"sum.{p.name}", requires_grad=False)
            for p in parameters
        ]
    )


def _scalar(value: float) -> Tensor:
    return Tensor(value, ms.float32)


def _number(value: Tensor) -> float:
    return float(value.asnumpy())
