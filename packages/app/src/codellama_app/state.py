"""The arrays of a training, as a checkpoint holds them.

What trains (the whole network, or the adapters), AdamW's two moments of each, its step count; of all that, this
process's part. What a training is besides: `run_progress`. The loop draws no random numbers after the first weights:
the data's order follows from the seed and the number of steps, so that no state of a random generator needs to be kept.
"""

from __future__ import annotations

from collections.abc import Sequence

from codellama_ckpt import Checkpoint, CheckpointError, GlobalSlice, LazyTensor, training_name
from codellama_model import AdamW
from codellama_parallel import StateTensor
from mindspore import Parameter, Tensor

_FIRST, _SECOND, _COUNT = "exp_avg", "exp_avg_sq", "adam_step"  # torch's names of the moments


def arrays_of(optimizer: AdamW) -> list[StateTensor]:
    """The arrays of a training that one process holds whole."""
    kinds = (("", optimizer.parameters), (_FIRST, optimizer.first), (_SECOND, optimizer.second))
    arrays = [
        _whole(kind, owner.name, parameter)
        for kind, parameters in kinds
        for owner, parameter in zip(optimizer.parameters, parameters, strict=True)
    ]
    return [*arrays, _whole(_COUNT, "", optimizer.step)]


def _whole(kind: str, name: str, parameter: Parameter) -> StateTensor:
    shape = tuple(parameter.shape)
    return StateTensor(kind, name, shape, tuple((0, side) for side in shape), parameter, owner=True)


class TrainingState:
    """The arrays of a training, or what this process holds of them.

    Args:
        arrays: of them all ranks together have every part, and each part one owner.
    """

    def __init__(self, arrays: Sequence[StateTensor]) -> None:
        self.arrays = {_stored_name(one): one for one in arrays}

    def tree(self) -> dict[str, LazyTensor]:
        """What this process saves, looked at only when it is written. `load` gives the memory that training changes."""
        return {
            name: LazyTensor("float32", tuple(one.parameter.shape), one.parameter.asnumpy)
            for name, one in self.arrays.items()
            if one.owner
        }

    def slices(self) -> dict[str, GlobalSlice]:
        """For the tensors of `tree` that are parts, which part."""
        return {
            name: GlobalSlice(one.shape, tuple(slice(*side) for side in one.box))
            for name, one in self.arrays.items()
            if one.owner and tuple(one.parameter.shape) != one.shape
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Reads every array (or this process's slice of it) back, one at a time, bit for bit.

        Raises:
            CheckpointError: arrays are missing or misshapen, or the checkpoint is damaged.
        """
        held = {*checkpoint.names(), *checkpoint.training_names()}
        if missing := [name for name in self.arrays if name not in held]:
            raise CheckpointError(
                f"{checkpoint.path} can not be resumed from: it lacks {len(missing)} arrays of the training,"
                f" {missing[0]} first (weights alone are for run_mode finetune)"
            )
        for name, one in self.arrays.items():
            if checkpoint.shape(name) != one.shape:
                raise CheckpointError(
                    f"{checkpoint.path}: {name} is {list(checkpoint.shape(name))}, this run has {list(one.shape)}"
                )
            part = tuple(slice(*side) for side in one.box)
            one.parameter.set_data(Tensor(checkpoint.read(name, part, dtype="float32")))


def _stored_name(one: StateTensor) -> str:
    return training_name(one.kind, one.name) if one.kind else one.name
