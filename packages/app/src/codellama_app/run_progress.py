"""How far a run has come, as JSON has it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from codellama_ckpt import CheckpointError

from codellama_app.loss_scale import LossScale


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
