"""The training operators on NumPy arrays, as the engine would call them."""

from __future__ import annotations

import numpy as np
from kernels_call import call
from numpy.typing import NDArray

Array = NDArray[np.float32]


def made(function: str, inputs: list[NDArray], shapes: list[tuple[int, ...]]) -> list[Array]:
    """The operator's outputs, of these shapes."""
    outputs = [np.full(shape, np.nan, np.float32) for shape in shapes]
    assert call(function, *inputs, *outputs) == 0
    return outputs


def scalar(value: float) -> Array:
    return np.array([value], np.float32)


def linear(x: Array, weight: Array) -> Array:
    return made("codellama_linear", [x, weight], [(len(x), len(weight))])[0]


def linear_backward(x: Array, weight: Array, dy: Array) -> list[Array]:
    dx = made("codellama_linear_dx", [dy, weight], [x.shape])
    return dx + made("codellama_linear_dw", [dy, x], [weight.shape])


def rms_norm(x: Array, weight: Array, eps: float) -> list[Array]:
    return made("codellama_rms_norm", [x, weight, scalar(eps)], [x.shape, (len(x),)])


def rms_norm_backward(x: Array, weight: Array, rstd: Array, dy: Array) -> list[Array]:
    return made("codellama_rms_norm_backward", [x, weight, rstd, dy], [x.shape, weight.shape])


def swiglu(gate: Array, up: Array) -> Array:
    return made("codellama_swiglu", [gate, up], [gate.shape])[0]


def swiglu_backward(gate: Array, up: Array, dy: Array) -> list[Array]:
    return made("codellama_swiglu_backward", [gate, up, dy], [gate.shape, gate.shape])


def rotate(x: Array, cos: Array, sin: Array, back: bool = False) -> Array:
    return made("codellama_rotate_backward" if back else "codellama_rotate", [x, cos, sin], [x.shape])[0]


def attention(query: Array, key: Array, value: Array, first_key: NDArray[np.int32], scale: float) -> list[Array]:
    batch, length, heads, width = query.shape
    shapes = [(batch * length, heads * width), (batch, heads, length)]
    return made("codellama_attention", [query, key, value, first_key, scalar(scale)], shapes)


def attention_backward(query, key, value, first_key, scale, out, lse, dout) -> list[Array]:
    inputs = [query, key, value, first_key, scalar(scale), out, lse, dout]
    return made("codellama_attention_backward", inputs, [query.shape, key.shape, value.shape])


def cross_entropy(x, weight, labels, ignore_index: int, z_loss: float = 0.0, gradient: bool = True) -> list[Array]:
    """[loss, tokens] and, with `gradient`, dx and d_weight."""
    inputs = [x, weight, labels, np.array([ignore_index], np.int32), scalar(z_loss)]
    return made("codellama_linear_cross_entropy", inputs, [(1,), (1,)] + [x.shape, weight.shape] * gradient)


def vocabulary_slice(x: Array, weight: Array, labels: NDArray[np.int32]) -> list[Array]:
    return made("codellama_vocabulary_slice", [x, weight, labels], [labels.shape] * 3)


def vocabulary_slice_backward(x, weight, labels, largest, total, d_lse, d_logit) -> list[Array]:
    inputs = [x, weight, labels, largest, total, d_lse, d_logit]
    return made("codellama_vocabulary_slice_backward", inputs, [x.shape, weight.shape])


def adamw(parameter, first, second, gradient, rate, scale, step, constants) -> None:
    """Changes the first three in place."""
    inputs = [parameter, first, second, gradient, scalar(rate), scalar(scale), scalar(step)]
    assert made("codellama_adamw", [*inputs, np.array(constants, np.float32)], [(1,)])[0] == step


def squared_norm(gradient: Array) -> Array:
    return made("codellama_squared_norm", [gradient], [(1,)])[0]
