"""The wire format of Protocol Buffers: as much of it as MindSpore's checkpoint and strategy files need.

A message is a run of fields; each begins with a varint of its number and its wire type. Source:
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeAlias

VARINT = 0
FIXED64 = 1
BYTES = 2
FIXED32 = 5
_LONGEST_VARINT = 10  # bytes

Read: TypeAlias = Callable[[int, int], bytes]


class WireError(ValueError):
    """The bytes are no Protocol Buffers message."""


class Field(NamedTuple):
    """One field: its `number`; its `value` (of a varint), or where its content is (of bytes), from `start` to `end`."""

    number: int
    kind: int
    value: int
    start: int
    end: int


def fields(read: Read, start: int, end: int) -> Iterator[Field]:
    """The fields of the message from `start` to `end`, whose contents are not read.

    Args:
        read: (offset, length) -> the bytes there, fewer where the file ends.
        start: offset of the message's first byte.
        end: offset behind its last.

    Raises:
        WireError: a field reaches beyond the end, or is of no known kind.
    """
    while start < end:
        head = read(start, min(2 * _LONGEST_VARINT, end - start))
        tag, used = _varint(head, 0)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, used = _varint(head, used)
            start += used
            yield Field(number, kind, value, start, start)
            continue
        if kind == BYTES:
            length, used = _varint(head, used)
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
        else:
            raise WireError(f"a field of wire type {kind}")
        first = start + used
        if not number or length > end - first:
            raise WireError(f"field {number} of {length:,} bytes reaches beyond its message")
        start = first + length
        yield Field(number, kind, 0, first, start)


def fields_of(message: bytes) -> Iterator[Field]:
    """The fields of a message in memory."""
    return fields(lambda offset, length: message[offset : offset + length], 0, len(message))


def varints(message: bytes, number: int) -> list[int]:
    """The values of a repeated field of whole numbers, packed or not, as signed 64-bit integers."""
    values = []
    for field in fields_of(message):
        if field.number != number:
            continue
        if field.kind == VARINT:
            values.append(_signed(field.value))
        elif field.kind == BYTES:
            content, at = message[field.start : field.end], 0
            while at < len(content):
                value, at = _varint(content, at)
                values.append(_signed(value))
        else:
            raise WireError(f"field {number} holds no whole numbers")
    return values


def parts(message: bytes, number: int) -> list[bytes]:
    """The contents of a repeated field of bytes, text or messages."""
    return [message[f.start : f.end] for f in fields_of(message) if f.number == number and f.kind == BYTES]


def encode_varint(value: int) -> bytes:
    """A whole number; a negative one as its 64-bit two's complement."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_numbers(number: int, values: Iterable[int]) -> bytes:
    """A repeated field of whole numbers, not packed: proto2's way, which MindSpore uses."""
    tag = encode_varint(number << 3 | VARINT)
    return b"".join(tag + encode_varint(value) for value in values)


def encode_bytes(number: int, content: bytes) -> bytes:
    """A field of bytes, text or a message."""
    return encode_head(number, len(content)) + content


def encode_head(number: int, length: int) -> bytes:
    """What stands before the content of a field of bytes."""
    return encode_varint(number << 3 | BYTES) + encode_varint(length)


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """The number that begins at `at`, and the index behind it."""
    value = 0
    for count in range(_LONGEST_VARINT):
        if at + count >= len(content):
            raise WireError("it ends within a number")
        byte = content[at + count]
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return value & (1 << 64) - 1, at + count + 1
    raise WireError("a number of more than 64 bits")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
