"""Dynamic loss scaling of float16 runs: the loss is multiplied so that small gradients do not become 0.

The rule is MindSpore's `nn.DynamicLossScaleUpdateCell`, kept on the host: plain numbers, which a checkpoint carries.
"""

from __future__ import annotations

from dataclasses import dataclass

SMALLEST = 1.0


@dataclass
class LossScale:
    """The factor on the loss and how it moves.

    Attributes:
        value: what the next step's loss is multiplied by.
        factor: it is divided by this after an overflow, and multiplied after `window` steps in a row without one.
        window: None leaves the value alone (float32 and bfloat16 runs: a value of 1).
        good_steps: steps since the value last moved.
        skipped: steps that overflowed, whose update was left out.
    """

    value: float = 1.0
    factor: float = 2.0
    window: int | None = None
    good_steps: int = 0
    skipped: int = 0

    @property
    def dynamic(self) -> bool:
        """Whether an overflow is an event of the method (and not the end of the run)."""
        return self.window is not None

    def update(self, overflow: bool) -> None:
        """Takes note of a step whose gradients were finite, or were not."""
        if self.window is None:
            return
        if overflow:
            self.value = max(self.value / self.factor, SMALLEST)
            self.good_steps = 0
            self.skipped += 1
            return
        self.good_steps += 1
        if self.good_steps >= self.window:
            self.value *= self.factor
            self.good_steps = 0
