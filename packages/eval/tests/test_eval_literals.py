"""Values that cross between a program and its tests: the same on the other side, of builtin types, whatever arrives."""

from __future__ import annotations

import collections
import enum
import json
import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from codellama_eval.sandbox.literals import LiteralError, dumps, loads
from hypothesis import given, settings
from hypothesis import strategies as st

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.fractions()
    | st.complex_numbers(allow_nan=False) | st.decimals(allow_nan=False)
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.sets(SCALARS)
        | st.frozensets(SCALARS)
        | st.dictionaries(SCALARS, inner)
    ),
    max_leaves=20,
)


def types_of(value: object) -> object:
    if isinstance(value, list | tuple):
        return [type(value), *map(types_of, value)]
    if isinstance(value, dict):
        return [type(value), *map(types_of, value.values())]
    return type(value)


@settings(max_examples=60)
@given(VALUES)
def test_values_come_through_equal_and_of_the_same_types(value: Any) -> None:
    again = loads(dumps(value))
    assert again == value
    assert types_of(again) == types_of(value)


def test_what_equality_does_not_show() -> None:
    assert math.isnan(loads(dumps(math.nan)))
    assert math.copysign(1, loads(dumps(-0.0))) == -1
    assert loads(dumps(1 << 100_000)) == 1 << 100_000
    assert loads(dumps("\ud800")) == "\ud800"
    assert loads(dumps(range(1, 10, 2))) == range(1, 10, 2)
    assert list(loads(dumps(iter([1, 2])))) == [1, 2]
    assert list(loads(dumps(map(str, [1, 2])))) == ["1", "2"]


class Color(enum.IntEnum):
    RED = 1


class Lie(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


class Text(str):
    __slots__ = ()


def test_subclasses_become_builtins() -> None:
    point = collections.namedtuple("point", "x y")
    values = [Color.RED, Lie(3), Text("a"), collections.OrderedDict(a=1), collections.Counter("aab"), point(1, 2)]
    plain = [1, 3, "a", {"a": 1}, {"a": 2, "b": 1}, (1, 2)]
    for value, expected in zip(values, plain, strict=True):
        again = loads(dumps(value))
        assert again == expected
        assert type(again) is type(expected)


@pytest.mark.parametrize("value", [object(), lambda: 1, int, [object()], {1: object()}, math, NotImplemented])
def test_other_values_do_not_cross(value: object) -> None:
    with pytest.raises(LiteralError):
        dumps(value)


def test_a_value_in_itself_does_not_cross() -> None:
    value: list[object] = []
    value.append(value)
    with pytest.raises(LiteralError):
        dumps(value)


HOSTILE = [b"", b"{", b"\xff", b"[" * 100_000, b'{"unknown": 1}', b'{"set": [[1]]}', b'{"dict": [1]}', b'{"int": "zz"}',
           b'{"int": 5}', b'{"set": 5}', b'{"range": [1, 2, 3, 4]}', b'{"range": [1, 2, 0]}', b'{"a": 1, "b": 2}',
           b'{"Fraction": [1, 0]}', b'{"Decimal": "x"}', b'{"complex": "a"}', b'{"bytes": "0"}', b"9" * 5000,
           b'{"dict": [[{"dict": []}, 1]]}', b'{"tuple": null}']  # fmt: skip


@pytest.mark.parametrize("line", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_messages_are_errors(line: bytes) -> None:
    with pytest.raises(LiteralError):
        loads(line)


@settings(max_examples=60)
@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_any_json_is_a_literal_or_an_error(value: object) -> None:
    try:
        result = loads(json.dumps(value).encode())
    except LiteralError:
        return
    assert type(result).__module__ in ("builtins", "decimal", "fractions")


def test_exact_types_of_numbers() -> None:
    assert loads(dumps(Decimal("2.50"))).as_tuple() == Decimal("2.50").as_tuple()
    assert type(loads(dumps(Fraction(1, 2)))) is Fraction
    assert type(loads(dumps(True))) is bool
    assert type(loads(dumps(1.0))) is float
