"""The training loss of a causal language model."""

from __future__ import annotations

from mindspore import Tensor, nn, ops

from codellama_model.llama import LlamaForCausalLM
from codellama_model.ops import Operations, select

IGNORE_INDEX = -100


class CausalLMLoss(nn.Cell):
    """Summed negative log-likelihood, in nats, of the tokens under loss, and their number.

    The mean is left to the caller: of one batch, of several micro-batches or of the parts of a global batch it is the
    sum of all sums over the sum of all numbers, never a mean of means.

    Args:
        network: its `model` maps ids [B, S] to hidden states [B * S, H], its `head_weight()` these to logits.
        operations: the entry of the device table; None chooses by the device at hand.
    """

    def __init__(self, network: LlamaForCausalLM, operations: Operations | None = None) -> None:
        super().__init__(auto_prefix=False)
        operations = select() if operations is None else operations
        self.network = network
        self.linear_cross_entropy = operations.linear_cross_entropy(IGNORE_INDEX)

    def construct(self, input_ids: Tensor, labels: Tensor, document_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """input_ids int32 [B, S + 1]; labels [B, S + 1], not shifted, `IGNORE_INDEX` where no loss is wanted.

        document_ids int32 [B, S + 1] keeps packed documents apart (see `LlamaForCausalLM`).
        Returns (sum, number of tokens), float32 scalars; only the first has a gradient.
        """
        if document_ids is not None:
            document_ids = document_ids[:, :-1]
        hidden = self.network.model(input_ids[:, :-1], document_ids)
        return self.linear_cross_entropy(hidden, self.network.head_weight(), ops.reshape(labels[:, 1:], (-1,)))
