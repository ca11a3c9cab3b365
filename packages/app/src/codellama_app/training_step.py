"""One optimizer step as one graph: loss, gradients, clipping, update."""

from __future__ import annotations

from codellama_model import AdamW, CausalLMLoss, clip_scale, global_norm
from mindspore import Tensor, nn, ops


class TrainingStep(nn.Cell):
    """Trains the network inside `loss`; compiled once for a batch shape.

    Args:
        loss: maps (input_ids, labels) to the summed loss and the number of tokens under it.
        optimizer: over the network's trainable parameters, in their order.
        max_grad_norm: the gradients' joint 2-norm is clipped to it.
    """

    def __init__(self, loss: CausalLMLoss, optimizer: AdamW, max_grad_norm: float) -> None:
        super().__init__(auto_prefix=False)
        self.loss = loss
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm
        self.gradient = ops.value_and_grad(loss, None, optimizer.parameters, has_aux=True)

    def construct(
        self, learning_rate: Tensor, input_ids: Tensor, labels: Tensor, document_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """A scalar rate, and the columns of a batch, int32 [B, S + 1] -> (mean loss in nats, norm before clipping)."""
        (total, tokens), gradients = self.gradient(input_ids, labels, document_ids)
        tokens = ops.maximum(tokens, 1.0)
        norm = global_norm(gradients) / tokens
        updated = self.optimizer(gradients, learning_rate, clip_scale(norm, self.max_grad_norm) / tokens)
        return ops.depend(total / tokens, updated), norm
