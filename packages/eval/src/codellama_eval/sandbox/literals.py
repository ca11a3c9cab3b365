"""Plain values as JSON, for the border between a program that nobody has read and its tests. Only builtins come out.

JSON's own types stand for themselves; every other value is an object with one key, its kind. `pack` runs beside the
program and may be lied to; whatever arrives, `unpack` makes values of builtin types (and Decimal, Fraction) of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from itertools import islice
from typing import Any

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
_EXACT_INTEGERS = 1 << 63  # longer ones go as hexadecimal text, whose reading takes linear time
_ITEMS = 1_000_000  # of an iterator


class LiteralError(ValueError):
    """A value that can not cross, or a message that holds none."""


def dumps(value: object) -> bytes:
    """A value as one line of JSON.

    Raises:
        LiteralError: it is not made of plain values.
    """
    try:
        return json.dumps(_pack(value)).encode()
    except RecursionError:
        raise LiteralError("a value that is nested too deeply") from None


def loads(line: bytes) -> Any:
    """The value of one line.

    Raises:
        LiteralError: the line is not what `dumps` writes.
    """
    try:
        return _unpack(json.loads(line))
    except LiteralError:
        raise
    except (ValueError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
        raise LiteralError(f"no literal: {type(error).__name__}") from None


def _pack(value: object) -> Json:
    if value is None or type(value) in (bool, str, float):
        return value  # type: ignore[return-value]
    if isinstance(value, bool):
        return bool(value)
    if isinstance(value, int):
        number = int(value)
        return number if -_EXACT_INTEGERS < number < _EXACT_INTEGERS else {"int": hex(number)}
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return "".join(value)
    if isinstance(value, list):
        return [_pack(item) for item in value]
    for kind, types in (("tuple", tuple), ("set", set), ("frozenset", frozenset)):
        if isinstance(value, types):
            return {kind: [_pack(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[_pack(key), _pack(item)] for key, item in value.items()]}
    if isinstance(value, bytes | bytearray):
        return {"bytes" if isinstance(value, bytes) else "bytearray": bytes(value).hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, range):
        return {"range": [_pack(value.start), _pack(value.stop), _pack(value.step)]}
    if isinstance(value, Decimal):
        return {"Decimal": str(value)}
    if isinstance(value, Fraction):
        return {"Fraction": [_pack(value.numerator), _pack(value.denominator)]}
    if isinstance(value, Iterator):
        items = list(islice(value, _ITEMS + 1))
        if len(items) <= _ITEMS:
            return {"iterator": [_pack(item) for item in items]}
    if hasattr(type(value), "dtype") and hasattr(value, "item") and getattr(value, "shape", None) == ():
        return _pack(value.item())  # a NumPy number
    raise LiteralError(f"a value of type {str(type(value).__name__)[:80]}, which is no literal")


_MAKERS: Mapping[str, Callable[[Any], Any]] = {
    "int": lambda payload: int(payload, 16),
    "tuple": lambda payload: tuple(map(_unpack, payload)),
    "set": lambda payload: set(map(_unpack, payload)),
    "frozenset": lambda payload: frozenset(map(_unpack, payload)),
    "dict": lambda payload: {_unpack(key): _unpack(item) for key, item in payload},
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": lambda payload: complex(*payload),
    "range": lambda payload: range(*map(_unpack, payload)),
    "Decimal": Decimal,
    "Fraction": lambda payload: Fraction(*map(_unpack, payload)),
    "iterator": lambda payload: iter([_unpack(item) for item in payload]),
}


def _unpack(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpack(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise LiteralError("no literal: an object of several keys")
    ((kind, payload),) = value.items()
    if kind not in _MAKERS:
        raise LiteralError("no literal: an unknown kind")
    return _MAKERS[kind](payload)
