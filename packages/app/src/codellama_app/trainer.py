"""The training loop: batches in, metrics and checkpoints out, a progress bar meanwhile."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import mindspore as ms
import numpy as np
from codellama_ckpt import save_sharded
from codellama_data import batches, open_rows
from codellama_model import AdamW, CausalLMLoss, LlamaForCausalLM
from mindspore import Tensor
from numpy.typing import NDArray
from tqdm import tqdm

from codellama_app.codellama import config_metadata
from codellama_app.command import InterruptedRunError, UserError
from codellama_app.config import RunConfig
from codellama_app.interrupts import Interrupts
from codellama_app.loss_inputs import loss_inputs
from codellama_app.metrics import Metrics
from codellama_app.run_directory import checkpoint_path
from codellama_app.schedule import learning_rate
from codellama_app.training_step import TrainingStep
from codellama_app.weights import tree_of

_BAR = "{desc}{n_fmt}/{total_fmt} steps |{bar:20}| {postfix}, {remaining} left"
_RATE_GAIN = 0.1  # weight of the newest step in the shown tokens per second


@dataclass(frozen=True)
class Trained:
    """How the loop went: seconds of all steps, the first of which compiles the graph; the last step's loss."""

    seconds: float
    compile_seconds: float
    tokens: int
    loss: float


class Trainer:
    """Trains `network` on the MindRecord rows of `train_rows` as `config` says.

    Args:
        config: the run.
        network: is trained in place.
        train_rows: rows of seq_length + 1 ids.
        directory: the run's directory; exists.
        peak_flops: the machine's measured matrix-product rate, FLOP/s.

    Raises:
        UserError: the rows are not those of the configuration.
    """

    def __init__(
        self, config: RunConfig, network: LlamaForCausalLM, train_rows: Path, directory: Path, peak_flops: float
    ) -> None:
        self.config, self.network, self.train_rows, self.directory = config, network, train_rows, directory
        self.peak_flops = peak_flops
        check_rows(train_rows, config)
        optimizer = config.optimizer
        self.loss = CausalLMLoss(network)
        self.step = TrainingStep(
            self.loss,
            AdamW(
                network.trainable_params(),
                beta1=optimizer.beta1,
                beta2=optimizer.beta2,
                eps=optimizer.eps,
                weight_decay=optimizer.weight_decay,
            ),
            optimizer.max_grad_norm,
        )
        self.step.set_train(True)

    def run(self) -> Trained:
        """Trains to `max_steps`.

        Raises:
            InterruptedRunError: Ctrl-C or SIGTERM; the step was finished and a checkpoint saved.
            UserError: the loss is no longer finite.
        """
        config = self.config
        tokens_a_step = config.dataset.batch_size * config.dataset.seq_length
        flops_a_token = config.llama().flops_per_token(config.dataset.seq_length)
        rows = batches(self.train_rows, config.dataset.batch_size, seed=config.seed)
        rate, seconds, loss, first = 0.0, 0.0, math.nan, 0.0
        bar = tqdm(total=config.max_steps, unit="step", dynamic_ncols=True, bar_format=_BAR)
        with Interrupts() as interrupts, Metrics(self.directory) as metrics, bar:
            for step in range(1, config.max_steps + 1):
                start = time.perf_counter()
                batch = next(rows)
                lr = learning_rate(step, config.max_steps, config.optimizer.learning_rate, config.lr_schedule)
                loss, norm = self._update(batch, lr)
                elapsed = time.perf_counter() - start
                seconds += elapsed
                first = first or elapsed  # compiles the graph: left out of the rate
                rate = tokens_a_step / elapsed if step <= 2 else rate + (tokens_a_step / elapsed - rate) * _RATE_GAIN
                metrics.step(
                    {
                        "step": step,
                        "loss": loss,
                        "lr": lr,
                        "grad_norm": norm,
                        "tokens_per_second": tokens_a_step / elapsed,
                        "peak_share": tokens_a_step / elapsed * flops_a_token / self.peak_flops,
                        "seconds": seconds,
                    }
                )
                share = rate * flops_a_token / self.peak_flops
                bar.set_postfix_str(f"loss {loss:.3f}, {rate:,.0f} tokens/s, {share:.0%} of peak", refresh=False)
                bar.update()
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    raise UserError(
                        f"step {step}: loss {loss}, gradient norm {norm}: the run has diverged; lower"
                        " optimizer.learning_rate (checkpoints of earlier steps are kept)"
                    )
                if interrupts.requested:
                    bar.close()
                    raise InterruptedRunError(f"interrupted after step {step}; checkpoint saved in {self.save(step)}")
                if step % config.save_steps == 0 or step == config.max_steps:
                    self.save(step)
        return Trained(seconds, first, tokens_a_step * config.max_steps, loss)

    def save(self, step: int) -> Path:
        """Saves the network after `step`; returns the checkpoint's directory."""
        path = checkpoint_path(self.directory, step)
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            save_sharded(
                tree_of(self.network), path, metadata=config_metadata(self.network.config) | {"step": str(step)}
            )
        return path

    def _update(self, batch: dict[str, NDArray[np.int32]], lr: float) -> tuple[float, float]:
        loss, norm = self.step(Tensor(lr, ms.float32), *loss_inputs(batch))
        return float(loss.asnumpy()), float(norm.asnumpy())


def check_rows(path: Path, config: RunConfig) -> None:
    """Refuses rows that do not fit the configuration."""
    rows = open_rows(path)
    data = config.dataset
    if rows.seq_length != data.seq_length:
        raise UserError(
            f"{path} has rows of {rows.seq_length} + 1 ids, the configuration dataset.seq_length {data.seq_length};"
            " give the one that fits"
        )
    if len(rows) < data.batch_size:
        raise UserError(f"{path} has {len(rows)} rows, fewer than one batch (dataset.batch_size {data.batch_size})")
