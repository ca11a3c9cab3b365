"""Checkpoints written beside the training: it waits while the bytes go to the system, not until they are on the disk.

A parameter changes in place with every step, so its bytes must be out before the next one; a copy of everything in
memory would be a second model. Writing hands them to the operating system's page cache, tensor by tensor, at the speed
of memory. What takes long (synchronising with the disk, renaming, removing old checkpoints) happens in a thread while
training goes on. Where the cache has no room for it all, the system makes the writing wait for the disk.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from codellama_ckpt import CheckpointError, GlobalSlice, LazyTensor, save_sharded
from numpy.typing import NDArray


class BackgroundSaver:
    """Saves one checkpoint at a time; `save` waits for the one before it.

    Attributes:
        last: the newest checkpoint that is whole on the disk.
        failure: why the newest attempt failed; None where it did not.
        waited: seconds that training stood still for the newest save.
    """

    def __init__(self, last: Path | None = None) -> None:
        self.last = last
        self.failure: str | None = None
        self.waited = 0.0
        self._thread: threading.Thread | None = None

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
        """Starts a save; on return, `tree` may change. A failure is reported on stderr and kept in `failure`.

        Args:
            path: of the checkpoint; a checkpoint that is there stays.
            tree: as the following ones, what `codellama_ckpt.save_sharded` takes.
            metadata: text.
            state: as JSON takes it.
            slices: where this process holds parts.
            after: called in the thread once the checkpoint is whole; removes old ones.
        """
        self.wait()
        start = time.perf_counter()
        if path.exists():
            self.last = path
            return
        handed_out = threading.Event()
        counted = _counted(tree, handed_out)

        def work() -> None:
            try:
                path.parent.mkdir(exist_ok=True)
                save_sharded(counted, path, metadata=metadata, state=state, slices=slices)
                self.last, self.failure = path, None
                if after is not None:
                    after()
            except (CheckpointError, OSError) as error:
                self.failure = str(error)
                kept = f"the last good checkpoint is {self.last}" if self.last else "there is no checkpoint yet"
                print(
                    f"\nWARNING: checkpoint NOT SAVED: {error}; training goes on, {kept}", file=sys.stderr, flush=True
                )
            finally:
                handed_out.set()

        self._thread = threading.Thread(target=work, name="save checkpoint")
        self._thread.start()
        handed_out.wait()
        self.waited = time.perf_counter() - start

    def wait(self) -> None:
        """Returns when nothing is being saved any more."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def _counted(tree: Mapping[str, LazyTensor], all_out: threading.Event) -> dict[str, LazyTensor]:
    """`tree`, which sets `all_out` with its last tensor; that one is a copy, as it is not written yet by then."""
    left = len(tree)

    def counting(value: LazyTensor) -> LazyTensor:
        def load() -> NDArray[Any]:
            nonlocal left
            left -= 1
            array = cast(NDArray[Any], value.load())
            if not left:
                array = array.copy()
                all_out.set()
            return array

        return value._replace(load=load)

    return {name: counting(value) for name, value in tree.items()}
