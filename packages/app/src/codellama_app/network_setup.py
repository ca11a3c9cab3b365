"""What a run trains: the network from random weights or a checkpoint, its step, its state, its held-out loss.

One process has all of it; of several, each builds and reads its part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from codellama_ckpt import open_checkpoint
from codellama_model import IGNORE_INDEX, AdamW, CausalLMLoss, LlamaForCausalLM
from codellama_parallel import Mesh, ParallelStep, Plan, StepResult
from codellama_parallel.parallelize import initialize, load, parallelize
from mindspore.nn.utils import no_init_parameters

from codellama_app.adapters import adapter_shapes, random_adapters, read_adapters
from codellama_app.checkpoint_sizes import weights_path
from codellama_app.config import RunConfig
from codellama_app.held_out import held_out_loss, network_loss
from codellama_app.lora import add_adapters
from codellama_app.precision import compute_in
from codellama_app.ranks import Ranks
from codellama_app.state import TrainingState, arrays_of
from codellama_app.training_step import Batch, Step, TrainingStep, split


def build_network(config: RunConfig, mesh: Mesh, resumed: bool, compute_dtype: str) -> LlamaForCausalLM:
    """This process's part of the network to train; where `resumed`, its trained part is read later, with the state.

    Random weights depend on the seed alone, not on the mesh.

    Raises:
        CheckpointError: tensors missing, surplus or misshapen, or a damaged file.
        UserError: adapters that are not those of the configuration.
    """
    llama, lora = config.llama(), config.lora
    late = lora.rank is not None and mesh.strategy.recompute == "full"  # adapters belong to what is computed again
    if late:
        mesh = Mesh(dataclasses.replace(mesh.strategy, recompute="none"), mesh.rank)
    plan = Plan(llama, mesh.strategy)
    with no_init_parameters():
        network = LlamaForCausalLM(llama)
    compute_in(network, compute_dtype)
    parallelize(network, mesh, plan)
    if config.load_checkpoint is not None and (lora.rank is not None or not resumed):
        checkpoint = open_checkpoint(weights_path(Path(config.load_checkpoint)), verify=True)
        checkpoint.check(llama.parameter_shapes(), tied=llama.tie_word_embeddings)
        load(network, mesh, plan, lambda name, slices: checkpoint.read(name, slices, dtype="float32"))
    elif not resumed:
        initialize(network, mesh, plan, config.seed)
    if lora.rank is not None:
        shapes = adapter_shapes(llama, lora.rank, lora.targets)
        tree = read_adapters(Path(lora.adapter_path), shapes, lora.alpha / lora.rank) if lora.adapter_path else None
        add_adapters(network, random_adapters(shapes, config.seed) if tree is None else tree, lora.alpha / lora.rank)
    if late:
        for layer in network.model.layers:
            layer.recompute()
    return network


@dataclass(frozen=True)
class Trainee:
    """What is trained, on this process.

    Attributes:
        step: takes batches of all processes.
        state: the arrays that it changes.
        held_out: maps a file of rows to the mean loss over its held-out rows.
    """

    step: Step
    state: TrainingState
    held_out: Callable[[Path], float]


def trainee(config: RunConfig, ranks: Ranks, resumed: bool, compute_dtype: str, skip_overflows: bool) -> Trainee:
    """The network with what trains and what judges it. Arguments and errors: `build_network`, `TrainingStep`."""
    mesh = Mesh(config.strategy, ranks.rank)
    network = build_network(config, mesh, resumed, compute_dtype)
    return (_whole if mesh.size == 1 else _part)(config, network, mesh, skip_overflows)


def _whole(config: RunConfig, network: LlamaForCausalLM, mesh: Mesh, skip_overflows: bool) -> Trainee:
    """Of one process."""
    settings = config.optimizer
    optimizer = AdamW(
        network.trainable_params(),
        beta1=settings.beta1,
        beta2=settings.beta2,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )
    loss = training_loss(network, config.z_loss)
    step = TrainingStep(loss, optimizer, settings.max_grad_norm, mesh.strategy.micro_batch_num, skip_overflows)
    validation_loss = CausalLMLoss(network)
    return Trainee(step, TrainingState(arrays_of(optimizer)), lambda rows: network_loss(validation_loss, rows, config))


def _part(config: RunConfig, network: LlamaForCausalLM, mesh: Mesh, _: bool) -> Trainee:
    """Of one rank of several; overflows change nothing here in any case."""
    settings = config.optimizer
    step = ParallelStep(
        network,
        mesh,
        Plan(config.llama(), mesh.strategy),
        beta1=settings.beta1,
        beta2=settings.beta2,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        z_loss=config.z_loss,
    )

    def own(batch: Batch) -> Batch:
        return split(batch, mesh.strategy.data_parallel)[mesh.coordinate.data]

    return Trainee(
        _RankStep(step, own),
        TrainingState(step.state()),
        lambda rows: held_out_loss(lambda batch: step.evaluate(own(batch)), config.step_rows, rows, config),
    )


class _RankStep:
    """The step of a rank on its rows of each batch, a `WaitingStep`."""

    def __init__(self, step: ParallelStep, own: Callable[[Batch], Batch]) -> None:
        self._step, self._own = step, own

    @property
    def before_update(self) -> Callable[[], object]:
        return self._step.before_update

    @before_update.setter
    def before_update(self, call: Callable[[], object]) -> None:
        self._step.before_update = call

    def __call__(self, learning_rate: float, loss_scale: float, batch: Batch) -> StepResult:
        return self._step(learning_rate, loss_scale, self._own(batch))


def training_loss(network: LlamaForCausalLM, z_loss: float) -> CausalLMLoss:
    """The loss that trains: what is validated, plus z_loss * log(sum of exp(logits))^2 of every token under loss."""
    loss = CausalLMLoss(network)
    if z_loss:
        loss.linear_cross_entropy = network.operations.linear_cross_entropy(IGNORE_INDEX, z_loss)
    return loss
