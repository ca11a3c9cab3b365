"""Between checkpoints and networks: building a network from any checkpoint, and a checkpoint from a network.

A network's parameters are allocated one by one as they are read, so nothing holds a full model twice.
"""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from codellama_ckpt import Checkpoint, LazyTensor
from codellama_model import LlamaConfig, LlamaForCausalLM, WeightDtype, quantize, set_weight
from codellama_model.quantization import GROUP
from mindspore.nn.utils import no_init_parameters
from numpy.typing import NDArray
from tqdm import tqdm

from codellama_app.command import UserError

CONFIG_KEY = "config"  # of a checkpoint's metadata: the network's configuration as JSON, in Hugging Face's spelling
_CHUNK_BYTES = 4 << 20  # float32 that is quantised at a time
_BAR_FROM_BYTES = 1 << 30  # a bar for what takes seconds


def network_from(config: LlamaConfig, checkpoint: Checkpoint, weight_dtype: WeightDtype = "fp32") -> LlamaForCausalLM:
    """A network of these sizes with the checkpoint's weights.

    Matrices are kept as `weight_dtype` says and converted while they are read, norms in float32. At no time is more
    there than what is kept so far and `_CHUNK_BYTES`, or one matrix in its kept type where that is larger.

    Raises:
        CheckpointError: tensors missing, surplus or misshapen (all are listed), or the file is damaged.
    """
    shapes = config.parameter_shapes()
    checkpoint.check(shapes, tied=config.tie_word_embeddings)
    with no_init_parameters():
        network = LlamaForCausalLM(config)
    size = 4 * config.num_parameters()
    with tqdm(
        total=size, unit="B", unit_scale=True, desc="loading", disable=None if size > _BAR_FROM_BYTES else True
    ) as bar:
        for name, shape in shapes.items():
            if len(shape) == 2 and weight_dtype == "int8":
                set_weight(network, name, *_quantized(checkpoint, name, shape))
            elif len(shape) == 2 and weight_dtype == "fp16":
                set_weight(network, name, checkpoint.read(name, dtype="float16"))
            else:
                set_weight(network, name, checkpoint.read(name, dtype="float32"))
            bar.update(4 * math.prod(shape))
    network.set_train(False)
    return network


def _quantized(
    checkpoint: Checkpoint, name: str, shape: tuple[int, ...]
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """A matrix in int8 with its scales, read a few rows at a time."""
    rows, columns = shape
    numbers = np.empty(shape, np.int8)
    scales = np.empty((rows, -(-columns // GROUP)), np.float16)
    step = max(1, _CHUNK_BYTES // (4 * columns))
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        numbers[part], scales[part] = quantize(checkpoint.read(name, [part], dtype="float32"))
    return numbers, scales


def random_network(config: LlamaConfig, seed: int) -> LlamaForCausalLM:
    """A network with random weights that depend on the seed alone."""
    ms.set_seed(seed)
    return LlamaForCausalLM(config)


def tree_of(network: LlamaForCausalLM) -> dict[str, LazyTensor]:
    """Every parameter by name, fetched only when it is written: what `codellama_ckpt.save_sharded` takes.

    Raises:
        UserError: a network whose weights were converted for prediction.
    """
    if any(p.dtype != ms.float32 for p in network.get_parameters()):
        raise UserError("only a network in float32 can be saved: load it with weight_dtype fp32")
    return {p.name: LazyTensor("float32", tuple(p.shape), p.asnumpy) for p in network.get_parameters()}
