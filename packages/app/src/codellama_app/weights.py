"""Between checkpoints and networks: building a network from any checkpoint, and a checkpoint from a network.

A network's parameters are allocated one by one as they are read, so nothing holds a full model twice.
"""

from __future__ import annotations

import mindspore as ms
from codellama_ckpt import Checkpoint, LazyTensor
from codellama_model import LlamaConfig, LlamaForCausalLM
from mindspore import Tensor
from mindspore.nn.utils import no_init_parameters
from tqdm import tqdm

CONFIG_KEY = "config"  # of a checkpoint's metadata: the network's configuration as JSON, in Hugging Face's spelling
_BAR_FROM_BYTES = 1 << 30  # a bar for what takes seconds


def network_from(config: LlamaConfig, checkpoint: Checkpoint) -> LlamaForCausalLM:
    """A network of these sizes with the checkpoint's weights, in float32.

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
        for parameter in network.get_parameters():
            parameter.set_data(Tensor(checkpoint.read(parameter.name, dtype="float32")))
            bar.update(parameter.nbytes)
    network.set_train(False)
    return network


def random_network(config: LlamaConfig, seed: int) -> LlamaForCausalLM:
    """A network with random weights that depend on the seed alone."""
    ms.set_seed(seed)
    return LlamaForCausalLM(config)


def tree_of(network: LlamaForCausalLM) -> dict[str, LazyTensor]:
    """Every parameter by name, fetched only when it is written: what `codellama_ckpt.save_sharded` takes."""
    return {p.name: LazyTensor("float32", tuple(p.shape), p.asnumpy) for p in network.get_parameters()}
