"""The training loss of a causal language model."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops

from codellama_model.llama import LlamaForCausalLM
from codellama_model.ops import Operations, select

IGNORE_INDEX = -100


class CausalLMLoss(nn.Cell):
    """Mean negative log-likelihood, in nats, over the tokens under loss.

    Args:
        network: maps ids [B, S] to logits [B * S, V].
        operations: the entry of the device table; None chooses by the device at hand.
    """

    def __init__(self, network: LlamaForCausalLM, operations: Operations | None = None) -> None:
        super().__init__(auto_prefix=False)
        operations = select() if operations is None else operations
        self.network = network
        self.cross_entropy = operations.cross_entropy(IGNORE_INDEX)

    def construct(self, input_ids: Tensor, labels: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """input_ids int32 [B, S + 1]; labels [B, S + 1], not shifted, `IGNORE_INDEX` where no loss is wanted.

        document_ids int32 [B, S + 1] keeps packed documents apart (see `LlamaForCausalLM`).
        Returns the mean over all counted tokens of the batch, a scalar; 0 where none is counted.
        """
        if document_ids is not None:
            document_ids = document_ids[:, :-1]
        logits = self.network(input_ids[:, :-1], document_ids)
        targets = ops.reshape(labels[:, 1:], (-1,))
        counted = ops.cast(targets != IGNORE_INDEX, ms.float32)
        return ops.sum(self.cross_entropy(logits, targets)) / ops.maximum(ops.sum(counted), 1.0)
