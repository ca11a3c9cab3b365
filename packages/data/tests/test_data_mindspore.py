"""MindSpore is the oracle of the file format: it reads what we write, and we read what it writes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from codellama_data import DataError, open_rows, writing
from codellama_data.integers import RowLayout, decode_row, find_layout
from codellama_data.spool import Spool, integer_type
from codellama_data.writing import write_partitions
from hypothesis import given
from hypothesis import strategies as st

os.environ.setdefault("GLOG_v", "3")
dataset = pytest.importorskip("mindspore.dataset")
mindrecord = pytest.importorskip("mindspore.mindrecord")

INT32 = st.integers(-(1 << 31), (1 << 31) - 1)
EDGES = np.array([0, 1, 127, 128, 255, 256, 32767, 32768, 65536, 2**31 - 1, -1, -100, -128, -129, -32769, -(2**31)])
PAGE_BYTES = 1 << 15  # the smallest one that MindSpore allows


def write(path: Path, values: npt.NDArray[np.int32], columns: tuple[str, ...], parts: int) -> None:
    spool_path = path.with_name("spool")
    dtype = integer_type(int(values.max()) + 1)
    with Spool(spool_path, columns, values.shape[2], dtype) as spool:
        spool.append(values.reshape(-1))
        write_partitions(spool, path.parent, path, parts)
    spool_path.unlink()


@pytest.mark.parametrize("columns", [("input_ids",), ("input_ids", "labels", "document_ids")])
@pytest.mark.parametrize("largest", [32_000, 100_000])
@pytest.mark.parametrize(("rows", "length", "parts"), [(1, 2, 1), (3000, 30, 1), (2999, 65, 3)])
def test_mindspore_reads_our_files(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    columns: tuple[str, ...],
    largest: int,
    rows: int,
    length: int,
    parts: int,
) -> None:
    monkeypatch.setattr(writing, "_USUAL_PAGE", PAGE_BYTES)  # so that there are many pages of both kinds
    generator = np.random.default_rng(0)
    values = generator.integers(-100, largest, (rows, len(columns), length)).astype(np.int32)
    values[0, 0, 0] = largest
    write(tmp_path / "x", values, columns, parts)
    first = tmp_path / ("x" if parts == 1 else "x0")
    found = dataset.MindDataset(str(first), columns_list=list(columns), shuffle=False)
    assert found.get_dataset_size() == rows
    read = [np.stack(row) for row in found.create_tuple_iterator(num_epochs=1, output_numpy=True)]
    assert (np.stack(read) == values).all()
    order = generator.permutation(rows)
    sampler = dataset.SubsetSampler(order.tolist())
    shuffled = dataset.MindDataset(str(first), columns_list=list(columns), sampler=sampler)
    read = [np.stack(row) for row in shuffled.create_tuple_iterator(num_epochs=1, output_numpy=True)]
    assert (np.stack(read) == values[order]).all()
    assert read[0].dtype == np.int32
    ours = open_rows(tmp_path / "x").read(order)
    assert all((ours[column] == values[order, number]).all() for number, column in enumerate(columns))
    if parts == 1:
        reader = mindrecord.FileReader(str(first))
        assert sum(1 for _ in reader.get_next()) == rows
        reader.close()


@pytest.mark.parametrize("columns", [("input_ids",), ("labels", "input_ids")])
def test_we_read_mindspores_files(tmp_path: Path, columns: tuple[str, ...]) -> None:
    writer = mindrecord.FileWriter(str(tmp_path / "x"), 1)
    writer.add_schema({column: {"type": "int32", "shape": [-1]} for column in columns}, "test")
    values = np.random.default_rng(0).choice(EDGES, (50, len(columns), 33)).astype(np.int32)
    values[7] = 300  # one width throughout: not to be mistaken for ours
    writer.write_raw_data([dict(zip(columns, row, strict=True)) for row in values])
    writer.commit()
    rows = open_rows(tmp_path / "x")
    batch = rows.read(range(50))
    assert (len(rows), rows.row_length, set(rows.columns)) == (50, 33, set(columns))
    for number, column in enumerate(columns):
        assert batch[column].dtype == np.int32
        assert (batch[column] == values[:, number]).all()


def test_other_types_are_refused(tmp_path: Path) -> None:
    for name, kind, value in (("f", "float32", np.zeros(2, np.float32)), ("i", "int64", np.zeros(2, np.int64))):
        writer = mindrecord.FileWriter(str(tmp_path / name), 1)
        writer.add_schema({"input_ids": {"type": kind, "shape": [-1]}}, "test")
        writer.write_raw_data([{"input_ids": value}])
        writer.commit()
        with pytest.raises(DataError, match=f"{name}: column input_ids holds {kind}, expected vectors of int32"):
            open_rows(tmp_path / name)


@given(
    values=st.lists(st.lists(INT32, min_size=3, max_size=3), min_size=1, max_size=3),
    width=st.sampled_from([2, 4]),
)
def test_rows_come_back(values: list[list[int]], width: int) -> None:
    columns = ("a", "b", "c")[: len(values)]
    array = np.array(values, dtype=np.int32).astype(f"<i{width}").astype(np.int32)
    layout = RowLayout(columns, 3, width)
    rows = layout.encode(array[None])
    assert layout.fits(rows)
    assert find_layout(rows.tobytes(), columns) == layout
    found = {name: row.tolist() for name, row in decode_row(rows.tobytes(), columns).items()}
    assert found == dict(zip(columns, array.tolist(), strict=True))


@given(raw=st.binary(max_size=60), columns=st.sampled_from([("a",), ("a", "b")]))
def test_any_bytes_are_a_row_or_an_error(raw: bytes, columns: tuple[str, ...]) -> None:
    framed = len(raw).to_bytes(8, "little") + raw
    for row in (raw, framed):
        assert find_layout(row, columns) is None or len(decode_row(row, columns)) == len(columns)
        with contextlib.suppress(ValueError):
            decode_row(row, columns)
