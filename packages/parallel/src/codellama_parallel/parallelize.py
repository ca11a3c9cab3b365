"""`parallelize`: turns the whole network into the part of it that one rank computes.

One explicit call. The network's classes know nothing of it: their cells stay, some of the operations that they call and
the shapes of their parameters change, and what another pipeline stage computes is taken out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import mindspore as ms
import numpy as np
from codellama_model import LlamaConfig, LlamaForCausalLM, Operations, select
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, One, Zero, initializer
from mindspore.nn.utils import no_init_parameters
from numpy.typing import NDArray

from codellama_parallel.cached import CachedHead, CachedLayers
from codellama_parallel.collectives import Group, Identity, group
from codellama_parallel.mesh import Mesh
from codellama_parallel.plan import EMBEDDING, Box, Plan
from codellama_parallel.random_weights import normal_slice
from codellama_parallel.recompute import recompute
from codellama_parallel.tensor_parallel import (
    Border,
    EnteringNorm,
    LeavingLinear,
    VocabularyCrossEntropy,
    VocabularyEmbedding,
    WholeEmbedding,
    border,
)

Read = Callable[[str, tuple[slice, ...]], NDArray[np.float32]]


class Inbox(nn.Cell):
    """In the place of the embedding on a later stage: the hidden states [T', H] that the stage before has computed.

    They are a Parameter, so that their gradient is taken like any weight's and sent back.
    """

    def __init__(self, embedding_weight: Parameter | None) -> None:
        super().__init__()
        if embedding_weight is not None:  # of the last stage, where it is the head
            self.embedding_weight = embedding_weight

    def open(self, tokens: int, hidden: int) -> Parameter:
        """Makes room for the states of a micro-batch; returns the room."""
        self.states = Parameter(Tensor(np.zeros((tokens, hidden), np.float32)), name="inbox")
        return self.states

    def weight_and_scales(self) -> tuple[Parameter, None]:
        """As `codellama_model`'s embedding has it, for a head that is tied to it."""
        return self.embedding_weight, None

    def construct(self, ids: Tensor) -> Tensor:
        return ops.depend(self.states, ids)  # the graph compiler loses an argument that nothing uses


def build(config: LlamaConfig, mesh: Mesh, plan: Plan, operations: Operations | None = None) -> LlamaForCausalLM:
    """This rank's part of a network of these sizes; its parameters have shapes but no numbers and no memory yet."""
    with no_init_parameters():
        network = LlamaForCausalLM(config, select() if operations is None else operations)
    parallelize(network, mesh, plan)
    return network


def parallelize(network: LlamaForCausalLM, mesh: Mesh, plan: Plan) -> None:
    """Makes of `network` what the rank of `mesh` computes, as `plan` says.

    Args:
        network: as built under `mindspore.nn.utils.no_init_parameters`: no rank ever holds a whole parameter.
        mesh: seen from this process's rank.
        plan: for the network's configuration and the mesh's strategy.

    Raises:
        ConfigError: an entry of the plan matches no parameter, or a parameter has no entry.
        ValueError: the plan is for another network or strategy, or the parameters have memory already.
    """
    if plan.config != network.config or plan.strategy != mesh.strategy:
        raise ValueError("the plan was made for another network or strategy than it is applied to")
    names = {id(parameter): parameter.name for parameter in network.get_parameters()}
    plan.check(names.values())
    if any(parameter.has_init is False for parameter in network.get_parameters()):
        raise ValueError("build the network under mindspore.nn.utils.no_init_parameters before parallelizing it")
    members = group("model", mesh.model_group(), mesh.size)
    ends = border(members, mesh.strategy.use_seq_parallel)
    _take_out_other_stages(network, mesh, plan)
    _cut_parameters(network, mesh, plan, names)
    if members.size > 1:
        _split_layers(network, ends)
        _split_vocabulary(network, mesh, members, ends)
        network.config = _local_config(network.config, members.size)
    recompute(network, mesh.strategy.recompute)


def _take_out_other_stages(network: LlamaForCausalLM, mesh: Mesh, plan: Plan) -> None:
    model = network.model
    if not mesh.first_stage:
        tied = mesh.last_stage and network.tied
        model.tok_embeddings = Inbox(model.tok_embeddings.embedding_weight if tied else None)
    model.layers = nn.CellList([model.layers[index] for index in plan.layers_of(mesh.stage)])
    if not mesh.last_stage:
        model.norm_out = Identity()
        if not network.tied:
            del network.lm_head


def _cut_parameters(network: LlamaForCausalLM, mesh: Mesh, plan: Plan, names: dict[int, str]) -> None:
    """Puts parameters of the local shapes, under their names in the whole network, in the place of the whole ones."""
    for _, cell in network.cells_and_names():
        for attribute, parameter in list(cell._params.items()):
            if parameter is None:
                continue
            name = names[id(parameter)]
            with no_init_parameters():
                local = Parameter(
                    initializer(parameter.init_mode.init, plan.local_shape(name, mesh.coordinate), parameter.dtype),
                    name=name,
                )
            setattr(cell, attribute, local)
            local.name = name


def _split_layers(network: LlamaForCausalLM, ends: Border) -> None:
    for layer in network.model.layers:
        layer.attention.heads = layer.attention.wq.weight.shape[0] // layer.attention.width
        layer.attention.kv_heads = layer.attention.wk.weight.shape[0] // layer.attention.width
        for norm in (layer.attention_norm, layer.ffn_norm):
            _replace(norm, "rms_norm", EnteringNorm(norm.rms_norm, ends.enter))
        for row in (layer.attention.wo, layer.feed_forward.w2):
            _replace(row, "linear", LeavingLinear(row.linear, ends.leave))


def _split_vocabulary(network: LlamaForCausalLM, mesh: Mesh, members: Group, ends: Border) -> None:
    model, operations = network.model, network.operations
    if mesh.first_stage:
        weight = model.tok_embeddings.embedding_weight
        if mesh.strategy.vocab_emb_dp:
            model.tok_embeddings = WholeEmbedding(weight, members, mesh.strategy.use_seq_parallel)
        else:
            model.tok_embeddings = VocabularyEmbedding(weight, members, ends.leave)
        weight.name = EMBEDDING
    if mesh.last_stage:
        _replace(model.norm_out, "rms_norm", EnteringNorm(model.norm_out.rms_norm, ends.enter))
    network.operations = dataclasses.replace(
        operations,
        linear_cross_entropy=partial(VocabularyCrossEntropy, operations, members),
        cached_layers=CachedLayers(members),
        cache_dtype=ms.float32,
        cached_head=CachedHead(members),
    )


def _replace(cell: nn.Cell, attribute: str, operation: nn.Cell) -> None:
    """Sets a cell where the attribute was a plain function, which `nn.Cell` would otherwise keep beside it."""
    delattr(cell, attribute)
    setattr(cell, attribute, operation)


def _local_config(config: LlamaConfig, ranks: int) -> LlamaConfig:
    """The sizes as one rank sees them: its heads; what is not split by heads keeps its size."""
    return dataclasses.replace(
        config,
        num_heads=config.num_heads // ranks,
        n_kv_heads=max(1, config.kv_heads // ranks),
        head_dim=config.head_size,
    )


def initialize(network: LlamaForCausalLM, mesh: Mesh, plan: Plan, seed: int) -> None:
    """Fills the parameters with random numbers that depend on the seed alone, not on the mesh."""
    for parameter in network.get_parameters():
        kind = parameter.init_mode.init
        shape, box = plan.shapes[parameter.name], _box(plan, mesh, parameter.name)
        if isinstance(kind, Normal):
            value = normal_slice(parameter.name, shape, box, kind.sigma, seed)
        elif isinstance(kind, (One, Zero)):
            value = np.full(parameter.shape, float(isinstance(kind, One)), np.float32)
        else:
            raise TypeError(f"{parameter.name} starts as {type(kind).__name__}, which has no drawing by slices")
        parameter.set_data(Tensor(value))


def load(network: LlamaForCausalLM, mesh: Mesh, plan: Plan, read: Read) -> None:
    """Fills the parameters from a checkpoint: `read(name, slices)` gives a slice of a whole parameter as float32."""
    for parameter in network.get_parameters():
        slices = tuple(slice(begin, end) for begin, end in _box(plan, mesh, parameter.name))
        parameter.set_data(Tensor(read(parameter.name, slices)))


def _box(plan: Plan, mesh: Mesh, name: str) -> Box:
    box = plan.box(name, mesh.coordinate)
    if box is None:
        raise ValueError(f"rank {mesh.rank} holds nothing of {name}")
    return box
