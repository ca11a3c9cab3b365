"""A network that several processes share: of every matrix each of them has a part, and of the cache its own heads.

For generation on the ranks of a job. All ranks run the same program with the same arguments; what one of them computes
ends in sums over all, so each has the same ids and logits, to the last bit.
"""

from __future__ import annotations

from codellama_ckpt import Checkpoint
from codellama_ckpt.configuration import EMBEDDING, OUTPUT
from codellama_model import LlamaConfig, LlamaForCausalLM, WeightDtype
from codellama_parallel import Mesh, Plan, build
from codellama_parallel.collectives import AllGather, group
from mindspore import Tensor, nn, ops

from codellama_app.ranks import Ranks
from codellama_app.split_plan import check_split, split_plan
from codellama_app.weights import Part, fill


def split_network(
    config: LlamaConfig, checkpoint: Checkpoint, ranks: Ranks, weight_dtype: WeightDtype = "fp32"
) -> LlamaForCausalLM:
    """One rank's part of a network with the checkpoint's weights, of which only this part is read.

    Args:
        config: of the whole network.
        checkpoint: of any kind.
        ranks: the processes that share the network, this one among them.
        weight_dtype: "fp32" or "fp16", as in `weights.network_from`.

    Raises:
        ConfigError, UserError: what `split_plan.check_split` refuses.
        CheckpointError: tensors missing, surplus or misshapen, or the file is damaged.
    """
    check_split(config, ranks.size, weight_dtype)
    plan = split_plan(config, ranks.size)
    mesh = Mesh(plan.strategy, ranks.rank)
    network = build(plan.config, mesh, plan)
    checkpoint.check(config.parameter_shapes(), tied=config.tie_word_embeddings)
    fill(network, parts_of(config, plan, mesh), checkpoint, weight_dtype)
    return network


def parts_of(config: LlamaConfig, plan: Plan, mesh: Mesh) -> list[Part]:
    """What the rank of `mesh` holds of a checkpoint, by `split_plan`'s plan for `config`."""
    parts = []
    for name in plan.local_names(mesh.coordinate):
        box = plan.box(name, mesh.coordinate)
        assert box is not None  # it is one of this rank's
        stored = EMBEDDING if config.tie_word_embeddings and name == OUTPUT else name
        parts.append(Part(name, stored, tuple(slice(*side) for side in box)))
    return parts


class WholeLogits(nn.Cell):
    """ids int32 [B, S] -> logits float32 [B * S, V] of a network whose head is split: the same on every rank."""

    def __init__(self, network: LlamaForCausalLM, config: LlamaConfig, ranks: int) -> None:
        super().__init__(auto_prefix=False)
        self.network, self.config = network, config
        self.gather = AllGather(group("model", tuple(range(ranks)), ranks))

    def construct(self, ids: Tensor) -> Tensor:
        local = self.network(ids)
        return ops.transpose(self.gather(ops.transpose(local, (1, 0))), (1, 0))
