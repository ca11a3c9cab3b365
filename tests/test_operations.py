"""The kernels in the network: where they are installed they are what it computes with, and it computes the same."""

from __future__ import annotations

import dataclasses

import codellama_kernels
import numpy as np
import pytest
from codellama_model import Generator, LlamaConfig, LlamaForCausalLM, select
from mindspore import Tensor

LOGITS_TOLERANCE = 1e-4  # absolute; float32 sums in another order
CONFIG = LlamaConfig(
    vocab_size=97, hidden_size=44, num_layers=3, num_heads=6, n_kv_heads=2, head_dim=10, intermediate_size=52,
    max_position_embedding=600, theta=1e4,
)  # fmt: skip


@pytest.fixture(scope="module")
def networks() -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """The same random weights with the composed and with the installed operations."""
    if not codellama_kernels.available():
        pytest.skip(codellama_kernels.reason())
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE)
    rng = np.random.default_rng(1)
    composed, fused = LlamaForCausalLM(CONFIG, select("composed")), LlamaForCausalLM(CONFIG, select("cpu"))
    for first, second in zip(composed.get_parameters(), fused.get_parameters(), strict=True):
        scale = 0.3 if first.ndim > 1 else 1.0
        value = (rng.standard_normal(first.shape) * scale).astype(np.float32)
        first.set_data(Tensor(value))
        second.set_data(Tensor(value))
    return composed, fused


def test_the_installed_kernels_are_what_the_cpu_computes_with(networks):
    for name, operation in codellama_kernels.operations().items():
        assert getattr(select(), name) is operation
        assert getattr(select("composed"), name) is not operation


def test_generation_with_kernels_equals_composed_generation(networks):
    rng = np.random.default_rng(4)
    prompts = [rng.integers(3, CONFIG.vocab_size, length).tolist() for length in (1, 7, 40, 311)]
    composed, fused = (Generator(network).generate(prompts, 24, stop_ids=()) for network in networks)
    assert fused == composed


def test_logits_after_a_prompt_and_after_decoding_agree(networks):
    """With caches of one type: float16 keys and values are a rounding of their own."""
    import mindspore as ms
    from codellama_model import CachedLlama

    ids = np.random.default_rng(5).integers(3, CONFIG.vocab_size, (2, 17)).astype(np.int32)
    seen = []
    for network in networks:
        network.operations = dataclasses.replace(network.operations, cache_dtype=ms.float32)
        cache = CachedLlama(network, 2, 32)
        positions = np.tile(np.arange(16, dtype=np.int32), (2, 1))
        prompt = cache(Tensor(ids[:, :16]), Tensor(positions), Tensor(np.array([15, 31], np.int32)))[1].asnumpy()
        step = cache(Tensor(ids[:, 16:]), Tensor(np.full((2, 1), 16, np.int32)), Tensor(np.array([0, 1], np.int32)))[
            1
        ].asnumpy()
        seen.append(np.stack([prompt, step]))
    np.testing.assert_allclose(seen[1], seen[0], atol=LOGITS_TOLERANCE, rtol=0)
