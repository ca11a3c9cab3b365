"""Head and cross-entropy as one operator, in chunks of tokens: the logits of all tokens never exist.

Whole (`LinearCrossEntropy`), or a slice of the vocabulary, whose parts a vocabulary-parallel loss puts together.

Shapes: T tokens, H hidden, V vocabulary (or a slice of it).
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Tensor, nn, ops

from codellama_kernels.operator import declare, require, sides

Shape = list[int]


class LinearCrossEntropy(nn.Cell):
    """Hidden states [T, H], the head's weight [V, H], labels int32 [T] -> two float32 scalars.

    The summed negative log-likelihood, in nats, of the labels that are not `ignore_index`, and their number, which has
    no gradient. Ignored tokens cost nothing. With `z_loss`, each token adds z_loss * log(sum of exp(logits))^2
    (arXiv:2204.02311, section 5).

    In training (`set_train()`) the gradients are computed along with the loss, while a chunk's logits are at hand.
    Otherwise only the loss is; should a gradient be asked for all the same, the logits are computed again.

    A label that is neither `ignore_index` nor in 0..V-1 fails the run.
    """

    def __init__(self, ignore_index: int, z_loss: float = 0.0) -> None:
        super().__init__()
        self.ignore_index = Tensor([ignore_index], ms.int32)
        self.z_loss = Tensor([z_loss], ms.float32)

    def construct(self, x: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        arguments = (x, weight, labels, self.ignore_index, self.z_loss)
        found = _with_gradient(*arguments) if self.training else _loss(*arguments)
        return ops.reshape(found[0], ()), ops.reshape(found[1], ())


def vocabulary_slice(x: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a slice of the vocabulary adds to a loss; labels int32 [T] count from the slice's first row.

    Returns three float32 [T]: the largest logit, the sum of exp(logit - largest), and the label's logit, -inf where the
    label is not in the slice. They have no gradient of their own: `vocabulary_slice_gradient`.
    """
    return _slice(x, weight, labels)


def vocabulary_slice_gradient(
    x: Tensor, weight: Tensor, labels: Tensor, largest: Tensor, total: Tensor, d_lse: Tensor, d_logit: Tensor
) -> tuple[Tensor, Tensor]:
    """The slice's part of a loss's gradients, (dx [T, H], d_weight [V, H]); dx is yet to be summed over the slices.

    Args:
        x: as in `vocabulary_slice`, with weight and labels.
        weight: [V, H].
        labels: int32 [T].
        largest: [T], over the whole vocabulary.
        total: [T], sum of exp(logit - largest) over the whole vocabulary.
        d_lse: [T], the loss's derivative by largest + log(total); for cross-entropy 1 where the label counts, else 0.
        d_logit: [T], its derivative by the label's logit; for cross-entropy -1 or 0.
    """
    return _slice_gradient(x, weight, labels, largest, total, d_lse, d_logit)


def _head_sides(x: Shape, weight: Shape, labels: Shape) -> None:
    tokens, hidden = sides("x", x, 2)
    vocabulary = sides("weight", weight, 2)[0]
    require("weight", weight, [vocabulary, hidden])
    require("labels", labels, [tokens])


def _loss_shape(x: Shape, weight: Shape, labels: Shape, ignore_index: Shape, z_loss: Shape) -> tuple[Shape, Shape]:
    _head_sides(x, weight, labels)
    return [1], [1]


def _with_gradient_shape(
    x: Shape, weight: Shape, labels: Shape, ignore_index: Shape, z_loss: Shape
) -> tuple[Shape, Shape, Shape, Shape]:
    _head_sides(x, weight, labels)
    return [1], [1], x, weight


def _slice_shape(x: Shape, weight: Shape, labels: Shape) -> tuple[Shape, Shape, Shape]:
    _head_sides(x, weight, labels)
    return labels, labels, labels


def _slice_gradient_shape(x: Shape, weight: Shape, labels: Shape, *vectors: Shape) -> tuple[Shape, Shape]:
    _head_sides(x, weight, labels)
    for name, vector in zip(_SLICE_VECTORS, vectors, strict=True):
        require(name, vector, labels)
    return x, weight


def _with_gradient_bprop(
    x: Tensor, weight: Tensor, labels: Tensor, ignore_index: Tensor, z_loss: Tensor, out: Any, dout: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The loss is a scalar: its gradients are those of the forward times dout[0].

    Scaled in place, since they may be as large as the head and nobody else reads them.
    """
    return (
        ops.depend(out[2], _scale(out[2], dout[0])),
        ops.depend(out[3], _scale(out[3], dout[0])),
        ops.zeros_like(labels),
        ops.zeros_like(ignore_index),
        ops.zeros_like(z_loss),
    )


def _loss_bprop(
    x: Tensor, weight: Tensor, labels: Tensor, ignore_index: Tensor, z_loss: Tensor, out: Any, dout: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    again = _with_gradient(x, weight, labels, ignore_index, z_loss)
    return _with_gradient_bprop(x, weight, labels, ignore_index, z_loss, again, dout)


_INPUTS = ("x", "weight", "labels", "ignore_index", "z_loss")
_scale = declare("scale", ("values", "factor"), lambda values, factor: [1])
_SLICE_VECTORS = ("largest", "total", "d_lse", "d_logit")
_loss = declare(
    "linear_cross_entropy",
    _INPUTS,
    _loss_shape,
    outputs=(ms.float32,) * 2,
    integers=("labels", "ignore_index"),
    bprop=_loss_bprop,
)
_with_gradient = declare(
    "linear_cross_entropy",
    _INPUTS,
    _with_gradient_shape,
    outputs=(ms.float32,) * 4,
    integers=("labels", "ignore_index"),
    bprop=_with_gradient_bprop,
)
_slice = declare("vocabulary_slice", _INPUTS[:3], _slice_shape, outputs=(ms.float32,) * 3, integers=("labels",))
_slice_gradient = declare(
    "vocabulary_slice_backward",
    (*_INPUTS[:3], *_SLICE_VECTORS),
    _slice_gradient_shape,
    outputs=(ms.float32,) * 2,
    integers=("labels",),
)
