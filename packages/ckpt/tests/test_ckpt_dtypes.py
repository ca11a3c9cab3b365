"""bfloat16: exact up, nearest-even down."""

from __future__ import annotations

import numpy as np
import pytest
from codellama_ckpt import CheckpointError, from_bfloat16, to_bfloat16
from hypothesis import given
from hypothesis import strategies as st


def test_every_bfloat16_survives_the_way_through_float32() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    values = from_bfloat16(bits)
    assert values.dtype == np.float32
    assert values.shape == bits.shape
    back = to_bfloat16(values)
    number = ~np.isnan(values)
    assert np.array_equal(back[number], bits[number])
    # A NaN stays a NaN of its sign and payload, made quiet.
    assert np.array_equal(back[~number], bits[~number] | 0x40)


@given(st.floats(width=32, allow_nan=False))
def test_rounding_is_to_the_nearest_with_ties_to_even(value: float) -> None:
    number = np.array([value], np.float32)
    rounded = int(to_bfloat16(number)[0])
    low = int(number.view(np.uint32)[0]) >> 16  # the bfloat16 towards zero; the next one is low + 1
    if np.isinf(value):
        assert rounded == low
        return
    below, above = (float(x) for x in from_bfloat16(np.array([low, low + 1], np.uint16)))
    if np.isinf(above):
        above = float(np.copysign(2.0**128, below))  # where infinity would be, were the exponent range longer
    distance_below, distance_above = abs(value - below), abs(above - value)
    if distance_below < distance_above:
        assert rounded == low
    elif distance_above < distance_below:
        assert rounded == low + 1
    else:
        assert rounded == low + (low & 1)


def test_known_values() -> None:
    values = np.array([1.0, -2.5, 3.1415927, 3.4e38, np.inf, -np.inf, 0.0, -0.0], np.float32)
    assert [f"{bits:04x}" for bits in to_bfloat16(values)] == [
        "3f80", "c020", "4049", "7f80", "7f80", "ff80", "0000", "8000",
    ]  # fmt: skip


def test_ties_go_to_the_even_neighbour() -> None:
    halfway = np.array([0x3F808000, 0x3F818000, 0xBF808000, 0xBF818000, 0x7F7F8000], np.uint32).view(np.float32)
    assert [f"{bits:04x}" for bits in to_bfloat16(halfway)] == ["3f80", "3f82", "bf80", "bf82", "7f80"]


def test_other_types_are_refused() -> None:
    with pytest.raises(CheckpointError, match="float64"):
        to_bfloat16(np.zeros(3))
    with pytest.raises(CheckpointError, match="int16"):
        from_bfloat16(np.zeros(3, np.int16))
