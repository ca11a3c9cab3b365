"""The operations of the network when its matrices are split over a model-parallel group.

Each takes the place of one entry of the device table (`codellama_model.ops`) in one cell; the cells stay as they are.
Split matrices come in pairs, columns then rows (arXiv:1909.08053, section 3): every rank *enters* the pair with all
tokens and *leaves* it with a part of a sum. In sequence parallel, a rank has its rows of the tokens outside of the
pairs, so entering gathers and leaving scatters (arXiv:2205.05198, section 4.2.2).

Shapes: R ranks of the group, T tokens, T' = T / R in sequence parallel and T otherwise, H hidden, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import mindspore as ms
from codellama_model.ops import Operation, Operations
from mindspore import Parameter, Tensor, nn, ops

from codellama_parallel.collectives import AllGather, AllReduce, Copy, Gather, Group, Identity, Reduce, Scatter


class Border(NamedTuple):
    """The two ends of a pair of split matrices."""

    enter: nn.Cell  # [T', H], the same on all ranks or each its tokens -> [T, H]
    leave: nn.Cell  # [T, H], parts of a sum -> [T', H]


def border(members: Group, use_seq_parallel: bool) -> Border:
    """The ends for a group of ranks; nothing where there is one."""
    if members.size == 1:
        return Border(Identity(), Identity())
    if use_seq_parallel:
        return Border(Gather(members), Scatter(members))
    return Border(Copy(members), Reduce(members))


class EnteringNorm(nn.Cell):
    """`rms_norm` before column-split matrices: x [T', H], weight [H], eps -> [T, H]."""

    def __init__(self, rms_norm: Operation, enter: nn.Cell) -> None:
        super().__init__()
        self.rms_norm, self.enter = rms_norm, enter

    def construct(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self.enter(self.rms_norm(x, weight, eps))


class LeavingLinear(nn.Cell):
    """`linear` of a row-split matrix: x [T, in / R], weight [out, in / R] -> [T', out]."""

    def __init__(self, linear: Operation, leave: nn.Cell) -> None:
        super().__init__()
        self.linear, self.leave = linear, leave

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.leave(self.linear(x, weight))


class VocabularyEmbedding(nn.Cell):
    """ids [B, S] -> [T', H]. embedding_weight [V / R, H]: this rank's ids; the others' rows are 0 here and added."""

    def __init__(self, weight: Parameter, members: Group, leave: nn.Cell) -> None:
        super().__init__()
        self.embedding_weight = weight
        self.rows = weight.shape[0]
        self.first = members.index * self.rows
        self.leave = leave

    def weight_and_scales(self) -> tuple[Parameter, None]:
        """As `codellama_model`'s embedding has it, for a head that is tied to it."""
        return self.embedding_weight, None

    def construct(self, ids: Tensor) -> Tensor:
        own = ops.cast(ops.reshape(ids, (-1,)), ms.int32) - self.first
        held = ops.logical_and(own >= 0, own < self.rows)
        x = ops.gather(self.embedding_weight, own * ops.cast(held, ms.int32), 0)  # the others look row 0 up
        return self.leave(x * ops.expand_dims(ops.cast(held, x.dtype), 1))


class WholeEmbedding(nn.Cell):
    """ids [B, S] -> [T', H]. embedding_weight [V, H], whole on every rank, which looks up its own tokens only."""

    def __init__(self, weight: Parameter, members: Group, use_seq_parallel: bool) -> None:
        super().__init__()
        self.embedding_weight = weight
        self.parts = members.size if use_seq_parallel else 1
        self.part = members.index if use_seq_parallel else 0

    def weight_and_scales(self) -> tuple[Parameter, None]:
        """As `codellama_model`'s embedding has it, for a head that is tied to it."""
        return self.embedding_weight, None

    def construct(self, ids: Tensor) -> Tensor:
        ids = ops.reshape(ids, (-1,))
        rows = ids.shape[0] // self.parts
        return ops.gather(self.embedding_weight, ids[self.part * rows : (self.part + 1) * rows], 0)


class VocabularyCrossEntropy(nn.Cell):
    """Head and loss over a vocabulary that is split: the entry `linear_cross_entropy` of the device table.

    hidden states [T, H], entered; the head's slice [V / R, H]; labels int32 [T] -> the sum of the negative
    log-likelihoods in nats and the number of tokens under loss, the same on every rank. Logits stay where they are
    computed: ranks exchange three numbers a token, in two collectives, and none backwards.

    Args:
        operations: the entry of the device table that computes a slice.
        members: the ranks that share the vocabulary.
        ignore_index: the label of tokens that are not under loss.
        z_loss: as in `codellama_model.composed.LinearCrossEntropy`.
    """

    def __init__(self, operations: Operations, members: Group, ignore_index: int, z_loss: float = 0.0) -> None:
        super().__init__()
        self.ignore_index, self.z_loss, self.index = ignore_index, z_loss, members.index
        self.logits = _SplitLogits(operations, members)

    def construct(self, x: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        counted = ops.cast(labels != self.ignore_index, ms.float32)
        own = ops.cast(labels, ms.int32) - self.index * weight.shape[0]
        parts = self.logits(x, weight, own)
        losses = parts[0] - parts[1]
        if self.z_loss:
            losses += self.z_loss * ops.square(parts[0])
        return ops.sum(losses * counted), ops.sum(counted)


class _SplitLogits(nn.Cell):
    """x [T, H], weight [V / R, H], labels [T] counted from this slice -> [4, T], the same on all ranks.

    The rows are the logarithm of the sum of exp(logit), the label's logit (0 where it is nobody's), the largest logit
    and the sum of exp(logit - largest). The first two have gradients; the others are kept for these.
    """

    def __init__(self, operations: Operations, members: Group) -> None:
        super().__init__()
        self.of_slice, self.gradient_of_slice = operations.vocabulary_slice, operations.vocabulary_slice_gradient
        self.gather, self.sum = AllGather(members), AllReduce(members)

    def construct(self, x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        own_largest, own_total, own_logit = self.of_slice(x, weight, labels)
        # the largest of every rank is gathered: the backend has no maximum over a group
        largest = ops.ReduceMax()(self.gather(ops.expand_dims(own_largest, 0)), 0)
        here = ops.logical_and(labels >= 0, labels < weight.shape[0])
        own_logit = ops.select(here, own_logit, 0.0)
        sums = self.sum(ops.stack((own_total * ops.exp(own_largest - largest), own_logit)))
        return ops.stack((largest + ops.log(sums[0]), sums[1], largest, sums[0]))

    def bprop(
        self, x: Tensor, weight: Tensor, labels: Tensor, out: Tensor, dout: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        dx, d_weight = self.gradient_of_slice(x, weight, labels, out[2], out[3], dout[0], dout[1])
        return dx, d_weight, ops.zeros_like(labels)
