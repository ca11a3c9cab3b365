"""Rows to MindRecord files, written by child processes.

MindSpore's `FileWriter` ends its whole process with a segmentation fault when the disk is full; in a child that becomes
an ordinary error. Partitions hold consecutive rows (reading OUT0, OUT1, ... one after the other gives the rows in their
order) and are written in parallel. MindSpore itself spreads rows over the parts of one writer partly at random, so each
part gets a writer of its own, and `header.seal` links them afterwards.

Memory of a child: MindSpore itself (about 400 MB), a block of rows, and 1.4 KB for each row while the index is written.
"""

from __future__ import annotations

import importlib
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codellama_data.errors import DataError
from codellama_data.header import HEADER_BYTES, seal
from codellama_data.output import MEBIBYTE, check_space, partition_paths
from codellama_data.pool import OrderedPool
from codellama_data.spool import Spool

_SPARE_BYTES = 8 * MEBIBYTE  # the row index, its `.db`, and the file system's own needs
_EMPTY_TALK = ("Exception thrown from", "Dataset Pipeline Error", "C++ Call Stack", "(For framework", "Framework Error")
_BYTES_PER_VALUE = {np.uint16: 2.25, np.int32: 4.25}  # the group-varint code of MindRecord, at most
_BLOCK_INTEGERS = 1 << 20  # integers per write: large enough for speed, 4 MiB of memory


@dataclass(frozen=True)
class Part:
    """What one child writes: rows `start` to `stop` of a spool file into `path`."""

    path: str
    spool: str
    columns: tuple[str, ...]
    row_length: int
    dtype: str
    start: int
    stop: int


class _PartWriter:
    """Writes one partition; runs in a child process, the only place where MindSpore is imported for writing."""

    def __init__(self) -> None:
        importlib.import_module("mindspore.mindrecord")  # takes seconds, so it begins before there is anything to write

    def __call__(self, part: Part) -> int:
        from mindspore.mindrecord import FileWriter  # noqa: PLC0415 (no other process needs it)
        from mindspore.mindrecord.common.exceptions import MindRecordException  # noqa: PLC0415

        width = len(part.columns) * part.row_length
        block_rows = max(1, _BLOCK_INTEGERS // width)
        try:
            writer = FileWriter(part.path, shard_num=1, overwrite=True)
            schema = {column: {"type": "int32", "shape": [-1]} for column in part.columns}
            writer.add_schema(schema, "written by codellama-data")
            for start in range(part.start, part.stop, block_rows):
                stop = min(part.stop, start + block_rows)
                # Read, not mapped: mapped pages would count as this process's memory, a whole corpus of them.
                offset = start * width * np.dtype(part.dtype).itemsize
                values = np.fromfile(part.spool, part.dtype, (stop - start) * width, offset=offset)
                block = values.astype(np.int32).reshape(-1, len(part.columns), part.row_length)
                writer.write_raw_data([dict(zip(part.columns, row, strict=True)) for row in block])
            writer.commit()
        except (RuntimeError, OSError, MindRecordException) as error:
            what = f"MindRecord could not be written ({first_line(error)})"
            raise DataError(f"{part.path}: {what}, check the name and the space on the device") from None
        return part.stop - part.start


def writer_pool(num_workers: int) -> OrderedPool[Part, int]:
    """The processes that write; enter it early, since each loads MindSpore first."""
    return OrderedPool[Part, int](_PartWriter, (), num_workers, separate=True)


def write_partitions(
    spool: Spool, folder: Path, output: Path, file_partition: int, pool: OrderedPool[Part, int]
) -> list[Path]:
    """Write the complete rows of a spool as MindRecord partitions into `folder`, under the names they will keep.

    Args:
        spool: the rows; what follows the last complete row is left out.
        folder: where the files are written, with the base names of `output`.
        output: the final output, OUT.
        file_partition: how many files share the rows; sizes differ by at most one row.
        pool: of `writer_pool`.

    Returns:
        The final path of each partition (nothing is there yet: `output.publish` moves them).

    Raises:
        DataError: fewer rows than partitions, not enough space, or MindSpore failed.
    """
    rows = spool.rows()
    destinations = partition_paths(output, file_partition)
    if rows < file_partition:
        raise DataError(f"{output}: {rows} rows are not enough for file_partition {file_partition}")
    values = rows * len(spool.columns) * spool.row_length
    overhead = file_partition * (HEADER_BYTES + _SPARE_BYTES)
    check_space(folder, overhead + math.ceil(values * _BYTES_PER_VALUE[spool.dtype]))
    bounds = [rows * index // file_partition for index in range(file_partition + 1)]
    source = (str(spool.path), spool.columns, spool.row_length, np.dtype(spool.dtype).name)
    parts = [
        Part(str(folder / path.name), *source, *span)
        for path, span in zip(destinations, itertools.pairwise(bounds), strict=True)
    ]
    for _ in pool.map(iter(parts)):
        pass
    for index, path in enumerate(destinations):
        seal(folder / path.name, index, [one.name for one in destinations])
    return destinations


def first_line(error: BaseException) -> str:
    """The first line of an exception that says something; MindSpore's have dozens, with rulers and headings between."""
    lines = [line.strip(" -#=") for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(_EMPTY_TALK)]
    return telling[0] if telling else type(error).__name__


def check_space_for_header(folder: Path) -> None:
    """Refuse to begin where not even an empty MindRecord file fits."""
    check_space(folder, HEADER_BYTES + _SPARE_BYTES)
