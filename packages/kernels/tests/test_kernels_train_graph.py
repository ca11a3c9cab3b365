"""The training operators inside MindSpore graphs: gradients against autodiff, order of in-place writes, messages."""

from __future__ import annotations

import kernels_train_oracle as oracle
import mindspore as ms
import numpy as np
import pytest
from codellama_kernels import layers, loss, operations, optimizer
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

BATCH, LENGTH, HEADS, KV_HEADS, WIDTH, HIDDEN, FFN, VOCABULARY = 2, 33, 4, 2, 8, 24, 40, 50
IGNORED, Z_LOSS, SCALE = -100, 1e-2, 0.3
RELATIVE = 2e-5  # of a gradient's largest entry: float32 sums in another order


@pytest.fixture(scope="module", autouse=True)
def graph_mode() -> None:
    ms.set_context(mode=ms.GRAPH_MODE)


class Stock:
    """The same operations of stock MindSpore operators, for autodiff."""

    @staticmethod
    def linear(x, weight):
        return ops.matmul(x, weight.T)

    @staticmethod
    def rms_norm(x, weight, eps):
        return x * ops.rsqrt(ops.mean(ops.square(x), -1, True) + eps) * weight

    @staticmethod
    def swiglu(gate, up):
        return ops.silu(gate) * up

    @staticmethod
    def rotate(x, cos, sin):
        left, right = ops.split(x, WIDTH // 2, axis=-1)
        return x * cos + ops.concat((-right, left), axis=-1) * sin

    @staticmethod
    def document_mask(document_ids):
        places = ops.arange(LENGTH)
        hidden = ops.logical_or(
            ops.expand_dims(document_ids, 2) != ops.expand_dims(document_ids, 1),
            ops.expand_dims(places, 1) < ops.expand_dims(places, 0),
        )
        return ops.expand_dims(ops.cast(hidden, ms.float32) * -1e9, 1)

    @staticmethod
    def causal_attention(query, key, value, mask, scale):
        key, value = (ops.repeat_interleave(one, HEADS // KV_HEADS, 2) for one in (key, value))
        query, key, value = (ops.transpose(one, (0, 2, 1, 3)) for one in (query, key, value))
        weights = ops.softmax(ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))) * scale + mask, -1)
        return ops.reshape(ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3)), (-1, HEADS * WIDTH))

    @staticmethod
    def cross_entropy(x, weight, labels):
        counted = ops.cast(labels != IGNORED, ms.float32)
        lse = ops.logsumexp(ops.matmul(x, weight.T), -1)
        picked = ops.sum(x * ops.gather(weight, ops.maximum(labels, 0), 0), -1)
        return ops.sum((lse - picked + Z_LOSS * ops.square(lse)) * counted), ops.sum(counted)


class Network(nn.Cell):
    """A layer's branches one after the other, and the loss; every operation once or more."""

    def __init__(self, entry, cross_entropy) -> None:
        super().__init__()
        self.linear, self.rms_norm, self.swiglu = entry.linear, entry.rms_norm, entry.swiglu
        self.rotate, self.document_mask = entry.rotate, entry.document_mask
        self.causal_attention = entry.causal_attention
        self.cross_entropy = cross_entropy

    def construct(self, x, norm, wq, wk, wv, w1, w3, head, document_ids, labels, cos, sin):
        normed = self.rms_norm(x, norm, 1e-5)
        query = self.rotate(ops.reshape(self.linear(normed, wq), (BATCH, LENGTH, HEADS, WIDTH)), cos, sin)
        key = self.rotate(ops.reshape(self.linear(normed, wk), (BATCH, LENGTH, KV_HEADS, WIDTH)), cos, sin)
        value = ops.reshape(self.linear(normed, wv), (BATCH, LENGTH, KV_HEADS, WIDTH))
        mixed = self.causal_attention(query, key, value, self.document_mask(document_ids), SCALE)
        total, tokens = self.cross_entropy(self.swiglu(self.linear(mixed, w1), self.linear(mixed, w3)), head, labels)
        return total * 3.0, tokens  # a gradient that is not 1 arrives at the loss


class Differentiated(nn.Cell):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.gradient = ops.value_and_grad(network, tuple(range(8)), has_aux=True)

    def construct(self, *arguments):
        return self.gradient(*arguments)


@pytest.fixture(scope="module")
def arguments():
    generator = np.random.default_rng(0)

    def drawn(*shape: int) -> Tensor:
        return Tensor(generator.standard_normal(shape).astype(np.float32) * shape[-1] ** -0.25)

    tokens = BATCH * LENGTH
    labels = generator.integers(0, VOCABULARY, tokens).astype(np.int32)
    labels[::5] = IGNORED
    documents = np.repeat(np.array([[1, 2, 2], [0, 0, 0]], np.int32), LENGTH // 3, axis=1)
    inputs = [drawn(tokens, HIDDEN), drawn(HIDDEN), drawn(HEADS * WIDTH, HIDDEN)]
    inputs += [drawn(KV_HEADS * WIDTH, HIDDEN), drawn(KV_HEADS * WIDTH, HIDDEN)]
    inputs += [drawn(FFN, HEADS * WIDTH), drawn(FFN, HEADS * WIDTH), drawn(VOCABULARY, FFN)]
    return [*inputs, Tensor(documents), Tensor(labels), drawn(1, LENGTH, 1, WIDTH), drawn(1, LENGTH, 1, WIDTH)]


@pytest.fixture(scope="module")
def expected(arguments):
    return Differentiated(Network(Stock, Stock.cross_entropy))(*arguments)


@pytest.mark.parametrize("training", [True, False])
def test_every_gradient_is_that_of_autodiff(arguments, expected, training: bool) -> None:
    """In training the gradients of the loss come from the forward pass; otherwise they are computed when asked for."""
    network = Network(layers, loss.LinearCrossEntropy(IGNORED, Z_LOSS))
    network.set_train(training)
    cell = Differentiated(network)
    (total, tokens), gradients = cell(*arguments)
    np.testing.assert_allclose(total.asnumpy(), expected[0][0].asnumpy(), rtol=1e-5)
    assert tokens.asnumpy() == expected[0][1].asnumpy()
    for found, one in zip(gradients, expected[1], strict=True):
        wanted = one.asnumpy()
        np.testing.assert_allclose(found.asnumpy(), wanted, rtol=0, atol=RELATIVE * np.abs(wanted).max())
    for found, again in zip(gradients, cell(*arguments)[1], strict=True):
        np.testing.assert_array_equal(found.asnumpy(), again.asnumpy(), err_msg="repeats bit by bit")


class Recomputed(nn.Cell):
    """Two layers of which the inner one is computed again for the backward pass where `again` is set."""

    def __init__(self, weights, again: bool) -> None:
        super().__init__()
        self.inner = Inner(weights)
        if again:
            self.inner.recompute()

    def construct(self, x):
        return ops.sum(ops.square(self.inner(self.inner(x))))


class Inner(nn.Cell):
    def __init__(self, weights) -> None:
        super().__init__()
        self.weight = Parameter(Tensor(weights), name="weight")

    def construct(self, x):
        y = layers.linear(layers.rms_norm(x, self.weight[0], 1e-5), self.weight)
        return x + layers.swiglu(y, y)


def test_layers_may_be_recomputed() -> None:
    generator = np.random.default_rng(1)
    weights, x = (generator.standard_normal((16, 16)).astype(np.float32) for _ in range(2))
    found = []
    for again in (False, True):
        cell = Recomputed(weights, again)
        found.append(Gradient(cell)(Tensor(x))[0].asnumpy())
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-5)


class Gradient(nn.Cell):
    def __init__(self, cell) -> None:
        super().__init__()
        self.gradient = ops.grad(cell, None, ParameterTuple(cell.trainable_params()))

    def construct(self, x):
        return self.gradient(x)


class Crossed(nn.Cell):
    """Two updates; the second weight's gradient is a product with the first weight, as in a backward pass.

    Nothing but `scale` tells the graph that the first update must wait for that product.
    """

    def __init__(self, weights) -> None:
        super().__init__(auto_prefix=False)
        self.weights = ParameterTuple([Parameter(Tensor(w), name=f"w{i}") for i, w in enumerate(weights)])
        zeros = [np.zeros_like(w) for w in weights]
        self.first = ParameterTuple([Parameter(Tensor(z), name=f"m{i}") for i, z in enumerate(zeros)])
        self.second = ParameterTuple([Parameter(Tensor(z), name=f"v{i}") for i, z in enumerate(zeros)])

    def construct(self, x, rate):
        gradients = (x + 1.0, layers.linear(x, self.weights[0]))
        scale = ops.depend(Tensor(1.0, ms.float32), gradients)
        done = ()
        for index, gradient in enumerate(gradients):
            arguments = (self.weights[index], self.first[index], self.second[index], gradient)
            done += (optimizer.adamw(*arguments, rate, scale, Tensor(1.0, ms.float32), 0.9, 0.95, 1e-15, 0.0),)
        return done, gradients[1]


def test_updates_in_place_wait_for_everything_that_reads_the_weights() -> None:
    generator = np.random.default_rng(2)
    weights = [generator.standard_normal((32, 32)).astype(np.float32) for _ in range(2)]
    x = generator.standard_normal((32, 32)).astype(np.float32)
    cell = Crossed(weights)
    _, gradient = cell(Tensor(x), Tensor(1.0, ms.float32))
    np.testing.assert_allclose(gradient.asnumpy(), x @ weights[0].T, rtol=0, atol=1e-4, err_msg="of the weight before")
    for weight, former in zip(cell.weights, weights, strict=True):
        moved = np.abs(weight.asnumpy() - former)
        np.testing.assert_allclose(moved, 1, rtol=1e-3, err_msg="the first step of AdamW is the rate")


class Documents(nn.Cell):
    def construct(self, document_ids):
        return layers.document_mask(document_ids)


def test_documents_begin_where_the_id_changes() -> None:
    documents = Tensor(np.array([[1, 1, 1, 2, 2, 0], [1, 2, 3, 3, 1, 1]], np.int32))
    assert Documents()(documents).asnumpy().tolist() == [[0, 0, 0, 3, 3, 5], [0, 1, 2, 2, 4, 4]]


class Sliced(nn.Cell):
    def construct(self, x, weight, labels):
        largest, total, logit = loss.vocabulary_slice(x, weight, labels)
        gradients = loss.vocabulary_slice_gradient(x, weight, labels, largest, total, total * 0 + 1, total * 0 - 1)
        return ops.sum(largest + ops.log(total) - logit), gradients


def test_a_slice_that_is_the_whole_vocabulary() -> None:
    generator = np.random.default_rng(3)
    x, weight = (
        generator.standard_normal((9, 6)).astype(np.float32),
        generator.standard_normal((11, 6)).astype(np.float32),
    )
    labels = generator.integers(0, 11, 9).astype(np.int32)
    found, (dx, _) = Sliced()(Tensor(x), Tensor(weight), Tensor(labels))
    wanted = oracle.cross_entropy(x.astype(np.float64), weight.astype(np.float64), labels, IGNORED, 0.0)
    np.testing.assert_allclose(found.asnumpy(), wanted, rtol=1e-5)
    shares = oracle.softmax(x.astype(np.float64) @ weight.T.astype(np.float64))
    np.testing.assert_allclose(dx.asnumpy(), shares @ weight - weight[labels], rtol=0, atol=1e-5)


class One(nn.Cell):
    def __init__(self, operation) -> None:
        super().__init__()
        self.operation = operation

    def construct(self, *arguments):
        return self.operation(*arguments)


@pytest.mark.parametrize(
    ("name", "shapes", "message"),
    [
        ("linear", [(3, 4), (5, 6)], r"weight must have shape \[5, 4\], found \[5, 6\]"),
        ("swiglu", [(3, 4), (3, 5)], r"up must have shape \[3, 4\], found \[3, 5\]"),
        ("rotate", [(1, 3, 2, 5), (1, 3, 1, 5), (1, 3, 1, 5)], r"x has heads of 5; their width must be even"),
    ],
)
def test_shapes_that_do_not_fit_are_named(name: str, shapes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        One(operations()[name])(*(Tensor(np.ones(shape, np.float32)) for shape in shapes))


def test_types_that_are_not_served_are_named() -> None:
    with pytest.raises(TypeError, match="weight must be Float32, found Float16"):
        One(layers.linear)(Tensor(np.ones((3, 4), np.float32)), Tensor(np.ones((5, 4), np.float16)))
