"""From a batch of MindRecord rows to the arguments of the loss."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from mindspore import Tensor
from numpy.typing import NDArray


def loss_inputs(batch: Mapping[str, NDArray[np.int32]]) -> tuple[Tensor, ...]:
    """(input_ids, labels) and, for packed rows, document_ids; rows without labels are under loss throughout."""
    ids = Tensor(batch["input_ids"])
    labels = Tensor(batch["labels"]) if "labels" in batch else ids
    return (ids, labels, Tensor(batch["document_ids"])) if "document_ids" in batch else (ids, labels)
