"""How MindRecord stores int32 vectors, and a form of it that is read back without decoding.

A row is its length in bytes (8, little-endian), then its columns; where there are several, each has its own length in
front (8, big-endian). A column is the number of its elements (4 bytes, big-endian), two bits for each element that say
how wide it is (1, 2, 4 or 8 bytes; four elements a byte, the first one in the highest bits), and the elements
(little-endian, signed).

MindSpore's writer takes the narrowest width for each element. Ours takes one width for all: rows are a quarter larger
then, every row has the same size, and its elements lie there as an array. MindSpore reads both.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

_WIDTH_CODES = {2: 0b01010101, 4: 0b10101010}  # four elements of this many bytes
_CODE_SHIFTS = np.array([6, 4, 2, 0], dtype=np.uint8)
_LENGTH_BYTES, _COUNT_BYTES = 8, 4


@dataclass(frozen=True)
class RowLayout:
    """Rows whose elements all have one width.

    Args:
        columns: names, in the order of the file.
        row_length: L, elements of each column.
        width: bytes of an element, 2 or 4.
    """

    columns: tuple[str, ...]
    row_length: int
    width: int

    @cached_property
    def element(self) -> np.dtype[np.signedinteger[Any]]:
        """One element."""
        return np.dtype(f"<i{self.width}")

    @cached_property
    def dtype(self) -> np.dtype[np.void]:
        """One row: the bytes in front of each column (`0`, `1`, ...), which never change, and its elements, by name."""
        fields: list[tuple[str, object]] = []
        for number, (column, prefix) in enumerate(zip(self.columns, self._prefixes, strict=True)):
            fields += [(f"{number}", f"V{len(prefix)}"), (column, (self.element, (self.row_length,)))]
        return np.dtype(fields)

    @cached_property
    def _prefixes(self) -> list[bytes]:
        codes = bytes([_WIDTH_CODES[self.width]]) * _code_bytes(self.row_length)
        vector = self.row_length.to_bytes(_COUNT_BYTES, "big") + codes
        size = len(vector) + self.row_length * self.width
        if len(self.columns) > 1:
            vector = size.to_bytes(_LENGTH_BYTES, "big") + vector
            size += _LENGTH_BYTES
        return [
            (len(self.columns) * size).to_bytes(_LENGTH_BYTES, "little") + vector,
            *[vector] * (len(self.columns) - 1),
        ]

    @cached_property
    def places(self) -> list[tuple[str, int, bytes, int]]:
        """For each column its name, where in a row its lengths are, what they are, and where its elements are."""
        fields = self.dtype.fields
        assert fields is not None
        return [
            (column, fields[f"{number}"][1], prefix[: -_code_bytes(self.row_length)], fields[column][1])
            for number, (column, prefix) in enumerate(zip(self.columns, self._prefixes, strict=True))
        ]

    def encode(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.void]:
        """Rows [n] of `dtype` from values [n, columns, L], which must fit the width."""
        rows = np.empty(len(values), self.dtype)
        for number, (column, prefix) in enumerate(zip(self.columns, self._prefixes, strict=True)):
            rows[f"{number}"] = np.void(prefix)
            rows[column] = values[:, number]
        return rows

    def fits(self, rows: npt.NDArray[np.void]) -> bool:
        """Whether bytes that were read as rows of `dtype` are such rows: what never changes is what it must be."""
        return all((rows[f"{number}"] == np.void(prefix)).all() for number, prefix in enumerate(self._prefixes))


def find_layout(row: bytes, columns: tuple[str, ...]) -> RowLayout | None:
    """The layout that a row has, if all its elements have one width."""
    at = _LENGTH_BYTES if len(columns) == 1 else 2 * _LENGTH_BYTES
    length = int.from_bytes(row[at : at + _COUNT_BYTES], "big")
    for width in _WIDTH_CODES:
        size = len(columns) * (at - _LENGTH_BYTES + _COUNT_BYTES + _code_bytes(length) + length * width) + _LENGTH_BYTES
        if size == len(row):
            layout = RowLayout(columns, length, width)
            return layout if layout.fits(np.frombuffer(row, layout.dtype)) else None
    return None


def decode_row(row: bytes, columns: tuple[str, ...]) -> dict[str, npt.NDArray[np.int32]]:
    """The columns of a row with elements of any widths, as MindSpore writes them.

    Raises:
        ValueError: the bytes are no such row.
    """
    if int.from_bytes(row[:_LENGTH_BYTES], "little") != len(row) - _LENGTH_BYTES:
        raise ValueError("the row has another length than it says")
    if len(columns) == 1:
        return {columns[0]: _decode_vector(row[_LENGTH_BYTES:])}
    at, found = _LENGTH_BYTES, {}
    for column in columns:
        start = at + _LENGTH_BYTES
        at = start + int.from_bytes(row[at:start], "big")
        found[column] = _decode_vector(row[start:at])
    if at != len(row):
        raise ValueError("the columns of the row do not fill it")
    return found


def _decode_vector(vector: bytes) -> npt.NDArray[np.int32]:
    length = int.from_bytes(vector[:_COUNT_BYTES], "big")
    start = _COUNT_BYTES + _code_bytes(length)
    codes = np.frombuffer(vector[_COUNT_BYTES:start], np.uint8)
    widths = 1 << (codes[:, None] >> _CODE_SHIFTS & 3).reshape(-1)[:length]
    ends = np.cumsum(widths, dtype=np.int64)
    if widths.size != length or (ends[-1] if length else 0) != len(vector) - start:
        raise ValueError("the elements of a vector do not fill it")
    # Each element is looked at through a window of 8 bytes that ends with it, and shifted down to its own bytes.
    padded = np.frombuffer(bytes(8) + vector[start:], np.uint8)
    windows: npt.NDArray[np.int64] = np.ndarray((len(padded) - 7,), "<i8", padded, strides=(1,))
    values: npt.NDArray[np.int64] = windows[ends] >> (64 - 8 * widths.astype(np.int64))
    return values.astype(np.int32)


def _code_bytes(length: int) -> int:
    return -(-length // 4)
