"""The network that a run trains: from random weights or a checkpoint, with adapters where they are asked for."""

from __future__ import annotations

from pathlib import Path

from codellama_ckpt import open_checkpoint
from codellama_model import IGNORE_INDEX, CausalLMLoss, LlamaForCausalLM
from codellama_model.config import ConfigError
from mindspore.nn.utils import no_init_parameters

from codellama_app.adapters import adapter_shapes, random_adapters, read_adapters
from codellama_app.checkpoint_sizes import checkpoint_sizes, weights_path
from codellama_app.config import RunConfig
from codellama_app.lora import add_adapters
from codellama_app.precision import compute_in
from codellama_app.weights import network_from, random_network


def check_sizes(config: RunConfig) -> None:
    """ConfigError where the checkpoint to start from says other sizes than the configuration."""
    if config.load_checkpoint is None:
        return
    theirs = checkpoint_sizes(Path(config.load_checkpoint))
    if theirs is None:
        return
    ours = config.llama()
    for key, value in ours.to_dict().items():
        found = getattr(theirs, key)
        resolved = {"n_kv_heads": (ours.kv_heads, theirs.kv_heads), "head_dim": (ours.head_size, theirs.head_size)}
        expected, found = resolved.get(key, (value, found))
        # a shorter context is a choice, and so are the ids that text begins and ends with
        if expected != found and key not in {"max_position_embedding", "bos_token_id", "eos_token_id", "pad_token_id"}:
            raise ConfigError(
                f"model.{key} {expected}: load_checkpoint {config.load_checkpoint} is a network with {found}"
                " (--model.preset checkpoint takes its sizes)"
            )


def build_network(config: RunConfig, resumed: bool, compute_dtype: str) -> LlamaForCausalLM:
    """The network to train; where `resumed`, its trained part is read later, with the rest of the state.

    Raises:
        CheckpointError: tensors missing, surplus or misshapen, or a damaged file.
        UserError: adapters that are not those of the configuration.
    """
    llama, lora = config.llama(), config.lora
    if config.load_checkpoint is not None and (lora.rank is not None or not resumed):
        network = network_from(llama, open_checkpoint(weights_path(Path(config.load_checkpoint))))
    elif resumed:
        with no_init_parameters():
            network = LlamaForCausalLM(llama)
    else:
        network = random_network(llama, config.seed)
    if lora.rank is not None:
        shapes = adapter_shapes(llama, lora.rank, lora.targets)
        tree = read_adapters(Path(lora.adapter_path), shapes, lora.alpha / lora.rank) if lora.adapter_path else None
        add_adapters(network, random_adapters(shapes, config.seed) if tree is None else tree, lora.alpha / lora.rank)
    compute_in(network, compute_dtype)
    if config.recompute:
        for layer in network.model.layers:
            layer.recompute()
    return network


def training_loss(network: LlamaForCausalLM, z_loss: float) -> CausalLMLoss:
    """The loss that trains: what is validated, plus z_loss * log(sum of exp(logits))^2 of every token under loss."""
    loss = CausalLMLoss(network)
    if z_loss:
        loss.linear_cross_entropy = network.operations.linear_cross_entropy(IGNORE_INDEX, z_loss)
    return loss
