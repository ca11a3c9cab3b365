"""How a network is shared by processes that generate with it together. No MindSpore."""

from __future__ import annotations

import dataclasses

from codellama_model.config import ConfigError, LlamaConfig
from codellama_model.quantization import WeightDtype
from codellama_parallel import ParallelConfig, Plan

from codellama_app.command import UserError


def check_split(config: LlamaConfig, ranks: int, weight_dtype: WeightDtype) -> None:
    """Refuses what can not be shared, before anything is started or read.

    Raises:
        ConfigError: so many ranks can not share a network of these sizes.
        UserError: weights in int8.
    """
    if weight_dtype == "int8":
        raise UserError("weight_dtype int8 runs in one process: give fp16 or fp32, or device_num 1")
    split_plan(config, ranks)


def check_shared_compute(compute_dtype: str) -> None:
    """Refuses what processes that share a network do not compute in.

    Raises:
        UserError: anything but float32.
    """
    if compute_dtype != "float32":
        raise UserError(f"compute_dtype {compute_dtype} runs in one process: give float32, or device_num 1")


def split_plan(config: LlamaConfig, ranks: int) -> Plan:
    """Which part of which matrix each rank has.

    Every rank looks ids up in a whole embedding. A head that is tied to it is split all the same, as a matrix of its
    own.

    Raises:
        ConfigError: so many ranks can not share a network of these sizes.
    """
    untied = dataclasses.replace(config, tie_word_embeddings=False)
    try:
        return Plan(untied, ParallelConfig(model_parallel=ranks, vocab_emb_dp=True))
    except ConfigError as error:
        raise ConfigError(f"device_num {ranks}: {error}") from None
