"""`cached_layers` against the NumPy float64 oracle: shapes, head counts, positions, padding, element types."""

from __future__ import annotations

import kernels_call
import kernels_oracle as oracle
import numpy as np
import pytest
from codellama_kernels import instruction_set
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_oracle import Sizes

TOLERANCE = 5e-5  # absolute; outputs are a few units, sums of some hundred float32 products round to about 1e-6
HALF_TOLERANCE = 1e-2  # a key that lies between two float16 numbers may be rounded to either, 1e-3 apart
NARROW_TOLERANCE = 1e-4  # of prompts with float16 or int8 weights, which keep 16 bits: a few 1e-5 was seen
MANY_TOKENS = 24  # from which on products may be made by the matrix unit
WELL_CONDITIONED = 0.1  # eps under which the norm of a vector near zero does not magnify float32's rounding 300 times
HALF_SPACING = 2.0**-10  # relative distance of neighbouring float16 numbers


def tolerance_of(tokens: int, weight: type = np.float32) -> float:
    narrow = weight is not np.float32 and tokens >= MANY_TOKENS and instruction_set() == "amx"
    return NARROW_TOLERANCE if narrow else TOLERANCE


def check(
    sizes: Sizes, positions, cached: int, *, cache=np.float32, weight=np.float32, seed: int = 0, eps: float = 1e-5
) -> None:
    """One call on random numbers; cache positions that no token may see hold NaN."""
    generator = np.random.default_rng(seed)
    positions = np.asarray(positions, np.int32)
    batch, length = positions.shape
    x = generator.standard_normal((batch * length, sizes.hidden)).astype(np.float32)
    weights = sizes.weights(generator)
    scales = []
    if weight is np.int8:
        pairs = {name: oracle.quantized(weights[name]) for name in oracle.MATRICES}
        weights = weights | {name: numbers for name, (numbers, _) in pairs.items()}
        exact = weights | {name: oracle.dequantized(*pair) for name, pair in pairs.items()}
        scales = [scale for _, scale in pairs.values()]
    else:
        exact = weights = {name: w if w.ndim == 1 else w.astype(weight) for name, w in weights.items()}
    cos, sin = oracle.rotary(cached - 1, sizes.width)
    shape = (batch, sizes.kv_heads, cached, sizes.width)
    keys, values = (generator.standard_normal(shape).astype(cache) for _ in range(2))
    for row in range(batch):
        real = positions[row][(positions[row] >= 0) & (positions[row] < cached - 1)]
        unseen = int(real.max()) + 1 if real.size else 0
        keys[row, :, unseen:] = values[row, :, unseen:] = np.nan
    keys, values = keys.reshape(-1, sizes.width), values.reshape(-1, sizes.width)
    arguments = (x, positions, cos, sin)
    out, keys_after, values_after = oracle.layer(*arguments, keys, values, exact, eps)
    ours = kernels_call.layer(*arguments, keys, values, weights, eps, scales)
    half, tolerance = cache is np.float16, tolerance_of(batch * length, weight)
    np.testing.assert_allclose(ours, out, rtol=0, atol=HALF_TOLERANCE if half else tolerance)
    rounding = HALF_SPACING if half else 0
    np.testing.assert_allclose(keys.astype(np.float64), keys_after, rtol=rounding, atol=tolerance)
    np.testing.assert_allclose(values.astype(np.float64), values_after, rtol=rounding, atol=tolerance)


@st.composite
def cases(draw):
    kv_heads = draw(st.integers(1, 4))
    sizes = Sizes(
        heads=kv_heads * draw(st.integers(1, 5)),
        kv_heads=kv_heads,
        width=2 * draw(st.integers(1, 70)),
        hidden=draw(st.integers(1, 300)),
        ffn=draw(st.integers(1, 300)),
    )
    length = draw(st.one_of(st.just(1), st.integers(1, 40)))
    starts = draw(st.lists(st.integers(0, 300), min_size=1, max_size=4))
    positions = np.array(starts)[:, None] + np.arange(length)
    cached = int(positions.max()) + 2 + draw(st.integers(0, 3))
    for row in range(len(starts)):  # padding on the right, by the spare position or by one outside of the cache
        padding = draw(st.integers(0, length))
        positions[row, length - padding :] = draw(st.sampled_from([cached - 1, -1, cached + 7]))
    kinds = [np.float32, np.float16]
    cache, weight = draw(st.sampled_from(kinds)), draw(st.sampled_from([*kinds, np.int8]))
    return sizes, positions, cached, cache, weight, draw(st.integers(0, 2**32 - 1))


@settings(deadline=None, max_examples=150)
@given(cases())
def test_any_shape(case) -> None:
    sizes, positions, cached, cache, weight, seed = case
    check(sizes, positions, cached, cache=cache, weight=weight, seed=seed, eps=WELL_CONDITIONED)


SMALL = Sizes(heads=6, kv_heads=2, width=16, hidden=48, ffn=80)


@pytest.mark.parametrize("start", [0, 1, 15, 16, 17, 95, 96, 97, 255, 256, 257, 511, 512, 1023, 4095, 4096])
@pytest.mark.parametrize("cache", [np.float32, np.float16])
def test_decoding_at_position(start: int, cache: type) -> None:
    check(SMALL, [[start]], 4098, cache=cache)


@pytest.mark.parametrize("length", [2, 3, 5, 15, 16, 17, 31, 33, 96, 97, 300])
@pytest.mark.parametrize("start", [0, 7, 250])
def test_prompt_block(length: int, start: int) -> None:
    check(SMALL, [np.arange(start, start + length)], start + length + 1)


def test_long_prompt() -> None:
    """4,097 tokens at once: the scores of a block are never held as a whole."""
    check(Sizes(heads=2, kv_heads=1, width=8, hidden=8, ffn=8), [np.arange(4097)], 4098)


def test_layers_follow_one_another() -> None:
    """Three layers with caches of their own, and padding, at once: the oracle's, one after the other."""
    generator = np.random.default_rng(4)
    for length in (1, 5, 60):
        positions = np.arange(length, dtype=np.int32)[None] + 7
        positions[0, length // 2 + 1 :] = -1
        x = generator.standard_normal((length, SMALL.hidden)).astype(np.float32)
        turn = oracle.rotary(7 + length, SMALL.width)
        shape = (SMALL.kv_heads * (8 + length), SMALL.width)
        each = [
            (*(generator.standard_normal(shape).astype(np.float32) for _ in range(2)), SMALL.weights(generator), ())
            for _ in range(3)
        ]
        expected = x
        after = []
        for keys, values, weights, _ in each:
            expected, *caches = oracle.layer(expected, positions, *turn, keys, values, weights, kernels_call.EPS)
            after.append(caches)
        ours = kernels_call.layers(x, positions, *turn, each)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=3 * TOLERANCE)
        for (keys, values, *_), (keys_after, values_after) in zip(each, after, strict=True):
            np.testing.assert_allclose(keys, keys_after, rtol=0, atol=3 * TOLERANCE)
            np.testing.assert_allclose(values, values_after, rtol=0, atol=3 * TOLERANCE)


def test_rows_at_different_positions() -> None:
    check(SMALL, [[0], [700], [299], [3]], 702)
    check(SMALL, [np.arange(20), np.arange(500, 520), [*range(40, 50), *[521] * 10]], 522)


def test_the_sizes_of_a_135m_network() -> None:
    sizes = Sizes(heads=9, kv_heads=3, width=64, hidden=576, ffn=1536)
    check(sizes, [[300]], 302)
    check(sizes, [np.arange(64)], 66)


def test_padding_leaves_everything_alone() -> None:
    generator = np.random.default_rng(1)
    x = generator.standard_normal((4, SMALL.hidden)).astype(np.float32)
    positions = np.array([[9, -1], [10**6, 9]], np.int32)  # a cache of ten positions: 9 is the spare one
    keys, values = (generator.standard_normal((2 * 2 * 10, SMALL.width)).astype(np.float32) for _ in range(2))
    before = keys.copy(), values.copy()
    out = kernels_call.layer(x, positions, *oracle.rotary(9, SMALL.width), keys, values, SMALL.weights(generator))
    np.testing.assert_array_equal(out, x)
    np.testing.assert_array_equal(keys, before[0])
    np.testing.assert_array_equal(values, before[1])


def test_large_scores_do_not_overflow() -> None:
    """Softmax of scores around 1e4, whose exponentials float32 can not hold."""
    generator = np.random.default_rng(2)
    weights = SMALL.weights(generator)
    weights["wq"] *= 300
    weights["wk"] *= 300
    x = generator.standard_normal((1, SMALL.hidden)).astype(np.float32)
    cos, sin = oracle.rotary(300, SMALL.width)
    keys, values = (generator.standard_normal((2 * 301, SMALL.width)).astype(np.float32) for _ in range(2))
    keys *= 300
    arguments = (x, np.array([[299]], np.int32), cos, sin)
    expected, *_ = oracle.layer(*arguments, keys, values, weights, kernels_call.EPS)
    np.testing.assert_allclose(kernels_call.layer(*arguments, keys, values, weights), expected, atol=1e-2)


def test_arguments_that_do_not_fit_are_refused() -> None:
    """The library's own last check, behind the one with messages: nothing is read or written."""
    generator = np.random.default_rng(3)
    x = generator.standard_normal((1, SMALL.hidden)).astype(np.float32)
    cos, sin = oracle.rotary(9, SMALL.width)
    keys, values = (np.zeros((2 * 10, SMALL.width), np.float32) for _ in range(2))
    ordered = [SMALL.weights(generator)[name] for name in oracle.ORDER]
    eps = np.array([1e-5], np.float32)
    good = [x, np.array([[3]], np.int32), cos, sin, eps, *ordered, keys, values, x.copy()]
    assert kernels_call.call("codellama_cached_layers", *good) == 0
    assert kernels_call.call("codellama_cached_layers", *good[:-1]) == 1
    for index in range(len(good)):
        for wrong in (np.concatenate([good[index]] * 2), good[index].astype(np.float64)):
            changed = list(good)
            changed[index] = wrong
            if index == 1 and wrong.dtype == np.int32:
                continue  # two rows: refused because x has one
            assert kernels_call.call("codellama_cached_layers", *changed) == 1, (index, wrong.shape, wrong.dtype)
