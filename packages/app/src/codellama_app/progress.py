"""What the user sees while a run goes: one bar with loss, rate, norm, speed, share of the machine's peak, time left."""

from __future__ import annotations

import sys
from types import TracebackType

from codellama_parallel import StepResult
from tqdm import tqdm

_BAR = "{desc}{n_fmt}/{total_fmt} steps |{bar:16}| {postfix}, {remaining} left"
_RATE_GAIN = 0.1  # weight of the newest step in the shown tokens per second
_LOG_SECONDS = 10.0  # between lines where the bar goes into a file


class ProgressBar:
    """The bar of steps `done`..`total`.

    Args:
        total: steps of the whole run.
        done: steps of it that an earlier process did.
        flops_per_token: of a forward and backward pass.
        peak_flops: FLOP/s that all devices together reach in matrix products, measured.
    """

    def __init__(self, total: int, done: int, flops_per_token: float, peak_flops: float) -> None:
        self._flops_per_token, self._peak_flops = flops_per_token, peak_flops
        self._rate = 0.0
        self._steps = 0
        interval = 0.1 if sys.stderr.isatty() else _LOG_SECONDS
        self._bar = tqdm(
            total=total, initial=done, unit="step", dynamic_ncols=True, bar_format=_BAR, mininterval=interval
        )

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def mfu(self, tokens_per_second: float) -> float:
        """Model FLOP/s utilisation (PaLM, arXiv:2204.02311, appendix B), against the measured peak."""
        return tokens_per_second * self._flops_per_token / self._peak_flops

    def step(self, result: StepResult, learning_rate: float, tokens_per_second: float) -> None:
        """Shows a step. The first one, which compiles the graph, is left out of the rate."""
        self._steps += 1
        gain = 1.0 if self._steps <= 2 else _RATE_GAIN
        self._rate += (tokens_per_second - self._rate) * gain
        self._bar.set_postfix_str(
            f"loss {result.loss:.3f}, lr {learning_rate:.2e}, norm {result.grad_norm:.2f}, {self._rate:,.0f} tokens/s,"
            f" MFU {self.mfu(self._rate):.0%}",
            refresh=False,
        )
        self._bar.update()

    def write(self, line: str) -> None:
        """Prints a line above the bar."""
        self._bar.write(line)
