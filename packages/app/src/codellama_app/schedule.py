"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from codellama_app.config import ScheduleConfig


def learning_rate(step: int, max_steps: int, peak: float, schedule: ScheduleConfig) -> float:
    """The rate of step 1..max_steps: a linear rise over the warm-up, then the schedule down to its end ratio.

    The first step of a warm-up of W has peak / W; the last step of the run has `lr_end_ratio` * peak.
    """
    warmup = round(schedule.warmup_ratio * max_steps)
    if step <= warmup:
        return peak * step / warmup
    if schedule.type == "constant":
        return peak
    done = (step - warmup) / max(1, max_steps - warmup)
    left = (1 + math.cos(math.pi * done)) / 2 if schedule.type == "cosine" else 1 - done
    return peak * (schedule.lr_end_ratio + (1 - schedule.lr_end_ratio) * left)
