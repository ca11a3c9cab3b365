"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from codellama_app.config import ScheduleConfig


def warmup_steps(schedule: ScheduleConfig, max_steps: int) -> int:
    """Steps over which the rate rises."""
    return round(schedule.warmup_ratio * max_steps) if schedule.warmup_steps is None else schedule.warmup_steps


def learning_rate(step: int, max_steps: int, peak: float, schedule: ScheduleConfig) -> float:
    """The rate of step 1..max_steps: a linear rise over the warm-up, then the schedule down to its end ratio.

    The first step of a warm-up of W has peak / W; the last step of the run has `lr_end_ratio` * peak. With an end of 0
    it is transformers' schedule of the same name one step ahead, whose first step has a rate of 0.
    """
    warmup = warmup_steps(schedule, max_steps)
    if step <= warmup:
        return peak * step / warmup
    if schedule.type == "constant":
        return peak
    done = (step - warmup) / max(1, max_steps - warmup)
    left = (1 + math.cos(math.pi * done)) / 2 if schedule.type == "cosine" else 1 - done
    return peak * (schedule.lr_end_ratio + (1 - schedule.lr_end_ratio) * left)
