"""How an operator of the library is declared, and the checks of its arguments when a graph is compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mindspore as ms
from mindspore import ops

from codellama_kernels.library import LIBRARY


def declare(
    function: str,
    inputs: Sequence[str],
    shape: Callable[..., Any],
    outputs: Any = ms.float32,
    integers: Sequence[str] = (),
    bprop: Callable[..., Any] | None = None,
) -> ops.Custom:
    """The operator `function` of the library.

    Args:
        function: its name, without the prefix of the library.
        inputs: names of its inputs, for messages.
        shape: shapes of the inputs -> shape or shapes of the outputs; raises ValueError where they do not fit.
        outputs: element type of the outputs, a tuple where there are several.
        integers: the inputs that are int32; all others are float32.
        bprop: (*inputs, out, dout) -> gradients of the inputs.
    """

    def element_type(*found: ms.Type) -> Any:
        for name, one in zip(inputs, found, strict=True):
            wanted = ms.int32 if name in integers else ms.float32
            if one.element_type() != wanted:
                raise TypeError(f"{name} must be {wanted}, found {one.element_type()}")
        return outputs

    return ops.Custom(f"{LIBRARY}:codellama_{function}", shape, element_type, func_type="aot", bprop=bprop)


def sides(name: str, shape: Sequence[int], count: int) -> list[int]:
    """The sides of a shape that must have `count` of them.

    Raises:
        ValueError: it has not.
    """
    if len(shape) != count:
        raise ValueError(f"{name} must have {count} axes, found shape {list(shape)}")
    return list(shape)


def require(name: str, shape: Sequence[int], *expected: Sequence[int]) -> None:
    """Checks that `shape` is one of those expected.

    Raises:
        ValueError: it is not.
    """
    if list(shape) not in [list(one) for one in expected]:
        wanted = " or ".join(str(list(one)) for one in expected)
        raise ValueError(f"{name} must have shape {wanted}, found {list(shape)}")
