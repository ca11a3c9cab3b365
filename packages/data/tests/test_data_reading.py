"""Batches: every row once an epoch, the same for the same seed, resumable anywhere, and damage is named."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from codellama_data import Batches, DataError, batches, batching, open_rows, readahead, reading
from codellama_data.reading import StoredBatch
from codellama_data.spool import Spool
from codellama_data.writing import write_partitions

ROWS, LENGTH, BATCH = 23, 9, 4
GOLDEN = [[7, 8, 4, 19], [11, 21, 3, 5]]  # the first two batches of seed 5


def write(
    output: Path,
    rows: int = ROWS,
    length: int = LENGTH,
    parts: int = 1,
    columns: tuple[str, ...] = ("input_ids",),
    width: type[np.int16] | type[np.int32] = np.int32,
    step: int = 1000,
) -> Path:
    """A MindRecord file whose row r holds r * step, r * step + 1, ..."""
    spool_path = output.with_name(f"{output.name}.spool")
    with Spool(spool_path, columns, length, width) as spool:
        values = np.arange(rows, dtype=np.int32)[:, None, None] * step + np.arange(length, dtype=np.int32)
        spool.append(np.repeat(values, len(columns), axis=1).reshape(-1))
        write_partitions(spool, output.parent, output, parts)
    spool_path.unlink()
    return output


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("rows") / "x.mindrecord")


@pytest.fixture(scope="module")
def partitions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("rows") / "p.mindrecord", parts=3)


def numbers(iterator: Batches, steps: int) -> list[list[int]]:
    return [(next(iterator)["input_ids"][:, 0] // 1000).tolist() for _ in range(steps)]


def flat(lists: Iterable[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(lists))


def test_shape_type_and_contents(file: Path) -> None:
    rows = open_rows(file)
    assert (len(rows), rows.num_rows, rows.row_length, rows.seq_length) == (ROWS, ROWS, LENGTH, LENGTH - 1)
    assert rows.columns == ("input_ids",)
    batch = next(batches(file, BATCH, seed=0))
    assert batch["input_ids"].dtype == np.int32
    assert batch["input_ids"].shape == (BATCH, LENGTH)
    assert (batch["input_ids"] % 1000 == np.arange(LENGTH)).all()


def test_every_row_once_an_epoch_in_another_order_each_time(file: Path) -> None:
    iterator = batches(file, BATCH, seed=5, drop_remainder=False)
    assert iterator.steps_per_epoch == 6
    epochs = [flat(numbers(iterator, 6)) for _ in range(3)]
    assert all(sorted(epoch) == list(range(ROWS)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
    assert numbers(batches(file, BATCH, seed=5, drop_remainder=False), 6) == [
        epochs[0][at : at + BATCH] for at in range(0, ROWS, BATCH)
    ]
    assert numbers(batches(file, BATCH, seed=6), 5) != numbers(batches(file, BATCH, seed=5), 5)


def test_the_permutation_never_changes(file: Path) -> None:
    # A golden: training that goes on under a newer version must see the rows in the same order.
    assert numbers(batches(file, BATCH, seed=5), 2) == GOLDEN


@pytest.mark.parametrize("drop", [True, False])
def test_start_step_goes_on_exactly_there_without_reading_what_came_before(file: Path, drop: bool) -> None:
    iterator = batches(file, BATCH, seed=1, drop_remainder=drop)
    everything = numbers(iterator, 14)
    assert iterator.step == 14
    for start in range(14):
        resumed = batches(file, BATCH, seed=1, start_step=start, drop_remainder=drop)
        assert numbers(resumed, 3)[: 14 - start] == everything[start : start + 3]


def test_skipped_steps_are_not_read(file: Path) -> None:
    rows = open_rows(file)
    asked: list[int] = []
    read = rows.read_stored

    def noted(numbers: npt.NDArray[np.int64]) -> StoredBatch:
        asked.extend(numbers.tolist())
        return read(numbers)

    rows.read_stored = noted  # type: ignore[method-assign]
    next(batches(rows, BATCH, seed=1, start_step=4))
    assert len(asked) == BATCH  # the last whole batch of the epoch; nothing before it


def test_without_shuffle_the_order_is_that_of_the_file_and_epochs_end(file: Path) -> None:
    iterator = batches(file, BATCH, seed=0, shuffle=False, epochs=2)
    found = [(batch["input_ids"][:, 0] // 1000).tolist() for batch in iterator]
    assert found == [list(range(at, at + BATCH)) for at in range(0, 20, BATCH)] * 2


def test_ranks_together_see_what_one_rank_with_the_larger_batch_sees(file: Path) -> None:
    one = numbers(batches(file, 6, seed=2), 7)
    ranks = [numbers(batches(file, 2, seed=2, shard_id=rank, num_shards=3), 7) for rank in range(3)]
    assert [flat(parts) for parts in zip(*ranks, strict=True)] == one


def test_partitions_are_found_by_their_common_name_any_one_of_them_a_glob_or_the_folder(partitions: Path) -> None:
    for source in (partitions, f"{partitions}0", f"{partitions}2", f"{partitions}*", partitions.parent):
        rows = open_rows(source)
        assert len(rows) == ROWS
        assert [int(row["input_ids"][0]) // 1000 for row in rows] == list(range(ROWS))
    assert len(open_rows([f"{partitions}1"])) in (7, 8)


def test_several_columns(tmp_path: Path) -> None:
    batch = next(batches(write(tmp_path / "x", columns=("input_ids", "labels")), 2, seed=0))
    assert list(batch) == ["input_ids", "labels"]
    assert (batch["input_ids"] == batch["labels"]).all()


def test_impossible_requests(file: Path) -> None:
    for options, message in (
        ({"batch_size": 0}, "batch_size must be above 0"),
        ({"batch_size": 24}, "23 rows make no batch of 24"),
        ({"batch_size": 2, "start_step": -1}, "start_step"),
        ({"batch_size": 2, "shard_id": 2, "num_shards": 2}, "shard_id"),
        ({"batch_size": 2, "num_shards": 2, "drop_remainder": False}, "one shard only"),
    ):
        with pytest.raises(DataError, match=message):
            batches(file, seed=0, **options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="row 23 does not exist"):
        list(open_rows(file).stream([23]))


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none: no such MindRecord file"):
        open_rows(tmp_path / "none")
    with pytest.raises(DataError, match=r"holds no \*\.mindrecord file"):
        open_rows(tmp_path)
    (tmp_path / "text").write_text("not a MindRecord file")
    with pytest.raises(DataError, match="text: not a MindRecord file"):
        open_rows(tmp_path / "text")
    path = write(tmp_path / "x.mindrecord")
    database = path.with_name("x.mindrecord.db")
    whole, index = path.read_bytes(), database.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(DataError, match=r"x\.mindrecord: damaged, \d+ bytes long where its header promises"):
        open_rows(path)
    path.write_bytes(whole)
    database.write_bytes(index[:100])
    with pytest.raises(DataError, match=r"x\.mindrecord\.db: damaged"):
        open_rows(path)
    database.unlink()
    with pytest.raises(DataError, match=r"x\.mindrecord\.db: missing"):
        open_rows(path)
    database.write_bytes(index)
    database.rename(tmp_path / "y.mindrecord.db")
    path.rename(tmp_path / "y.mindrecord")
    with pytest.raises(DataError, match=r"y\.mindrecord: was renamed.*x\.mindrecord"):
        open_rows(tmp_path / "y.mindrecord")


def test_bytes_changed_inside_a_row_are_found(tmp_path: Path) -> None:
    path = write(tmp_path / "x.mindrecord", parts=2).with_name("x.mindrecord1")
    assert len(list(open_rows(path))) == len(list(open_rows(path))) == ROWS  # reading changes nothing
    raw = bytearray(path.read_bytes())
    raw[-20] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"x\.mindrecord1: damaged, its checksum"):
        open_rows(tmp_path / "x.mindrecord")
    assert len(open_rows(tmp_path / "x.mindrecord", verify=False)) == ROWS


def test_partitions_left_over_from_an_earlier_run_do_not_mix_in(tmp_path: Path) -> None:
    path = write(tmp_path / "p.mindrecord", parts=3)
    write(path, parts=2)
    assert len(open_rows(path)) == ROWS
    with pytest.raises(DataError, match=r"p\.mindrecord2: is left over from another run"):
        open_rows(tmp_path)


def test_a_missing_partition_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "p.mindrecord", parts=2)
    (tmp_path / "p.mindrecord1").unlink()
    with pytest.raises(DataError, match=r"p\.mindrecord1: can not be opened"):
        open_rows(path)


@pytest.mark.parametrize("place", ["size", "count"])
def test_a_row_with_other_lengths_is_an_error_even_without_checksums(tmp_path: Path, place: str) -> None:
    path = write(tmp_path / "x.mindrecord")
    raw = bytearray(path.read_bytes())
    row_bytes = 8 + 4 + (LENGTH + 3) // 4 + 4 * LENGTH
    last = len(raw) - row_bytes
    raw[last + {"size": 0, "count": 11}[place]] ^= 1
    path.write_bytes(raw)
    rows = open_rows(path, verify=False)
    assert (rows.read(range(ROWS - 1))["input_ids"][:, 0] == 1000 * np.arange(ROWS - 1)).all()
    with pytest.raises(DataError, match=r"x\.mindrecord: damaged, row 22 can not be read"):
        rows.read([0, ROWS - 1])


def test_a_file_that_becomes_shorter_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "x.mindrecord")
    rows = open_rows(path)
    assert rows.read([0])["input_ids"][0, 0] == 0
    os.truncate(path, 1000)
    with pytest.raises(DataError, match=r"x\.mindrecord: damaged, it became shorter while it was read"):
        rows.read([1])


def test_rows_of_several_files_in_any_order(partitions: Path) -> None:
    rows = open_rows(partitions)
    for order in (list(range(ROWS)), list(range(3, 7)), [0, 8, 16], [1, 9, 17, 2], [5], [5, 5]):  # 0, 8 begin files
        assert (rows.read(order)["input_ids"][:, 0] // 1000).tolist() == order
    for order in ([], [-1], [0, ROWS]):
        with pytest.raises(DataError, match=r"no row asked for|does not exist"):
            rows.read(order)


def test_each_row_of_a_batch_is_found_in_its_file(partitions: Path) -> None:
    iterator = batches(partitions, BATCH, seed=5, shard_id=1, num_shards=2, start_step=1)
    for step in (1, 2, 3):  # the last one is of the second epoch
        numbers = (next(iterator)["input_ids"][:, 0] // 1000).tolist()
        places = iterator.places(step)
        found = [int(open_rows([file]).read([row])["input_ids"][0, 0]) // 1000 for file, row in places]
        assert found == numbers
    with pytest.raises(DataError, match="row 23 does not exist"):
        iterator.rows.place(ROWS)


@pytest.mark.parametrize("width", [np.int16, np.int32])
def test_a_batch_is_its_owners_to_change(tmp_path: Path, width: type[np.int16] | type[np.int32]) -> None:
    iterator = batches(write(tmp_path / "x", width=width, step=10), BATCH, seed=1)
    first, second = next(iterator)["input_ids"], next(iterator)["input_ids"]
    kept = second.copy()
    first += 1
    assert (second == kept).all()
    assert not np.isin(first[:, 0], second[:, 0] + 1).any()
    again = batches(tmp_path / "x", BATCH, seed=1)
    assert (next(again)["input_ids"] + 1 == first).all()


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("start", [0, 30])
def test_rows_are_announced_before_they_are_read_and_all_of_them_where_memory_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shuffle: bool, fits: bool, start: int
) -> None:
    monkeypatch.setattr(readahead, "_ROWS_AHEAD", 8)
    monkeypatch.setattr(readahead, "_ROWS_AHEAD_IN_ORDER", 8)
    monkeypatch.setattr(readahead, "_PACE", 3)
    monkeypatch.setattr(batching, "_ROWS_AT_ONCE", 8)
    monkeypatch.setattr(readahead, "free_memory", lambda: 1 << 30 if fits else 1000)
    count = 200
    rows = open_rows(write(tmp_path / "x", rows=count))
    announced: list[int] = []
    prefetch = rows.prefetch

    def noted(indices: Sequence[int]) -> None:
        announced.extend(np.asarray(indices).tolist())
        prefetch(indices)

    rows.prefetch = noted  # type: ignore[assignment,method-assign]
    most = 0
    for step, batch in enumerate(batches(rows, 2, seed=3, shuffle=shuffle, start_step=start, epochs=1), start=start):
        delivered = (batch["input_ids"][:, 0] // 1000).tolist()
        assert set(delivered) <= set(announced)
        most = max(most, len(announced) - 2 * (step + 1 - start))
    asked = set(announced)
    if fits and shuffle:
        assert asked == set(range(count))  # also those that this run does not deliver
    else:
        assert len(announced) == len(asked) == count - 2 * start
        assert most <= 3 * 8  # never further ahead than two windows behind the rows that are read together


def test_free_memory_is_what_the_machine_and_the_container_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, container = tmp_path / "meminfo", tmp_path / "memory.max"
    monkeypatch.setattr(readahead, "_MEMORY", machine)
    monkeypatch.setattr(readahead, "_CONTAINER_LIMIT", container)
    assert readahead.free_memory() == 0
    machine.write_text("MemTotal:  9000 kB\nMemAvailable:   5000 kB\nHugePages_Total:   0\n")
    assert readahead.free_memory() == 5000 * 1024
    container.write_text("max\n")
    assert readahead.free_memory() == 5000 * 1024
    container.write_text("1000000\n")
    assert readahead.free_memory() == 1_000_000


def test_more_files_than_a_process_may_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_OPEN_FILES", 2)
    rows = open_rows(write(tmp_path / "x.mindrecord", parts=5))
    before = len(list(Path("/proc/self/fd").iterdir()))
    order = [*range(ROWS), *reversed(range(ROWS))]
    assert (rows.read(order)["input_ids"][:, 0] // 1000).tolist() == order
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
    del rows
    assert len(list(Path("/proc/self/fd").iterdir())) < before


FLOOR = 10_000_000  # tokens a second of CPU, far above what training consumes; measured: 300 to 1000 million


def test_reading_is_faster_than_any_training_and_its_memory_does_not_grow_with_the_file(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    script = (
        "import re, sys, time\n"
        "from pathlib import Path\n"
        "from codellama_data import batches\n"
        "def memory():\n"  # of this process alone; what is mapped belongs to the system
        "    return int(re.search(r'RssAnon:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "iterator = batches(sys.argv[1], 8, seed=0)\n"
        "next(iterator)\n"
        "before, seconds, tokens, most = memory(), 0, 0, 0\n"
        "for step in range(int(sys.argv[2]) // 8 - 1):\n"
        "    begun = time.process_time()\n"
        "    tokens += next(iterator)['input_ids'].size\n"
        "    seconds += time.process_time() - begun\n"
        "    if step % 50 == 0: most = max(most, memory())\n"
        "print(tokens / seconds, most - before)\n"
    )
    rows, length = 8000, 2049
    path = write(tmp_path / "x.mindrecord", rows=rows, length=length)
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), str(rows)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    speed, growth = map(float, done.stdout.split())
    assert speed > FLOOR
    # 66 MB of ids; the rows read together, the permutation and the allocator's slack stay below a quarter of that.
    assert growth * 1024 < rows * length * 4 / 4
