"""Prompts: products in bfloat16 against an oracle that rounds where they do, long prompts, blocks of every length."""

from __future__ import annotations

import os
import subprocess
import sys

import kernels_call
import kernels_oracle as oracle
import numpy as np
import pytest
from codellama_kernels import has_bfloat16_products, operations
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_oracle import Sizes

# Absolute, of outputs of a few units. Float32 and the oracle's float64 differ by 1e-6 before each rounding; where that
# crosses the middle between two neighbours, 2^-8 apart, an operand changes by one of them, and small networks show it
# undiluted: in 150 random ones 0.019 was seen, and 5e-4 in the mean over a network's outputs.
BFLOAT16_TOLERANCE = 5e-2
BFLOAT16_MEAN_TOLERANCE = 2e-3
# Of the mean difference from an oracle without rounding, how much the one with it may leave unexplained.
UNEXPLAINED = 0.1
WELL_CONDITIONED = 0.1
MANY_TOKENS = 24

SMALL = Sizes(heads=6, kv_heads=2, width=16, hidden=48, ffn=80)

needs_bfloat16 = pytest.mark.skipif(not has_bfloat16_products(), reason="this processor has no products in bfloat16")


def case(sizes: Sizes, length: int, start: int, weight: type, cache: type, seed: int):
    """(arguments of a layer, its weights, their exact values, scales): random numbers."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((length, sizes.hidden)).astype(np.float32)
    weights, scales = sizes.weights(generator), []
    exact = weights
    if weight is np.int8:
        pairs = {name: oracle.quantized(weights[name]) for name in oracle.MATRICES}
        exact = weights | {name: oracle.dequantized(*pair) for name, pair in pairs.items()}
        weights = weights | {name: numbers for name, (numbers, _) in pairs.items()}
        scales = [scale for _, scale in pairs.values()]
    elif weight is np.float16:
        exact = weights = {name: w if w.ndim == 1 else w.astype(weight) for name, w in weights.items()}
    positions = np.arange(start, start + length, dtype=np.int32)[None]
    shape = (sizes.kv_heads * (start + length + 1), sizes.width)
    keys, values = (generator.standard_normal(shape).astype(cache) for _ in range(2))
    cos, sin = oracle.rotary(start + length, sizes.width)
    return (x, positions, cos, sin, keys, values), weights, exact, scales


@needs_bfloat16
@settings(deadline=None, max_examples=60)
@given(
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    width=st.integers(1, 40).map(lambda half: 2 * half),
    hidden=st.integers(1, 200),
    ffn=st.integers(1, 200),
    length=st.integers(MANY_TOKENS, 80),
    start=st.integers(0, 300),
    weight=st.sampled_from([np.float32, np.float16, np.int8]),
    cache=st.sampled_from([np.float32, np.float16]),
    seed=st.integers(0, 2**32 - 1),
)
def test_bfloat16_rounds_the_operands_and_nothing_else(
    kv_heads, group, width, hidden, ffn, length, start, weight, cache, seed
) -> None:
    sizes = Sizes(heads=kv_heads * group, kv_heads=kv_heads, width=width, hidden=hidden, ffn=ffn)
    arguments, weights, exact, scales = case(sizes, length, start, weight, cache, seed)
    expected, *_ = oracle.layer(*arguments, exact, WELL_CONDITIONED, oracle.bfloat16)
    ours = kernels_call.layer(*arguments, weights, WELL_CONDITIONED, scales, "cached_layers_bfloat16")
    np.testing.assert_allclose(ours, expected, rtol=0, atol=BFLOAT16_TOLERANCE)
    assert np.abs(ours - expected).mean() < BFLOAT16_MEAN_TOLERANCE


@needs_bfloat16
def test_bfloat16_differs_from_float32_by_the_rounding_of_operands() -> None:
    sizes = Sizes(heads=6, kv_heads=2, width=64, hidden=256, ffn=300)
    arguments, weights, exact, _ = case(sizes, 60, 100, np.float16, np.float16, 0)
    unrounded, *_ = oracle.layer(*(array.copy() for array in arguments), exact, WELL_CONDITIONED)
    rounded, *_ = oracle.layer(*(array.copy() for array in arguments), exact, WELL_CONDITIONED, oracle.bfloat16)
    ours = kernels_call.layer(*arguments, weights, WELL_CONDITIONED, function="cached_layers_bfloat16")
    assert np.abs(ours - rounded).mean() < UNEXPLAINED * np.abs(ours - unrounded).mean()


@needs_bfloat16
def test_few_tokens_are_computed_in_float32() -> None:
    for length, equal in ((MANY_TOKENS - 1, True), (MANY_TOKENS, False)):
        arguments, weights, *_ = case(SMALL, length, 5, np.float16, np.float16, 1)
        plain = kernels_call.layer(*(array.copy() for array in arguments), weights)
        ours = kernels_call.layer(*arguments, weights, function="cached_layers_bfloat16")
        assert np.array_equal(ours, plain) is equal


def test_a_processor_without_bfloat16_products_refuses_them() -> None:
    code = "import codellama_kernels as k; print(k.has_bfloat16_products()); k.operations('bfloat16')"
    environment = {**os.environ, "CODELLAMA_KERNELS_ISA": "generic"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "False\n"
    assert done.stderr.splitlines()[-1] == (
        "ValueError: compute_dtype bfloat16 needs products in bfloat16: this processor has none (in use: generic;"
        " needed: Intel AMX); choose float32"
    )


def test_another_compute_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="must be float32 or bfloat16 on CPU, found 'float16'"):
        operations("float16")


@pytest.mark.parametrize("length", [24, 25, 63, 128, 129, 255, 257, 384, 385, 700])
@pytest.mark.parametrize("cache", [np.float32, np.float16])
def test_a_prompt_at_once_is_its_tokens_one_by_one(length: int, cache: type) -> None:
    """In blocks of any length behind 300 cached positions: what few tokens compute, the prompt's products do too."""
    tolerance = 5e-5 if cache is np.float32 else 1e-2  # a key between two float16 numbers may become either
    arguments, weights, *_ = case(SMALL, length, 300, np.float32, cache, length)
    x, positions, cos, sin, keys, values = arguments
    ours = kernels_call.layer(x, positions, cos, sin, keys.copy(), values.copy(), weights)
    for first in range(0, length, 16):
        part = slice(first, first + 16)
        few = kernels_call.layer(x[part], positions[:, part].copy(), cos, sin, keys, values, weights)
        np.testing.assert_allclose(ours[part], few, rtol=0, atol=tolerance)
