"""Between checkpoints and networks: building a network from any checkpoint, and a checkpoint from a network.

A network's parameters are allocated one by one as they are read, so nothing holds a full model twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import mindspore as ms
import numpy as np
from codellama_ckpt import Checkpoint, LazyTensor
from codellama_model import LlamaConfig, LlamaForCausalLM, WeightDtype, quantize, set_weight
from codellama_model.ops import Operations
from codellama_model.quantization import GROUP
from mindspore.nn.utils import no_init_parameters
from numpy.typing import NDArray
from tqdm import tqdm

from codellama_app.command import UserError

_CHUNK_BYTES = 4 << 20  # float32 that is quantised at a time
_BAR_FROM_BYTES = 1 << 30  # a bar for what takes seconds


class Part(NamedTuple):
    """What a process holds of one tensor: the parameter, the checkpoint's tensor, and the slice of it, one a side."""

    name: str
    stored: str
    slices: tuple[slice, ...]


def network_from(
    config: LlamaConfig,
    checkpoint: Checkpoint,
    weight_dtype: WeightDtype = "fp32",
    operations: Operations | None = None,
) -> LlamaForCausalLM:
    """A network of these sizes with the checkpoint's weights, of `operations` or what the device has.

    Matrices are kept as `weight_dtype` says and converted while they are read, norms in float32. At no time is more
    there than what is kept so far and `_CHUNK_BYTES`, or one matrix in its kept type where that is larger.

    Raises:
        CheckpointError: tensors missing, surplus or misshapen (all are listed), or the file is damaged.
    """
    shapes = config.parameter_shapes()
    checkpoint.check(shapes, tied=config.tie_word_embeddings)
    with no_init_parameters():
        network = LlamaForCausalLM(config, operations)
    parts = [Part(name, name, tuple(slice(0, side) for side in shape)) for name, shape in shapes.items()]
    fill(network, parts, checkpoint, weight_dtype)
    return network


def fill(
    network: LlamaForCausalLM, parts: Sequence[Part], checkpoint: Checkpoint, weight_dtype: WeightDtype = "fp32"
) -> None:
    """Gives every parameter of a network its part of the checkpoint, for prediction; what is no part is not read.

    Raises:
        CheckpointError: the file is damaged.
    """
    sizes = [4 * math.prod(side.stop - side.start for side in part.slices) for part in parts]
    with tqdm(
        total=sum(sizes),
        unit="B",
        unit_scale=True,
        desc="loading",
        disable=None if sum(sizes) > _BAR_FROM_BYTES else True,
    ) as bar:
        for part, size in zip(parts, sizes, strict=True):
            if len(part.slices) == 2 and weight_dtype == "int8":
                set_weight(network, part.name, *_quantized(checkpoint, part))
            else:
                narrow = len(part.slices) == 2 and weight_dtype == "fp16"
                value = checkpoint.read(part.stored, part.slices, dtype="float16" if narrow else "float32")
                set_weight(network, part.name, value)
            bar.update(size)
    network.set_train(False)


def _quantized(checkpoint: Checkpoint, part: Part) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """A matrix in int8 with its scales, read a few rows at a time."""
    (first, last), columns = (part.slices[0].start, part.slices[0].stop), part.slices[1]
    width = columns.stop - columns.start
    numbers = np.empty((last - first, width), np.int8)
    scales = np.empty((last - first, -(-width // GROUP)), np.float16)
    step = max(1, _CHUNK_BYTES // (4 * width))
    for start in range(first, last, step):
        rows = slice(start, min(start + step, last))
        read = checkpoint.read(part.stored, [rows, columns], dtype="float32")
        numbers[start - first : rows.stop - first], scales[start - first : rows.stop - first] = quantize(read)
    return numbers, scales


def tree_of(network: LlamaForCausalLM) -> dict[str, LazyTensor]:
    """Every parameter by name, fetched only when it is written: what `codellama_ckpt.save_sharded` takes.

    Raises:
        UserError: a network whose weights were converted for prediction.
    """
    if any(p.dtype != ms.float32 for p in network.get_parameters()):
        raise UserError("only a network in float32 can be saved: load it with weight_dtype fp32")
    return {p.name: LazyTensor("float32", tuple(p.shape), p.asnumpy) for p in network.get_parameters()}
