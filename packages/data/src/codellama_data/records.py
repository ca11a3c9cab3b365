"""Records out of JSON and Parquet files, streamed: a JSON array or JSON lines of any size in constant memory.

A record is a JSON object with the place it stands at, so that every complaint about it can name the place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from codellama_data.errors import DataError

JsonValue = None | bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"]
JsonObject = dict[str, JsonValue]

_BLOCK_CHARACTERS = 1 << 20
_LONGEST_RECORD = 1 << 28  # characters; a broken array must not be read into memory whole before it is refused
_INCOMPLETE_TAIL = 16  # a literal, number or escape that the end of a block cut in two fails this close to the end
_WHITE = " \t\n\r"


class Record(NamedTuple):
    """One object, where it stands (for messages), and the bytes of the file that it stands for (for progress)."""

    value: JsonObject
    place: str
    source_bytes: float


def read_records(path: Path) -> Iterator[Record]:
    """Stream the objects of a file: a JSON array, or one object a line in `*.jsonl`.

    Raises:
        DataError: malformed JSON (with line and column), not UTF-8, not objects, or empty.
    """
    lines = path.suffix.lower() == ".jsonl"
    count = 0
    try:
        with path.open(encoding="utf-8", newline="" if lines else None) as stream:
            for record in _json_lines(stream, path) if lines else _json_array(stream, path):
                count += 1
                yield record
    except OSError as error:
        raise DataError(f"{path}: can not be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason}), expected JSON") from None
    if not count:
        raise DataError(f"{path}: holds no records, expected JSON objects")


def read_parquet(path: Path, column: str) -> Iterator[tuple[int, str, float]]:
    """Stream one text column of a Parquet file as (row, text, bytes of the file it stands for).

    Raises:
        DataError: pyarrow is missing, or the file is not Parquet or has no such text column.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415 (an optional dependency)
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError:
        raise DataError(f"{path}: reading Parquet needs pyarrow, install codellama-data[parquet]") from None
    try:
        file = pq.ParquetFile(path)
        if column not in file.schema_arrow.names:
            raise DataError(
                f"{path}: has no column {column!r}, only {', '.join(file.schema_arrow.names)}; give --text_field"
            )
        share = path.stat().st_size / max(1, file.metadata.num_rows)
        row = 0
        for batch in file.iter_batches(batch_size=1024, columns=[column]):
            for text in batch.column(0).to_pylist():
                if not isinstance(text, str):
                    raise DataError(f"{path}: row {row}: {column!r} is {type(text).__name__}, expected text")
                yield row, text, share
                row += 1
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None


def _json_lines(stream: TextIO, path: Path) -> Iterator[Record]:
    for number, line in enumerate(stream, start=1):
        if not line.strip(_WHITE):
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: malformed JSON at line {number}, column {error.colno}: {error.msg}") from None
        except RecursionError:
            raise DataError(f"{path}: JSON nested too deeply at line {number}") from None
        place = f"{path}:{number}"
        if not isinstance(value, dict):
            raise DataError(f"{place}: expected a JSON object, found {type(value).__name__}")
        yield Record(value, place, len(line))


class _Window:
    """A sliding piece of a text, which knows the line and column of each of its characters."""

    def __init__(self, stream: TextIO, path: Path) -> None:
        self._stream, self._path = stream, path
        self.text, self.ended = "", False
        self._line, self._column = 1, 1

    def more(self) -> bool:
        """Append the next block; False at the end of the file."""
        block = self._stream.read(_BLOCK_CHARACTERS)
        self.ended = not block
        self.text += block
        return not self.ended

    def cut(self, position: int) -> None:
        """Forget what is before `position`."""
        self._line, self._column = self._place(position)
        self.text = self.text[position:]

    def _place(self, position: int) -> tuple[int, int]:
        breaks = self.text.count("\n", 0, position)
        if not breaks:
            return self._line, self._column + position
        return self._line + breaks, position - self.text.rfind("\n", 0, position)

    def error(self, position: int, message: str) -> DataError:
        line, column = self._place(position)
        return DataError(f"{self._path}: malformed JSON at line {line}, column {column}: {message}")

    def skip_white(self, position: int) -> int:
        """The next position that is not white space; reads on as needed. At the end of the file: the length."""
        while True:
            while position < len(self.text) and self.text[position] in _WHITE:
                position += 1
            if position < len(self.text) or not self.more():
                return position


def _json_array(stream: TextIO, path: Path) -> Iterator[Record]:
    window, decoder, index = _Window(stream, path), json.JSONDecoder(), 0
    at = window.skip_white(0)
    if at == len(window.text):
        raise DataError(f"{path}: empty, expected a JSON array")
    if window.text[at] != "[":
        raise window.error(at, "expected a JSON array (name the file *.jsonl if it has one object a line)")
    at = window.skip_white(at + 1)
    while window.text[at : at + 1] != "]" or index:
        value, end = _next_value(window, decoder, at)
        place = f"{path}: sample {index}"
        if not isinstance(value, dict):
            raise DataError(f"{place}: expected a JSON object, found {type(value).__name__}")
        yield Record(value, place, end - at)
        index += 1
        at = window.skip_white(end)
        mark = window.text[at : at + 1]
        if mark == "]":
            break
        if mark != ",":
            raise window.error(at, "expected ',' or ']'")
        at = window.skip_white(at + 1)
        if at > _BLOCK_CHARACTERS // 2:
            window.cut(at)
            at = 0
    at = window.skip_white(at + 1)
    if at < len(window.text):
        raise window.error(at, "extra data behind the array")


def _next_value(window: _Window, decoder: json.JSONDecoder, at: int) -> tuple[object, int]:
    while True:
        try:
            value, end = decoder.raw_decode(window.text, at)
            return value, end
        except json.JSONDecodeError as error:
            incomplete = error.pos >= len(window.text) - _INCOMPLETE_TAIL or error.msg.startswith("Unterminated string")
            if incomplete and len(window.text) - at < _LONGEST_RECORD and window.more():
                continue
            raise window.error(min(error.pos, len(window.text)), error.msg) from None
        except RecursionError:
            raise window.error(at, "nested too deeply") from None
