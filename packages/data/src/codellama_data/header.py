"""The header of a MindRecord file: reading and writing it, and checksums that MindRecord lacks.

The file begins with 8 bytes of length (little-endian) and that many bytes of JSON; its pages follow at `header_size`.
Plain Python: looking at a file needs no MindSpore.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

from codellama_data.errors import DataError
from codellama_data.output import MEBIBYTE, database_path

HEADER_BYTES = 16 * MEBIBYTE  # reserved at the start of every file, as MindSpore does
_CHECKSUMS = "codellama_data_crc32"  # our key in the header, which MindSpore passes over
_CHUNK = 4 * MEBIBYTE
_LENGTH_BYTES = 8
_TYPE = "int32"  # of every column


@dataclass(frozen=True)
class Header:
    """What the header says.

    Attributes:
        content: the JSON object.
        names: base names of the file and its partitions, in the order of their rows, as they were written.
        rows: rows in this file.
        columns: names of its columns, in the order in which a row holds them.
        data_start: where the pages begin, in bytes.
        page_bytes: from the start of one page to the next.
        size: bytes of the whole file.
        checksums: of the pages and of the `.db`; None in a file that others wrote.
    """

    content: dict[str, object]
    names: tuple[str, ...]
    rows: int
    columns: tuple[str, ...]
    data_start: int
    page_bytes: int
    size: int
    checksums: tuple[int, int] | None

    @classmethod
    def of_new_file(
        cls,
        names: tuple[str, ...],
        index: int,
        columns: tuple[str, ...],
        page_bytes: int,
        pages: list[dict[str, object]],
    ) -> Header:
        """The header of the file `names[index]`; opening any one of the partitions finds all of `names`."""
        schema = {column: {"type": _TYPE, "shape": [-1]} for column in columns}
        content = {
            "version": "3.0",
            "header_size": HEADER_BYTES,
            "page_size": page_bytes,
            "compression_size": 0,
            "shard_addresses": list(names),
            "shard_id": index,
            "schema": [{"desc": "written by codellama-data", "blob_fields": list(columns), "schema": schema}],
            "index_fields": None,
            "statistics": None,
            "page": pages,
        }
        return _parse(content)


def read_header(path: Path) -> Header:
    """Read the header of one file.

    Raises:
        DataError: the file is missing, not a MindRecord file, or was renamed.
    """
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            text = stream.read(length) if 2 <= length <= HEADER_BYTES else b""
    except OSError as error:
        raise DataError(f"{path}: can not be opened ({error.strerror})") from error
    try:
        header = _parse(json.loads(text))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, AssertionError):
        raise DataError(f"{path}: not a MindRecord file, or damaged at its start") from None
    if path.name not in header.names:
        names = " or ".join(header.names)
        raise DataError(f"{path}: was renamed, a MindRecord file only opens under its own name, {names}")
    return header


def _parse(content: dict[str, object]) -> Header:
    pages, schema, names = content["page"], content["schema"], content["shard_addresses"]
    header_size, page_size = content["header_size"], content["page_size"]
    assert isinstance(pages, list)
    assert isinstance(schema, list)
    assert isinstance(names, list)
    assert isinstance(header_size, int)
    assert isinstance(page_size, int)
    checksums = content.get(_CHECKSUMS)
    for column, kind in schema[0]["schema"].items():
        if kind["type"] != _TYPE or "shape" not in kind:
            raise DataError(f"column {column} holds {kind['type']}, expected vectors of {_TYPE}")
    return Header(
        content,
        tuple(Path(name).name for name in names),
        max((page["end_row_id"] for page in pages if page["page_type"] == "BLOB_DATA"), default=0),
        tuple(schema[0]["blob_fields"]),
        header_size,
        page_size,
        max((header_size + page["page_id"] * page_size + page["page_size"] for page in pages), default=header_size),
        (checksums[0], checksums[1]) if isinstance(checksums, list) else None,
    )


def write_header(path: Path, header: Header) -> None:
    """Finish a file whose pages and `.db` are written: note their checksums, and put the header in front.

    Raises:
        DataError: there are more pages than a header can list.
        OSError: writing failed.
    """
    text = json.dumps({**header.content, _CHECKSUMS: _checksums(path, header)}, separators=(",", ":")).encode()
    if len(text) + _LENGTH_BYTES > HEADER_BYTES:
        raise DataError(f"{path}: too many partitions and pages for one header, use another file_partition")
    with path.open("r+b") as stream:
        stream.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)


def verify(path: Path, header: Header) -> None:
    """Compare a file and its `.db` with their checksums, where there are any; reads both whole.

    MindSpore does not notice bytes that changed inside a row: it hands out wrong ids, or ends the process.

    Raises:
        DataError: they differ; the message names the file.
    """
    if header.checksums is None:
        return
    for one, found, expected in zip(
        (path, database_path(path)), _checksums(path, header), header.checksums, strict=True
    ):
        if found != expected:
            raise DataError(f"{one}: damaged, its checksum is not the one that it was written with")


def _checksums(path: Path, header: Header) -> tuple[int, int]:
    return _crc32(path, header.data_start), _crc32(database_path(path), 0)


def _crc32(path: Path, start: int) -> int:
    value = 0
    try:
        with path.open("rb") as stream:
            stream.seek(start)
            while chunk := stream.read(_CHUNK):
                value = zlib.crc32(chunk, value)
    except OSError as error:
        raise DataError(f"{path}: can not be read ({error.strerror})") from error
    return value
