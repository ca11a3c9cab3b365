"""What a training is at the end of a step, as a checkpoint holds it: arrays by name, and everything else as JSON.

Arrays: what trains (the whole network, or the adapters), AdamW's two moments of each, its step count. A process that
holds slices of them says which in `slices`. The loop draws no random numbers after the first weights: the data's order
follows from the seed and the number of steps, so that no state of a random generator needs to be kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from codellama_ckpt import Checkpoint, CheckpointError, GlobalSlice, LazyTensor, training_name
from codellama_model import AdamW
from mindspore import Parameter, Tensor

from codellama_app.loss_scale import LossScale

_FIRST, _SECOND, _COUNT = "exp_avg", "exp_avg_sq", "adam_step"  # torch's names of the moments


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: steps done, and so batches consumed.
        tokens: tokens read.
        seconds: of all steps, those before a resume included.
        loss_scale: its value and history.
        eval_loss: of the last validation, and the step it followed; None before the first.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss_scale: LossScale = field(default_factory=LossScale)
    eval_loss: float | None = None
    eval_step: int = 0

    def to_json(self) -> dict[str, object]:
        """For `save_sharded(state=...)`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> Progress:
        """The inverse of `to_json`; CheckpointError where the fields are others."""
        try:
            known = dict(values)
            return cls(**{**known, "loss_scale": LossScale(**known["loss_scale"])})  # type: ignore[arg-type]
        except (TypeError, KeyError) as error:
            raise CheckpointError(
                f"its training state was written by another version of this program ({error})"
            ) from None


class TrainingState:
    """The arrays of a training.

    Args:
        optimizer: its parameters are what trains.
        slices: for parameters of which this process holds a part, which part.
    """

    def __init__(self, optimizer: AdamW, slices: Mapping[str, GlobalSlice] | None = None) -> None:
        self._arrays: dict[str, Parameter] = {}
        self.slices: dict[str, GlobalSlice] = {}
        for kind, parameters in (("", optimizer.parameters), (_FIRST, optimizer.first), (_SECOND, optimizer.second)):
            for owner, parameter in zip(optimizer.parameters, parameters, strict=True):
                name = training_name(kind, owner.name) if kind else owner.name
                self._arrays[name] = parameter
                if slices and owner.name in slices:
                    self.slices[name] = slices[owner.name]
        self._arrays[training_name(_COUNT)] = optimizer.step

    def tree(self) -> dict[str, LazyTensor]:
        """Every array, looked at only when it is written. What `load` gives is the memory that training changes."""
        return {name: LazyTensor("float32", tuple(p.shape), p.asnumpy) for name, p in self._arrays.items()}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Reads every array (or this process's slice of it) back, one at a time, bit for bit.

        Raises:
            CheckpointError: arrays are missing or misshapen, or the checkpoint is damaged.
        """
        held = {*checkpoint.names(), *checkpoint.training_names()}
        if missing := [name for name in self._arrays if name not in held]:
            raise CheckpointError(
                f"{checkpoint.path} can not be resumed from: it lacks {len(missing)} arrays of the training,"
                f" {missing[0]} first (weights alone are for run_mode finetune)"
            )
        for name, parameter in self._arrays.items():
            whole = self.slices[name].shape if name in self.slices else tuple(parameter.shape)
            if checkpoint.shape(name) != tuple(whole):
                raise CheckpointError(
                    f"{checkpoint.path}: {name} is {list(checkpoint.shape(name))}, this run has {list(whole)}"
                )
            part = self.slices[name].slices if name in self.slices else None
            parameter.set_data(Tensor(checkpoint.read(name, part, dtype="float32")))
