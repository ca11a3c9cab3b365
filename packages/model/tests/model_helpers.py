"""Builds networks with given weights, for the tests of this package."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from codellama_model import LlamaConfig, LlamaForCausalLM
from mindspore import Tensor


def network_of(config: LlamaConfig, tree: Mapping[str, np.ndarray]) -> LlamaForCausalLM:
    """A network whose every parameter comes from `tree`, which holds nothing else."""
    network = LlamaForCausalLM(config)
    parameters = {parameter.name: parameter for parameter in network.get_parameters()}
    assert set(parameters) == set(tree)
    for name, parameter in parameters.items():
        assert parameter.shape == tree[name].shape, name
        parameter.set_data(Tensor(tree[name]))
    network.set_train(False)
    return network
