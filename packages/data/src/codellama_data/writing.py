"""Rows to MindRecord files, in plain Python: pages, the row index `.db`, the header.

MindSpore's own `FileWriter` is left aside: it ends its process with a segmentation fault when the disk is full, keeps
1.4 KB in memory for each row, spreads rows over partitions partly at random, and takes seconds to load. Files written
here are read by MindSpore like its own (the tests do).

A file is a header, then pages of one size: RAW pages for columns of single numbers, of which there are none here (every
row has the same few bytes there), and BLOB pages for vectors. The index says where each row is.
"""

from __future__ import annotations

import itertools
import sqlite3
from pathlib import Path
from typing import BinaryIO

import numpy as np

from codellama_data.errors import DataError
from codellama_data.header import HEADER_BYTES, Header, write_header
from codellama_data.integers import RowLayout
from codellama_data.output import MEBIBYTE, check_space, database_path, partition_paths
from codellama_data.spool import Spool

_RAW_ROW = (5).to_bytes(8, "little") + b"\x81\xa2id\x00"  # the MessagePack {"id": 0}: which schema, and no columns
_SMALLEST_PAGE, _USUAL_PAGE, _LARGEST_PAGE = 1 << 15, 1 << 25, 1 << 28  # MindSpore's limits and its default
_INDEX_BYTES_PER_ROW = 64  # measured: 44
_BLOCK_BYTES = 4 * MEBIBYTE  # written at once
_TABLES = """
CREATE TABLE INDEXES(
  ROW_ID INT NOT NULL, PAGE_ID_RAW INT NOT NULL, PAGE_OFFSET_RAW INT NOT NULL, PAGE_OFFSET_RAW_END INT NOT NULL,
  ROW_GROUP_ID INT NOT NULL, PAGE_ID_BLOB INT NOT NULL, PAGE_OFFSET_BLOB INT NOT NULL,
  PAGE_OFFSET_BLOB_END INT NOT NULL, PRIMARY KEY(ROW_ID));
CREATE TABLE SHARD_NAME(NAME TEXT NOT NULL);
"""


def write_partitions(spool: Spool, folder: Path, output: Path, file_partition: int) -> list[Path]:
    """Write the complete rows of a spool as MindRecord partitions into `folder`, under the names they will keep.

    Partitions hold consecutive rows: reading OUT0, OUT1, ... one after the other gives the rows in their order.

    Args:
        spool: the rows; what follows the last complete row is left out.
        folder: where the files are written, with the base names of `output`.
        output: the final output, OUT.
        file_partition: how many files share the rows; sizes differ by at most one row.

    Returns:
        The final path of each partition (nothing is there yet: `output.publish` moves them).

    Raises:
        DataError: fewer rows than partitions, a row too long for a page, or no space.
    """
    rows = spool.rows()
    destinations = partition_paths(output, file_partition)
    if rows < file_partition:
        raise DataError(f"{output}: {rows} rows are not enough for file_partition {file_partition}")
    layout = RowLayout(tuple(sorted(spool.columns)), spool.row_length, np.dtype(spool.dtype).itemsize)
    if layout.dtype.itemsize > _LARGEST_PAGE:
        raise DataError(f"{output}: rows of {spool.row_length} ids do not fit in MindRecord, use a smaller seq_length")
    per_row = layout.dtype.itemsize + len(_RAW_ROW) + _INDEX_BYTES_PER_ROW
    check_space(folder, rows * per_row + file_partition * MEBIBYTE)
    names = tuple(path.name for path in destinations)
    bounds = [rows * index // file_partition for index in range(file_partition + 1)]
    for index, (start, stop) in enumerate(itertools.pairwise(bounds)):
        path = folder / names[index]
        try:
            _write_file(path, names, index, spool, layout, start, stop)
        except (OSError, sqlite3.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise DataError(f"{path}: can not be written ({reason}), check the space on the device") from error
    return destinations


def _write_file(
    path: Path, names: tuple[str, ...], index: int, spool: Spool, layout: RowLayout, start: int, stop: int
) -> None:
    rows, row_bytes = stop - start, layout.dtype.itemsize
    wanted = max(row_bytes, min(rows * max(row_bytes, len(_RAW_ROW)), _USUAL_PAGE))
    page_bytes = max(_SMALLEST_PAGE, 1 << (wanted - 1).bit_length())
    raw_rows, blob_rows = page_bytes // len(_RAW_ROW), page_bytes // row_bytes  # of a full page
    raw_pages = -(-rows // raw_rows)
    pages = []
    path.unlink(missing_ok=True)
    with path.open("wb") as stream:
        for page, first in enumerate(range(0, rows, raw_rows)):
            count = min(raw_rows, rows - first)
            stream.seek(HEADER_BYTES + page * page_bytes)
            stream.write(_RAW_ROW * count)
            # A row group is what one BLOB page holds; those that begin here are listed.
            groups = range(-(-first // blob_rows), -(-(first + count) // blob_rows))
            pages.append(_page(index, page, "RAW_DATA", page, (0, 0), count * len(_RAW_ROW)))
            pages[-1]["row_group_ids"] = [
                {"id": group, "offset": (group * blob_rows - first) * len(_RAW_ROW)} for group in groups
            ]
        for page, first in enumerate(range(0, rows, blob_rows)):
            last = min(rows, first + blob_rows)
            stream.seek(HEADER_BYTES + (raw_pages + page) * page_bytes)
            _write_rows(stream, spool, layout, start + first, start + last)
            size = (last - first) * row_bytes
            pages.append(_page(index, raw_pages + page, "BLOB_DATA", page, (first, last), size))
    _write_index(database_path(path), path.name, rows, (raw_rows, blob_rows, raw_pages, row_bytes))
    write_header(path, Header.of_new_file(names, index, layout.columns, page_bytes, pages))


def _write_rows(stream: BinaryIO, spool: Spool, layout: RowLayout, start: int, stop: int) -> None:
    width = len(spool.columns) * spool.row_length
    order = [spool.columns.index(column) for column in layout.columns]
    step = max(1, _BLOCK_BYTES // layout.dtype.itemsize)
    for first in range(start, stop, step):
        count = min(step, stop - first)
        # Read, not mapped: mapped pages would count as this process's memory, a whole corpus of them.
        offset = first * width * np.dtype(spool.dtype).itemsize
        values = np.fromfile(spool.path, spool.dtype, count * width, offset=offset)
        stream.write(layout.encode(values.reshape(count, len(spool.columns), spool.row_length)[:, order]).tobytes())


def _page(
    shard: int, number: int, kind: str, number_of_kind: int, rows: tuple[int, int], size: int
) -> dict[str, object]:
    return {
        "page_id": number,
        "shard_id": shard,
        "page_type": kind,
        "page_type_id": number_of_kind,
        "start_row_id": rows[0],
        "end_row_id": rows[1],
        "row_group_ids": [{"id": 0, "offset": 0}],
        "page_size": size,
    }


def _write_index(path: Path, name: str, rows: int, sizes: tuple[int, int, int, int]) -> None:
    raw_rows, blob_rows, raw_pages, row_bytes = sizes
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        # Until the work folder is complete nobody reads this, so no journal; `publish` waits for the disk.
        connection.executescript(f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; BEGIN; {_TABLES}")
        connection.execute("INSERT INTO SHARD_NAME VALUES(?)", (name,))
        raw = len(_RAW_ROW)
        connection.executemany(
            "INSERT INTO INDEXES VALUES(?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    *(row, row // raw_rows, row % raw_rows * raw, (row % raw_rows + 1) * raw),
                    *(row // blob_rows, raw_pages + row // blob_rows),
                    *(row % blob_rows * row_bytes, (row % blob_rows + 1) * row_bytes),
                )
                for row in range(rows)
            ),
        )
        connection.execute("COMMIT")
    finally:
        connection.close()
