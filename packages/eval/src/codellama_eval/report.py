"""The report of a scoring: what was found, how sure it is, and on what it stands."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from codellama_eval.execution import STATUSES
from codellama_eval.sandbox.isolation import LAYERS


@dataclass(frozen=True)
class Report:
    """What `evaluate` found.

    Attributes:
        pass_at_k: "pass@1" and so on: the mean over `tasks`; `standard_error` of it, over tasks.
        left_out: every k that was asked for and can not be estimated, with the reason.
        tasks: tasks that the mean is over; `attempted`: those with samples; `all_tasks`: the benchmark's.
        statuses: samples by outcome (`execution.STATUSES`); `exceptions`: by the exception's type.
        unconfirmed_passes: passes of programs that could have touched their tests, of tasks that can not be run apart.
        exact_match: share of completions equal to the canonical one, apart from surrounding blanks; infilling only.
        paper: the Code Llama paper's figures for `model`.
        run_together: tasks that `strict` could not separate, since they pass objects.
        timeout: seconds of processor time.
        layers: of the sandbox; None where on, else why not.
    """

    benchmark: str
    pass_at_k: dict[str, float]
    standard_error: dict[str, float]
    left_out: dict[str, str]
    tasks: int
    attempted: int
    all_tasks: int
    samples: int
    statuses: dict[str, int]
    exceptions: dict[str, int]
    unconfirmed_passes: int
    exact_match: float | None
    paper: dict[str, float]
    model: str | None
    strict: bool
    run_together: list[str]
    timeout: float
    layers: dict[str, str | None]
    seconds: float
    samples_per_second: float
    data_sha256: str
    python: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON: a standard error that there is none of becomes null."""
        values = dataclasses.asdict(self)
        values["standard_error"] = {
            name: None if math.isnan(error) else error for name, error in self.standard_error.items()
        }
        return values

    def lines(self) -> list[str]:
        """For reading; `{'pass@1': 0.4695}` is the last."""
        lines = [f"{self.samples:,} samples of {self.attempted} of {self.all_tasks} tasks of {self.benchmark}"]
        if self.tasks > self.attempted:
            lines[0] += f"; the other {self.tasks - self.attempted} count as wrong"
        elif self.tasks < self.all_tasks:
            lines[0] += f"; the other {self.all_tasks - self.tasks} are left out: this is no score of the benchmark"
        lines += [f"  {count:>6,} {status}: {STATUSES[status]}" for status, count in self.statuses.items()]
        if self.exceptions:
            lines.append("  exceptions: " + ", ".join(f"{name} {count}" for name, count in _first(self.exceptions, 8)))
        if self.unconfirmed_passes:
            lines.append(
                f"  {self.unconfirmed_passes:,} of the passes could have touched their tests, which pass objects and"
                " can not be run apart"
            )
        on = [name for name in LAYERS if self.layers[name] is None]
        lines.append(f"sandbox: {', '.join(on)}{' (strict)' * self.strict}")
        if self.run_together:
            tasks = ", ".join(name for name, _ in _first(dict.fromkeys(self.run_together, 0), 3))
            lines.append(
                f"  {len(self.run_together)} tasks pass objects, so they ran beside their tests: {tasks}"
                + ", ..." * (len(self.run_together) > 3)
            )
        lines += [f"  without {name}: {reason}" for name, reason in self.layers.items() if reason is not None]
        lines.append(f"{self.samples_per_second:,.0f} samples/s, {self.seconds:.1f} s in all")
        if self.exact_match is not None:
            lines.append(f"exact match: {self.exact_match:.4f}")
        for name, value in self.pass_at_k.items():
            error = self.standard_error[name]
            lines.append(f"{name}: {100 * value:.1f} %" + ("" if math.isnan(error) else f" ± {100 * error:.1f}"))
        lines += [f"{name}: left out, {reason}" for name, reason in self.left_out.items()]
        if self.paper:
            figures = ", ".join(f"{name} {100 * value:.1f} %" for name, value in self.paper.items())
            lines.append(f"the paper's {self.model} (arXiv:2308.12950): {figures}")
        elif self.model is not None:
            lines.append(f"the paper has no figure for {self.model!r} on {self.benchmark}")
        lines.append(str({name: round(value, 4) for name, value in self.pass_at_k.items()}))
        return lines


def _first(values: dict[str, int], count: int) -> list[tuple[str, int]]:
    return list(values.items())[:count]
