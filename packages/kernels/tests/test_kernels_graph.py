"""The operators inside MindSpore graphs: order of in-place writes, several graphs at once, messages."""

from __future__ import annotations

import kernels_call
import kernels_oracle as oracle
import mindspore as ms
import numpy as np
import pytest
from codellama_kernels import has_bfloat16_products, operations
from kernels_oracle import Sizes
from mindspore import Parameter, Tensor, nn

SIZES = Sizes(heads=4, kv_heads=2, width=8, hidden=24, ffn=40)
CACHED = 12
TOLERANCE = 5e-5


@pytest.fixture(scope="module", autouse=True)
def graph_mode() -> None:
    ms.set_context(mode=ms.GRAPH_MODE)


class Layer(nn.Cell):
    """One layer over a cache of its own, for one row; `steps` calls in one graph, a token each."""

    def __init__(self, weights, steps: int = 1, cache=ms.float32) -> None:
        super().__init__()
        self.layer = operations()["cached_layers"]
        cos, sin = oracle.rotary(CACHED - 1, SIZES.width)
        self.cos, self.sin = Tensor(cos), Tensor(sin)
        empty = np.full((SIZES.kv_heads * CACHED, SIZES.width), np.nan, np.float32)
        self.keys = Parameter(Tensor(empty, cache), name="keys", requires_grad=False)
        self.values = Parameter(Tensor(empty, cache), name="values", requires_grad=False)
        self.weights = ms.ParameterTuple([Parameter(Tensor(weights[name]), name=name) for name in oracle.ORDER])
        self.steps = steps
        self.eps = kernels_call.EPS

    def construct(self, x, positions):
        outputs = ()
        earlier = x[:1] * 0
        for step in range(self.steps):
            # The tokens are independent of one another: only the sum orders the calls, as the cache demands.
            earlier = self.layer(
                x[step : step + 1] + earlier * 0,
                positions[:, step : step + 1],
                self.cos,
                self.sin,
                (*self.weights, self.keys, self.values),
                self.eps,
            )
            outputs += (earlier,)
        return outputs


def expected(x, positions, weights):
    empty = np.zeros((SIZES.kv_heads * CACHED, SIZES.width), np.float32)
    return oracle.layer(x, positions, *oracle.rotary(CACHED - 1, SIZES.width), empty, empty, weights, kernels_call.EPS)


def test_writes_of_one_graph_happen_in_the_order_of_its_data() -> None:
    """Ten tokens, a call each: a call that ran early would see the NaN that the cache is filled with."""
    generator = np.random.default_rng(0)
    weights = SIZES.weights(generator)
    x = generator.standard_normal((10, SIZES.hidden)).astype(np.float32)
    positions = np.arange(10, dtype=np.int32)[None]
    cell = Layer(weights, steps=10)
    outputs = cell(Tensor(x), Tensor(positions))
    ours = np.concatenate([output.asnumpy() for output in outputs])
    out, keys, _ = expected(x, positions, weights)
    np.testing.assert_allclose(ours, out, rtol=0, atol=TOLERANCE)
    written = cell.keys.asnumpy().reshape(SIZES.kv_heads, CACHED, SIZES.width)
    np.testing.assert_allclose(
        written[:, :10], keys.reshape(written.shape)[:, :10], rtol=0, atol=TOLERANCE, err_msg="the Parameter itself"
    )
    assert np.isnan(written[:, 10:]).all()


@pytest.mark.parametrize("cache", [ms.float32, ms.float16])
def test_two_graphs_taking_turns_do_not_disturb_each_other(cache) -> None:
    generator = np.random.default_rng(1)
    weights = [SIZES.weights(generator) for _ in range(2)]
    cells = [Layer(one, cache=cache) for one in weights]
    x = generator.standard_normal((2, 10, SIZES.hidden)).astype(np.float32)
    positions = np.arange(10, dtype=np.int32)[None]
    for step in range(10):
        for index, cell in enumerate(cells):
            (ours,) = cell(Tensor(x[index, step : step + 1]), Tensor(positions[:, step : step + 1]))
            out, *_ = expected(x[index], positions, weights[index])
            tolerance = TOLERANCE if cache == ms.float32 else 1e-2  # float16 keys
            np.testing.assert_allclose(ours.asnumpy(), out[step : step + 1], rtol=0, atol=tolerance)


@pytest.mark.skipif(not has_bfloat16_products(), reason="this processor has no products in bfloat16")
def test_bfloat16_in_a_graph() -> None:
    """The table's entry is the operator of that name: bit by bit what the function computes."""
    weights = SIZES.weights(np.random.default_rng(5))
    x = np.random.default_rng(6).standard_normal((30, SIZES.hidden)).astype(np.float32)
    positions = np.arange(30, dtype=np.int32)[None]
    cos, sin = oracle.rotary(30, SIZES.width)
    layer = operations("bfloat16")["cached_layers"]
    empty = np.zeros((SIZES.kv_heads * 31, SIZES.width), np.float32)
    tensors = [Parameter(Tensor(weights[name]), name=name) for name in oracle.ORDER]
    caches = [Parameter(Tensor(empty), name=name) for name in ("keys", "values")]

    class Bfloat16(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.layers = ms.ParameterTuple([*tensors, *caches])
            self.cos, self.sin = Tensor(cos), Tensor(sin)

        def construct(self, x, positions):
            return layer(x, positions, self.cos, self.sin, self.layers, kernels_call.EPS)

    ours = Bfloat16()(Tensor(x), Tensor(positions)).asnumpy()
    arguments = (x, positions, cos, sin, empty.copy(), empty.copy(), weights)
    wanted = kernels_call.layer(*arguments, function="cached_layers_bfloat16")
    np.testing.assert_array_equal(ours, wanted)


class Head(nn.Cell):
    def __init__(self, norm, weight) -> None:
        super().__init__()
        self.head = operations()["cached_head"]
        self.norm, self.weight = Parameter(Tensor(norm), name="norm"), Parameter(Tensor(weight), name="weight")

    def construct(self, x, last):
        return self.head(x, last, self.norm, self.weight, kernels_call.EPS)


def test_head_in_a_graph() -> None:
    generator = np.random.default_rng(2)
    x, norm, weight = (generator.standard_normal(shape).astype(np.float32) for shape in ((6, 24), (24,), (99, 24)))
    last = np.array([5, 0, 3], np.int32)
    greedy, logits = Head(norm, weight)(Tensor(x), Tensor(last))
    wanted, wanted_logits = oracle.head(x, last, norm, weight, kernels_call.EPS)
    np.testing.assert_array_equal(greedy.asnumpy(), wanted)
    np.testing.assert_allclose(logits.asnumpy(), wanted_logits, rtol=0, atol=TOLERANCE)


def test_shapes_that_do_not_fit_are_named() -> None:
    weights = SIZES.weights(np.random.default_rng(3))
    weights["w3"] = weights["w3"][:-1]
    x, positions = Tensor(np.zeros((1, SIZES.hidden), np.float32)), Tensor(np.zeros((1, 1), np.int32))
    with pytest.raises(ValueError, match=r"w3 must have shape \[40, 24\], found \[39, 24\]"):
        Layer(weights)(x, positions)
    with pytest.raises(ValueError, match=r"norm must have shape \[24\], found \[23\]"):
        Head(np.ones(23, np.float32), np.ones((9, 24), np.float32))(x, Tensor(np.zeros(1, np.int32)))


def test_types_that_are_not_served_are_named() -> None:
    weights = SIZES.weights(np.random.default_rng(4))
    x = Tensor(np.zeros((1, SIZES.hidden), np.float32))
    with pytest.raises(TypeError, match=r"positions must be Int32, found Int64"):
        Layer(weights)(x, Tensor(np.zeros((1, 1), np.int64)))
