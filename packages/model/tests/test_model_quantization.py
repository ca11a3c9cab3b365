"""Weights in float16 and int8: bounds of the rounding, and networks that compute with exactly the rounded weights."""

from __future__ import annotations

import golden_cases as cases
import numpy as np
import pytest
from codellama_model import Generator, LlamaConfig, dequantize, quantize, select, sequence_logits, set_weight
from codellama_model.llama import LlamaForCausalLM
from codellama_model.quantization import GROUP
from hypothesis import given, settings
from hypothesis import strategies as st
from model_helpers import network_of

LOGITS_TOLERANCE = 1e-5  # absolute; the same float32 products


@settings(deadline=None, max_examples=100)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 3 * GROUP + 1),
    exponent=st.integers(-30, 10),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_number_times_its_scale_is_within_half_a_scale(rows: int, columns: int, exponent: int, seed: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32) * np.float32(2.0**exponent)
    numbers, scales = quantize(weight)
    assert numbers.dtype == np.int8 and numbers.shape == weight.shape
    assert scales.dtype == np.float16 and scales.shape == (rows, -(-columns // GROUP))
    steps = scales.astype(np.float32).repeat(GROUP, axis=1)[:, :columns]
    assert (np.abs(dequantize(numbers, scales) - weight) <= 0.5001 * steps).all()
    assert numbers.min() >= -127
    largest = np.array([np.abs(weight[:, at : at + GROUP]).max(1) for at in range(0, columns, GROUP)]).T
    finest = np.maximum(largest / 127, 2.0**-24)
    assert (scales <= finest * (1 + 2.0**-10) + 2.0**-24).all()  # rounded up, by one float16 at most


def test_zeros_stay_zeros() -> None:
    numbers, scales = quantize(np.zeros((2, 70), np.float32))
    assert not dequantize(numbers, scales).any()


def rounded(config: LlamaConfig, kind: str) -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """A network that keeps its matrices in `kind`, and one in float32 with the values that these stand for."""
    tree = cases.weights(config.parameter_shapes())
    kept, exact = network_of(config, tree), dict(tree)
    for name, value in tree.items():
        if value.ndim == 1:
            continue
        if kind == "int8":
            numbers, scales = quantize(value)
            set_weight(kept, name, numbers, scales)
            exact[name] = dequantize(numbers, scales)
        else:
            set_weight(kept, name, value.astype(np.float16))
            exact[name] = value.astype(np.float16).astype(np.float32)
    return kept, network_of(config, exact)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_a_network_computes_with_the_rounded_weights(kind: str, tied: bool) -> None:
    keys = {**cases.COMMON, **cases.CASES["grouped"], "tie_word_embeddings": tied}
    kept, exact = rounded(LlamaConfig(**keys), kind)
    names = {p.name for p in kept.get_parameters()}
    assert {p.name for p in exact.get_parameters()} == {name for name in names if not name.endswith("_scales")}
    ids = np.random.default_rng(1).integers(3, cases.COMMON["vocab_size"], (2, 9))
    ours, expected = sequence_logits(kept, ids), sequence_logits(exact, ids)
    np.testing.assert_allclose(ours, expected, atol=LOGITS_TOLERANCE, rtol=0)
    prompts = [ids[0].tolist(), ids[1, :4].tolist()]
    kept.operations = exact.operations = select("composed")
    assert Generator(kept).generate(prompts, 8, stop_ids=()) == Generator(exact).generate(prompts, 8, stop_ids=())
