"""Prompts in bfloat16: near float32 where the processor has such products, and refused where it has not."""

from __future__ import annotations

import os
import subprocess
import sys

import golden_cases as cases
import numpy as np
import pytest
from codellama_model import Generator, LlamaConfig, LlamaForCausalLM, select
from codellama_model.ops import Operations
from mindspore import Tensor

PROMPT = 40  # tokens: few enough are computed in float32 all the same
# Of the logits' deviation. A product's operands are rounded by up to 2^-9 each; a layer has four products in a row.
MEAN_TOLERANCE, LARGEST_TOLERANCE = 0.02, 0.1


def network(operations: Operations) -> LlamaForCausalLM:
    config = LlamaConfig(**(cases.COMMON | cases.CASES["grouped"] | {"max_position_embedding": 64}))
    made = LlamaForCausalLM(config, operations)
    for name, value in cases.weights(config.parameter_shapes()).items():
        made.parameters_dict()[name].set_data(Tensor(value))
    return made.set_train(False)


def bfloat16_operations() -> Operations:
    try:
        return select("cpu", compute_dtype="bfloat16")
    except ValueError as error:
        pytest.skip(str(error))


def test_logits_after_a_prompt_are_near_those_of_float32() -> None:
    rounded = bfloat16_operations()
    prompt = np.random.default_rng(0).integers(3, cases.COMMON["vocab_size"], PROMPT).tolist()
    logits = []
    for operations in (select("cpu"), rounded):
        generator = Generator(network(operations))
        logits.append(generator._prefill(generator._cache(1, PROMPT), [prompt], want_logits=True)[1])
    exact, ours = logits
    difference = np.abs(ours - exact) / exact.std()
    assert 0 < difference.mean() < MEAN_TOLERANCE
    assert difference.max() < LARGEST_TOLERANCE


@pytest.mark.parametrize("name", ["composed", "ascend"])
def test_a_column_without_bfloat16_prompts_refuses_them(name: str) -> None:
    with pytest.raises(ValueError, match="compute_dtype bfloat16 is not served for prompts here; choose float32"):
        select(name, compute_dtype="bfloat16")


def test_this_processor_without_such_products_refuses_them() -> None:
    code = "from codellama_model import select; select('cpu'); select('cpu', compute_dtype='bfloat16')"
    environment = {**os.environ, "CODELLAMA_KERNELS_ISA": "generic"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ValueError: compute_dtype bfloat16 ")
    assert done.stderr.splitlines()[-1].endswith("; choose float32")
