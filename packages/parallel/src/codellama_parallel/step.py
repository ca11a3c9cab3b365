"""`ParallelStep`: one optimizer step of a job, as one of its ranks runs it.

The rows of a step are cut into micro-batches. A rank computes each of them forwards and backwards through its part of
the network, in the order of `schedule`, and adds up the gradients; then `gradients` reduces them over the job and
updates. A stage keeps, of a micro-batch in flight, its input alone, and computes its forward pass again with the
backward pass; the last stage, whose backward pass follows at once, and a network of one stage compute it once.

Shapes: B rows of a micro-batch, S sequence, T' tokens that this rank holds between the matrices, H hidden.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import mindspore as ms
import numpy as np
from codellama_model import CausalLMLoss, LlamaForCausalLM
from mindspore import Parameter, Tensor, nn, ops
from numpy.typing import NDArray

from codellama_parallel.collectives import Exchange, Group, Receive, Send, group
from codellama_parallel.gradients import Update, zeros_like
from codellama_parallel.mesh import Mesh
from codellama_parallel.plan import Box, Plan
from codellama_parallel.schedule import Action, Kind, one_forward_one_backward

Batch = Mapping[str, NDArray[np.int32]]
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class StepResult:
    """What a step says of itself: the same on every rank.

    Attributes:
        loss: mean over the tokens under loss of the whole global batch, in nats.
        grad_norm: joint 2-norm of the mean loss's gradient over the whole network, before clipping.
        tokens: tokens under loss.
    """

    loss: float
    grad_norm: float
    tokens: int

    @property
    def finite(self) -> bool:
        """Whether loss and gradients were; if not, nothing was updated."""
        return math.isfinite(self.loss) and self.grad_norm <= _LARGEST


@dataclass(frozen=True)
class StateTensor:
    """One array of a training, as one rank holds it.

    Attributes:
        kind: "" for a parameter, "exp_avg" and "exp_avg_sq" for AdamW's moments of it (torch's names), "adam_step" for
            its count of steps.
        name: of the parameter.
        shape: of the whole array.
        box: [begin, end) of every dimension: the part that this rank holds.
        parameter: the array itself, float32, of the part's shape.
        owner: this rank is the one that saves it; of every part, exactly one is.
    """

    kind: str
    name: str
    shape: tuple[int, ...]
    box: Box
    parameter: Parameter
    owner: bool


class ParallelStep:
    """Trains this rank's part of a network.

    Args:
        network: made by `parallelize`; its parameters have their numbers.
        mesh, plan: those it was made with.
        beta1, beta2, eps, weight_decay: AdamW's, as `codellama_model.AdamW` has them.
        max_grad_norm: the gradients' joint 2-norm is clipped to it.
        z_loss: weight of the z-loss, as in `codellama_model.composed.LinearCrossEntropy`.

    Attributes:
        before_update: called in each step when only the update is left to do; until it returns, the tensors of `state`
            are as they were.
    """

    def __init__(
        self,
        network: LlamaForCausalLM,
        mesh: Mesh,
        plan: Plan,
        *,
        beta1: float = 0.9,
        beta2: float = 0.95,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        z_loss: float = 0.0,
    ) -> None:
        self.network, self.mesh, self.plan, self.z_loss = network, mesh, plan, z_loss
        self.parameters = list(network.get_parameters())
        self.sums = zeros_like(self.parameters, "sum")
        self.totals = Parameter(Tensor(np.zeros(2, np.float32)), name="totals", requires_grad=False)
        self.update = Update(
            self.parameters,
            self.sums,
            self.totals,
            mesh,
            plan,
            network.operations,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            weight_decay=weight_decay,
            max_grad_norm=max_grad_norm,
        )
        self.stage: Stage | None = None  # made when the first batch tells the size of a micro-batch
        self.before_update: Callable[[], object] = lambda: None

    def __call__(self, learning_rate: float, loss_scale: float, batch: Batch) -> StepResult:
        """Trains on the rows of this rank's data coordinate, with the loss multiplied by `loss_scale`.

        Args:
            learning_rate: of this step.
            loss_scale: factor of the loss and its gradients while they are computed; 1 in float32.
            batch: columns int32 [micro_batch_num * B, S + 1], `input_ids` and perhaps `labels`, `document_ids`; ranks
                of one data coordinate have the same, all steps the same shapes.

        Raises:
            ConfigError: the rows can not be split into micro-batches or sequence parts.
        """
        rows, length = batch["input_ids"].shape
        self.mesh.strategy.check_batch(rows, length - 1)
        micro_batches = self.mesh.strategy.micro_batch_num
        stage = self.stage or self.prepare(rows, length - 1)
        inputs = [_inputs(batch, index, micro_batches) for index in range(micro_batches)]
        stage.run(inputs, Tensor(loss_scale, ms.float32))
        self.before_update()
        total, tokens, norm = self.update(learning_rate, loss_scale)
        return StepResult(total / max(tokens, 1.0), norm, int(tokens))

    def evaluate(self, batch: Batch) -> tuple[float, int]:
        """(summed loss in nats, tokens under loss) of all rows of the job, the same on every rank; trains nothing.

        `batch` as in a step, and of the same shapes.
        """
        rows, length = batch["input_ids"].shape
        micro_batches = self.mesh.strategy.micro_batch_num
        stage = self.stage or self.prepare(rows, length - 1)
        totals = stage.evaluate([_inputs(batch, index, micro_batches) for index in range(micro_batches)])
        if self.mesh.size > 1:
            whole = self.update.totals
            totals = whole.world(Tensor(totals * np.float32(whole.counts))).asnumpy()
        return float(totals[0]), int(totals[1])

    def prepare(self, rows: int, seq_length: int) -> Stage:
        """Makes the stage for batches of so many rows; the first batch does it otherwise."""
        strategy = self.mesh.strategy
        tokens = rows // strategy.micro_batch_num * seq_length // strategy.sequence_parts
        self.stage = Stage(self.network, self.mesh, self.parameters, self.sums, self.totals, tokens, self.z_loss)
        return self.stage

    def state(self) -> list[StateTensor]:
        """What training changes on this rank, for saving and restoring."""
        where, optimizer = self.mesh.coordinate, self.update.optimizer
        found = []
        for parameter, first, second in zip(self.parameters, optimizer.first, optimizer.second, strict=True):
            name = parameter.name
            whole, owned = self.plan.box(name, where), self.plan.optimizer_box(name, where)
            assert whole is not None and owned is not None
            shape = self.plan.shapes[name]
            lowest = self._lowest_holder(name)
            found.append(StateTensor("", name, shape, whole, parameter, lowest and where.data == 0))
            held = lowest and (where.data == 0 or self.plan.optimizer_parts(name) > 1)
            found.append(StateTensor("exp_avg", name, shape, owned, first, held))
            found.append(StateTensor("exp_avg_sq", name, shape, owned, second, held))
        found.append(StateTensor("adam_step", "", (), (), optimizer.step, self.mesh.rank == 0))
        return found

    def _lowest_holder(self, name: str) -> bool:
        """Whether this is the first stage and the first model rank that hold this slice."""
        where = self.mesh.coordinate
        return where.pipeline == self.plan.stages(name)[0] and all(
            self.plan.box(name, where._replace(model=model)) != self.plan.box(name, where)
            for model in range(where.model)
        )


class Stage:
    """This rank's pipeline stage: computes micro-batches and talks to its neighbours."""

    def __init__(
        self,
        network: LlamaForCausalLM,
        mesh: Mesh,
        parameters: list[Parameter],
        sums: list[Parameter],
        totals: Parameter,
        tokens: int,
        z_loss: float,
    ) -> None:
        stages = mesh.strategy.pipeline_stage
        shape = (tokens, network.config.hidden_size)
        self.inbox = None if mesh.first_stage else network.model.tok_embeddings.open(*shape)
        self.last = mesh.last_stage
        self.objective: nn.Cell = _ScaledLoss(network, z_loss) if self.last else _Vjp(network)
        self.measured = _ScaledLoss(network, 0.0) if self.last and z_loss else self.objective
        self.backward = _Accumulate(self.objective, parameters, sums, totals, self.inbox)
        self.forward = None if self.last else _Forward(network)
        self.previous = None if mesh.first_stage else Neighbour(mesh, mesh.stage - 1, mesh.stage, shape)
        self.next = None if self.last else Neighbour(mesh, mesh.stage, mesh.stage + 1, shape)
        self.actions = one_forward_one_backward(mesh.stage, stages, mesh.strategy.micro_batch_num)

    def run(self, micro_batches: list[tuple[Tensor, ...]], loss_scale: Tensor) -> None:
        """Adds the gradients and the loss of all micro-batches to the sums."""
        states: dict[int, Tensor] = {}  # what the stage before has computed, of the micro-batches in flight
        results: dict[int, Tensor] = {}  # on their way out: states, then gradients
        gradients: dict[int, Tensor] = {}
        for action in self.actions:
            if action.kind is Kind.TO_NEXT:
                self._talk(self.next, action, results, gradients)
            elif action.kind is Kind.TO_PREVIOUS:
                self._talk(self.previous, action, gradients, states)
            elif action.kind is Kind.FORWARD:
                self._compute_forward(action, states, results, micro_batches)
            else:
                micro = action.sent
                assert micro is not None
                if self.inbox is not None:
                    self.inbox.set_data(states.pop(micro))
                factor = loss_scale if self.last else gradients.pop(micro)
                outgoing = self.backward(factor, *micro_batches[micro])
                if self.inbox is not None:
                    gradients[micro] = outgoing

    def evaluate(self, micro_batches: list[tuple[Tensor, ...]]) -> NDArray[np.float32]:
        """(cross-entropy, tokens under loss) of all micro-batches, float32 [2]; 0 on all stages but the last."""
        totals, one = np.zeros(2, np.float32), Tensor(1.0, ms.float32)
        for inputs in micro_batches:
            if self.inbox is not None and self.previous is not None:
                self.inbox.set_data(self.previous.talk(None))
            if self.forward is not None and self.next is not None:
                self.next.give(self.forward(*inputs))
            else:
                totals += self.measured(one, *inputs)[1].asnumpy()
        return totals

    def _compute_forward(
        self,
        action: Action,
        states: dict[int, Tensor],
        results: dict[int, Tensor],
        micro_batches: list[tuple[Tensor, ...]],
    ) -> None:
        if self.forward is None:  # the last stage: with the backward pass, which comes next
            return
        micro = action.sent
        assert micro is not None
        if self.inbox is not None:
            self.inbox.set_data(states[micro])
        results[micro] = self.forward(*micro_batches[micro])

    @staticmethod
    def _talk(
        neighbour: Neighbour | None, action: Action, outgoing: dict[int, Tensor], incoming: dict[int, Tensor]
    ) -> None:
        assert neighbour is not None
        sent = None if action.sent is None else outgoing.pop(action.sent)
        if action.received is not None:
            incoming[action.received] = neighbour.talk(sent)
        else:
            neighbour.give(sent)


class Neighbour:
    """The same coordinate on the stage before or behind."""

    def __init__(self, mesh: Mesh, lower: int, upper: int, shape: tuple[int, ...]) -> None:
        pair: Group = group("pipeline", mesh.stage_pair(lower, upper), mesh.size)
        self.send, self.receive, self.exchange = Send(pair), Receive(pair, shape), Exchange(pair, shape)

    def give(self, x: Tensor | None) -> None:
        """Sends `x` alone."""
        self.send(x)

    def talk(self, x: Tensor | None) -> Tensor:
        """The neighbour's tensor, in exchange for `x` where there is one to send."""
        return self.receive() if x is None else self.exchange(x)


class _Forward(nn.Cell):
    """A micro-batch's inputs -> the states [T', H] for the next stage."""

    def __init__(self, network: LlamaForCausalLM) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.set_train(True)

    def construct(self, input_ids: Tensor, labels: Tensor, document_ids: Tensor | None = None) -> Tensor:
        if document_ids is not None:
            document_ids = document_ids[:, :-1]
        return self.network.model(input_ids[:, :-1], document_ids)


class _ScaledLoss(nn.Cell):
    """(loss scale, inputs) -> the scaled sum, which is differentiated, and (sum, tokens under loss)."""

    def __init__(self, network: LlamaForCausalLM, z_loss: float) -> None:
        super().__init__(auto_prefix=False)
        head_and_loss = partial(network.operations.linear_cross_entropy, z_loss=z_loss)
        self.loss = CausalLMLoss(network, dataclasses.replace(network.operations, linear_cross_entropy=head_and_loss))
        self.set_train(True)

    def construct(
        self, factor: Tensor, input_ids: Tensor, labels: Tensor, document_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        total, tokens = self.loss(input_ids, labels, document_ids)
        return total * factor, ops.stack((total, tokens))


class _Vjp(nn.Cell):
    """(gradient of the states [T', H], inputs) -> their product, whose gradient is the backward pass of this stage."""

    def __init__(self, network: LlamaForCausalLM) -> None:
        super().__init__(auto_prefix=False)
        self.states = _Forward(network)
        self.set_train(True)

    def construct(
        self, factor: Tensor, input_ids: Tensor, labels: Tensor, document_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return ops.sum(self.states(input_ids, labels, document_ids) * factor), ops.zeros((2,), ms.float32)


class _Accumulate(nn.Cell):
    """Differentiates `objective`, adds the gradients to `sums` and the loss to `totals`; gives the inbox's gradient."""

    def __init__(
        self,
        objective: nn.Cell,
        parameters: list[Parameter],
        sums: list[Parameter],
        totals: Parameter,
        inbox: Parameter | None,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.sums, self.totals = ms.ParameterTuple(sums), totals
        weights = parameters if inbox is None else [*parameters, inbox]
        self.gradient = ops.value_and_grad(objective, None, ms.ParameterTuple(weights), has_aux=True)
        self.set_train(True)

    def construct(
        self, factor: Tensor, input_ids: Tensor, labels: Tensor, document_ids: Tensor | None = None
    ) -> Tensor:
        (_, totals), gradients = self.gradient(factor, input_ids, labels, document_ids)
        added: tuple[Tensor, ...] = (ops.assign_add(self.totals, totals),)
        for index, one in enumerate(self.sums):
            added += (ops.assign_add(one, gradients[index]),)
        return ops.depend(gradients[-1], added)


def _inputs(batch: Batch, index: int, parts: int) -> tuple[Tensor, ...]:
    """(input_ids, labels) and, for packed rows, document_ids, of one micro-batch; by default all ids are under loss."""
    rows = len(batch["input_ids"]) // parts
    columns = {name: Tensor(column[index * rows : (index + 1) * rows]) for name, column in batch.items()}
    inputs = (columns["input_ids"], columns.get("labels", columns["input_ids"]))
    return (*inputs, columns["document_ids"]) if "document_ids" in columns else inputs
