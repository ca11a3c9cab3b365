"""Checkpoints written beside the training, by a thread, without a copy of the model.

Arrays change in place, but only in the last moments of a step: its forward and backward pass just read them. So a save
reads them beside the next step, whose update waits until all bytes are with the operating system (`wait_until_read`).
What takes long (synchronising with the disk, renaming, removing old checkpoints) goes on beside the steps that follow.
Where the system's page cache has no room for it all, the reading, and with it the update, waits for the disk.

Of several processes each writes what it owns. Threads do not talk to other processes, so the checkpoint is put in its
place by the first `wait` for which all have written: the loop calls it as soon as that is so.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from codellama_ckpt import CheckpointError, GlobalSlice, LazyTensor, abandon, finalize, save_sharded
from numpy.typing import NDArray

from codellama_app.ranks import Ranks


@dataclass
class _Save:
    """One that has begun; `fault` is why this process could not write its part."""

    path: Path
    token: str
    after: Callable[[], object] | None
    fault: str | None = None


class BackgroundSaver:
    """Saves one checkpoint at a time; `save` waits for the one before it. All ranks make the same calls.

    Attributes:
        last: the newest checkpoint that is whole on the disk.
        failure: why the newest attempt failed; None where it did not.
        waited: seconds that training stood still for the newest save, so far.
    """

    def __init__(self, last: Path | None = None, ranks: Ranks | None = None) -> None:
        self.last = last
        self.failure: str | None = None
        self.waited = 0.0
        self._ranks = ranks or Ranks()
        self._job = self._ranks.token()  # tells the saves of this process from those of an earlier one that was killed
        self._saves = 0
        self._thread: threading.Thread | None = None
        self._read = threading.Event()  # whether all arrays were read that are being saved
        self._read.set()
        self._current: _Save | None = None

    def save(
        self,
        path: Path,
        tree: Mapping[str, LazyTensor],
        *,
        metadata: Mapping[str, str],
        state: Mapping[str, object],
        slices: Mapping[str, GlobalSlice] | None = None,
        after: Callable[[], object] | None = None,
    ) -> None:
        """Starts a save. A failure is reported on stderr and kept in `failure`.

        Args:
            path: of the checkpoint; a checkpoint that is there stays.
            tree: as the following ones, what `codellama_ckpt.save_sharded` takes: this process's part. Its arrays are
                asked for at once. Until `wait_until_read` has returned, they must not change; scalars may.
            metadata: text.
            state: as JSON takes it.
            slices: where this process holds parts.
            after: called by rank 0 once the checkpoint is whole; removes old ones.
        """
        self.wait()
        start = time.perf_counter()
        (there,) = self._ranks.any(path.exists())
        if there:
            self.last = path
            return
        self._saves += 1
        current = self._current = _Save(path, f"{self._job}-{self._saves}", after)
        self._read = read = threading.Event()
        arrays = _reading(tree, read)

        def work() -> None:
            try:
                path.parent.mkdir(exist_ok=True)
                save_sharded(
                    arrays,
                    path,
                    metadata=metadata,
                    state=state if self._ranks.first else {},  # seconds differ
                    slices=slices,
                    writer=self._ranks.rank,
                    writers=self._ranks.size,
                    token=current.token,
                )
            except (CheckpointError, OSError) as error:
                current.fault = str(error)
            finally:
                read.set()
            if self._ranks.size == 1:
                self._conclude(current, [] if current.fault is None else [0])

        self._thread = threading.Thread(target=work, name="save checkpoint")
        self._thread.start()
        self.waited = time.perf_counter() - start

    def wait_until_read(self) -> None:
        """Returns when the arrays that are being saved may change; at once where none are. Any thread may call it."""
        if not self._read.is_set():
            start = time.perf_counter()
            self._read.wait()
            self.waited += time.perf_counter() - start

    @property
    def writing(self) -> bool:
        """Whether this process is still writing."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Returns when nothing is being saved any more, on no rank."""
        self.join()
        current, self._current = self._current, None
        if current is None or self._ranks.size == 1:
            return
        faulty = self._ranks.which(current.fault is not None)
        if self._ranks.first and not faulty:
            try:
                finalize(current.path, self._ranks.size, token=current.token)
            except (CheckpointError, OSError) as error:
                current.fault = str(error)
        elif self._ranks.first:
            abandon(current.path, token=current.token)
        self._conclude(current, faulty or self._ranks.which(current.fault is not None))

    def join(self) -> None:
        """Returns when this process writes nothing any more, whatever the others do."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _conclude(self, current: _Save, faulty: list[int]) -> None:
        """Takes note of a save that has ended; `faulty` are the ranks that could not do their part."""
        if not faulty:
            self.last, self.failure = current.path, None
            if current.after is not None and self._ranks.first:
                try:
                    current.after()
                except (CheckpointError, OSError) as error:
                    print(f"\nWARNING: old checkpoints stay: {error}", file=sys.stderr, flush=True)
            return
        self.failure = current.fault or f"rank {faulty[0]} could not write its part; its log says why"
        kept = f"the last good checkpoint is {self.last}" if self.last else "there is no checkpoint yet"
        print(f"\nWARNING: checkpoint NOT SAVED: {self.failure}; training goes on, {kept}", file=sys.stderr, flush=True)


def _reading(tree: Mapping[str, LazyTensor], all_read: threading.Event) -> dict[str, LazyTensor]:
    """`tree`, which sets `all_read` when its last array is asked for; that one, not written by then, is a copy."""
    left = len(tree)

    def reading(value: LazyTensor) -> LazyTensor:
        # Now, and by the thread that trains: another one might have to wait for the graph that waits for it.
        array = np.asarray(value.load())
        if not array.ndim:
            array = array.copy()  # the count of the updates: a graph may add to it before it has the gradients

        def load() -> NDArray[Any]:
            nonlocal left
            left -= 1
            if left:
                return array
            last = array.copy()
            all_read.set()
            return last

        return value._replace(load=load)

    return {name: reading(value) for name, value in tree.items()}
