"""One `preprocess` run: checks, tasks through the workers into spools, a journal to resume from, files at the end.

What the three dataset types share. They differ in their tasks (`code.py`, `wiki.py`, `qa.py`) and in what they do with
a result.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Generic, TypedDict, TypeVar

import numpy as np
from tqdm import tqdm

from codellama_data.errors import DataError
from codellama_data.output import (
    MEBIBYTE,
    WorkFolder,
    check_name,
    check_output,
    check_space,
    database_path,
    partition_paths,
    publish,
    write_text,
)
from codellama_data.pool import OrderedPool, available_cpus
from codellama_data.spool import Spool
from codellama_data.summary import Part
from codellama_data.writing import write_partitions

Item = TypeVar("Item")
Result = TypeVar("Result")

_JOURNAL_SECONDS = 2.0  # between two journal entries: what a killed run has to do again at most
_CHUNK_BYTES = 1 << 18  # of source text in one task: a fraction of a second of work, so workers stay evenly loaded
_CHUNK_ITEMS = 256
_DIGEST_BYTES = 16
_MOST_PARTITIONS = 1000
_USUAL_TERMINAL = (80, 24)
_LEAST_BYTES = 8 * MEBIBYTE  # where not even this is free there is no use in beginning


class RunArguments(TypedDict, total=False):
    """How a run of `preprocess` is carried out: keyword arguments that all dataset types share.

    Nothing here changes the rows, except which shard of the documents is taken. All may be left out.

    Attributes:
        num_workers: processes; by default every available processor.
        file_partition: 1 writes OUT; above that OUT0..OUTN-1, which hold consecutive rows.
        overwrite: replace existing outputs.
        resume: go on from what an interrupted run with the same input and options left; without such a run, start from
            the beginning.
        progress: show a progress bar on stderr; True by default.
        shard_id: which part of the documents to take, from 0 to `num_shards` - 1.
        num_shards: parts, one for each machine; together they are complete and nothing is in two.
    """

    num_workers: int | None
    file_partition: int
    overwrite: bool
    resume: bool
    progress: bool
    shard_id: int
    num_shards: int


@dataclass(frozen=True)
class RunOptions:
    """`RunArguments`, complete and checked."""

    num_workers: int | None = None
    file_partition: int = 1
    overwrite: bool = False
    resume: bool = False
    progress: bool = True
    shard_id: int = 0
    num_shards: int = 1

    def __post_init__(self) -> None:
        if self.num_workers is not None and self.num_workers < 1:
            raise DataError(f"num_workers must be at least 1, found {self.num_workers}")
        if not 1 <= self.file_partition <= _MOST_PARTITIONS:
            raise DataError(f"file_partition must be from 1 to {_MOST_PARTITIONS}, found {self.file_partition}")
        if self.num_shards < 1 or not 0 <= self.shard_id < self.num_shards:
            raise DataError(f"shard_id must be in 0..num_shards - 1, found {self.shard_id} of {self.num_shards}")

    def takes(self, number: int) -> bool:
        """Whether a document with this number (or hash) belongs to the shard."""
        return number % self.num_shards == self.shard_id


@dataclass(frozen=True)
class Chunk(Generic[Item]):
    """One task: a few documents, and how many bytes of the input they stand for."""

    items: list[Item]
    source_bytes: float


@dataclass
class Counts:
    """Counters of a run; they are in the journal, so that a resumed run ends with those of an uninterrupted one."""

    numbers: dict[str, int] = field(default_factory=dict)
    names: list[tuple[str, str]] = field(default_factory=list)

    def add(self, key: str, amount: int = 1) -> None:
        """Count."""
        self.numbers[key] = self.numbers.get(key, 0) + amount

    def __getitem__(self, key: str) -> int:
        return self.numbers.get(key, 0)


class Job:
    """The outputs of one run, as a context manager.

    Args:
        outputs: the MindRecord files to write. The first is the one that `file_partition` divides; its work folder
            holds the journal.
        columns, row_length, dtype: of every row, see `Spool`.
        options: how to run.
        inputs: everything else that the rows depend on; resuming with other ones, by their `repr`, is refused.

    Attributes:
        spools: one for each output; append to them.
        seconds: since the run began.
        counts: counters.
        digests: hashes of the documents seen, see `is_new`.
    """

    def __init__(
        self,
        outputs: list[Path],
        columns: tuple[str, ...],
        row_length: int,
        dtype: type[np.int16] | type[np.int32],
        options: RunOptions,
        inputs: tuple[object, ...],
    ) -> None:
        self._begun = time.monotonic()
        if row_length < 2:
            raise DataError(f"seq_length must be at least 1, found {row_length - 1}")
        self._partitions = [options.file_partition, *(1 for _ in outputs[1:])]
        self._destinations = list(map(partition_paths, outputs, self._partitions))
        everything = [path for paths in self._destinations for path in paths]
        if len({path.absolute() for path in everything}) < len(everything):
            raise DataError(f"{outputs[-1]}: both outputs have this name, give the evaluation rows another one")
        for output in outputs:
            check_name(output)
        check_output([one for path in everything for one in (path, database_path(path))], options.overwrite)
        self.outputs, self.options = outputs, options
        self._columns, self._row_length, self._dtype = columns, row_length, dtype
        self._fingerprint = repr((*inputs, options.shard_id, options.num_shards))
        self._num_workers = available_cpus() if options.num_workers is None else options.num_workers
        self.counts = Counts()
        self._digests: set[bytes] = set()
        self._new_digests: list[bytes] = []
        self._tasks_done = 0
        self._journaled = time.monotonic()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Job:
        with contextlib.ExitStack() as stack:
            self._folders = [
                stack.enter_context(WorkFolder(output, self.options.resume)).path for output in self.outputs
            ]
            for folder in self._folders:
                check_space(folder, _LEAST_BYTES)
            lengths = self._read_journal()
            self.spools = [
                stack.enter_context(Spool(folder / "rows", self._columns, self._row_length, self._dtype, length))
                for folder, length in zip(self._folders, lengths, strict=True)
            ]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, at)

    @property
    def seconds(self) -> float:
        """Wall-clock time since the run began."""
        return time.monotonic() - self._begun

    def is_new(self, digest: bytes) -> bool:
        """Whether a document was not seen before; remembers it."""
        short = digest[:_DIGEST_BYTES]
        if short in self._digests:
            return False
        self._digests.add(short)
        self._new_digests.append(short)
        return True

    def run(
        self,
        tasks: Iterable[Chunk[Item]],
        make: Callable[..., Callable[[list[Item]], Result]],
        arguments: tuple[object, ...],
        consume: Callable[[Result], None],
        source_bytes: float,
    ) -> None:
        """Send every task through the workers and hand the results to `consume`, in order.

        Args:
            tasks: the same ones in the same order for the same input, or resuming would not work.
            make: what a worker does with the items of a task, see `OrderedPool`.
            arguments: of `make`.
            consume: appends rows to the spools and counts under "documents" and "tokens".
            source_bytes: of all tasks, for the time left.
        """
        sizes: deque[float] = deque()
        stream = iter(tasks)
        skipped = sum(chunk.source_bytes for chunk in itertools.islice(stream, self._tasks_done))

        def give() -> Iterator[list[Item]]:
            for chunk in stream:
                sizes.append(chunk.source_bytes)
                yield chunk.items

        pool = OrderedPool[list[Item], Result](make, arguments, self._num_workers)
        begun, total, (width, height) = time.monotonic(), max(1, round(source_bytes)), _bar_size()
        documents, tokens = self.counts["documents"], self.counts["tokens"]
        with (
            tqdm(
                total=total,
                initial=round(skipped),
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
                disable=not self.options.progress,
                ncols=width,
                nrows=height,
                dynamic_ncols=width is None,
            ) as bar,
            pool,
        ):
            for result in pool.map(give()):
                consume(result)
                self._tasks_done += 1
                seconds = max(time.monotonic() - begun, 1e-9)
                bar.set_postfix_str(
                    f"{(self.counts['documents'] - documents) / seconds:,.0f} documents/s, "
                    f"{(self.counts['tokens'] - tokens) / seconds:,.0f} tokens/s",
                    refresh=False,
                )
                bar.update(round(sizes.popleft()))
                if time.monotonic() - self._journaled > _JOURNAL_SECONDS:
                    self._write_journal()
            bar.update(total - bar.n)  # what cleaning took away is done, too

    def finish(self) -> list[Part]:
        """Write the MindRecord files and move them into place, all or none.

        Raises:
            DataError: an output would hold no row, the space does not suffice, or writing failed.
        """
        parts = []
        targets = zip(self.outputs, self._partitions, self._folders, self.spools, strict=True)
        for index, (output, file_partition, folder, spool) in enumerate(targets):
            values, rows = spool.flush(), spool.rows()
            documents = self.counts["documents" if index == 0 else "eval_documents"]
            if not documents and self.counts.names:
                name, reason = self.counts.names[0]
                raise DataError(f"{output}: no document is left ({name}: {reason})")
            if not rows:
                remedy = "use more data or a smaller seq_length" + (" or a larger eval_share" if index else "")
                raise DataError(
                    f"{output}: {values:,} tokens from {documents:,} documents fill no row of "
                    f"seq_length + 1 = {self._row_length}; {remedy}"
                )
            paths = write_partitions(spool, folder, output, file_partition)
            tokens = rows * self._row_length
            rest = values - tokens * len(self._columns)
            parts.append(Part(tuple(map(str, paths)), rows, tokens, documents, rest))
        for folder, paths in zip(reversed(self._folders), reversed(self._destinations), strict=True):
            publish(folder, paths)
        return parts

    def _write_journal(self) -> None:
        lengths = [spool.sync() for spool in self.spools]
        folder = self._folders[0]
        try:
            with (folder / "digests").open("ab") as stream:
                stream.truncate(_DIGEST_BYTES * (len(self._digests) - len(self._new_digests)))
                stream.write(b"".join(self._new_digests))
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise DataError(f"{folder}: the journal can not be written ({error.strerror})") from error
        self._new_digests = []
        entry = {
            "fingerprint": self._fingerprint,
            "tasks_done": self._tasks_done,
            "lengths": lengths,
            "digests": len(self._digests),
            "numbers": self.counts.numbers,
            "names": self.counts.names,
        }
        write_text(folder / "journal.json", json.dumps(entry))
        self._journaled = time.monotonic()

    def _read_journal(self) -> list[int]:
        """Take up what an interrupted run left; returns how much of each spool is valid."""
        folder = self._folders[0]
        journal = folder / "journal.json"
        if not self.options.resume or not journal.exists():
            return [0 for _ in self.outputs]
        try:
            entry = json.loads(journal.read_text(encoding="utf-8"))
            if entry["fingerprint"] != self._fingerprint:
                raise DataError(
                    f"{self.outputs[0]}: the interrupted run had another input or other options, "
                    "repeat them or start anew without --resume"
                )
            lengths = [int(length) for length in entry["lengths"]]
            raw = (folder / "digests").read_bytes()[: entry["digests"] * _DIGEST_BYTES]
            self._digests = {raw[at : at + _DIGEST_BYTES] for at in range(0, len(raw), _DIGEST_BYTES)}
            self._tasks_done = entry["tasks_done"]
            self.counts = Counts(entry["numbers"], [(name, reason) for name, reason in entry["names"]])
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(f"{journal}: damaged, start anew without --resume") from None
        if len(self._digests) != entry["digests"]:
            raise DataError(f"{journal}: damaged, start anew without --resume")
        return lengths


def _bar_size() -> tuple[int, int] | tuple[None, None]:
    """(None, None) has tqdm ask the terminal. Some pseudo-terminals answer 0, and a bar of that size shows nothing."""
    try:
        unknown = os.get_terminal_size(2).columns == 0
    except OSError:  # stderr is no terminal
        unknown = False
    return _USUAL_TERMINAL if unknown else (None, None)


def chunked(
    items: Iterable[tuple[Item, float]], chunk_bytes: int = _CHUNK_BYTES, chunk_items: int = _CHUNK_ITEMS
) -> Iterator[Chunk[Item]]:
    """Group (item, bytes of input it stands for) into tasks of moderate size."""
    chunk: list[Item] = []
    size = 0.0
    for item, item_bytes in items:
        chunk.append(item)
        size += item_bytes
        if size >= chunk_bytes or len(chunk) >= chunk_items:
            yield Chunk(chunk, size)
            chunk, size = [], 0.0
    if chunk:
        yield Chunk(chunk, size)
