"""Reading ahead of training: telling the operating system which rows come next, as far as memory allows.

Rows in random order are what a disk is slowest at. Two things help: it knows many of them at once, and files that fit
into the free memory are also read from front to back, so that soon no row waits for the disk. What is read ahead stays
with the operating system, which gives it up when memory is needed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from codellama_data.reading import MindRecordRows

_ROWS_AHEAD = 64  # in random order; more gained nothing
_ROWS_AHEAD_IN_ORDER = 1024
_PACE = 16  # rows read from front to back for each one delivered: all are there after a sixteenth of an epoch
_SHARE = 0.5  # of the free memory that files may fill
_MEMORY = Path("/proc/meminfo")
_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


class ReadAhead:
    """Announces the rows of one epoch.

    Args:
        rows: the opened files.
        order: row numbers in the order in which this rank delivers them.
        shuffled: whether that order is random.
    """

    def __init__(self, rows: MindRecordRows, order: npt.NDArray[np.int64], shuffled: bool) -> None:
        self._rows, self._order = rows, order
        self._window = _ROWS_AHEAD if shuffled else _ROWS_AHEAD_IN_ORDER
        self._announced = 0
        self._fits = shuffled and rows.num_bytes <= _SHARE * free_memory()
        self._swept = 0  # rows announced from front to back

    def before_reading(self, start: int, stop: int) -> None:
        """Rows `order[start:stop]` are read now: announce them, and what lies up to two windows behind them."""
        if stop + self._window <= self._announced or self._swept == len(self._rows):
            return
        start, stop = max(self._announced, start), min(stop + 2 * self._window, len(self._order))
        if start < stop:
            self._rows.prefetch(self._order[start:stop])
            self._announced = stop
        if self._fits:
            start, self._swept = self._swept, min(self._swept + _PACE * self._window, len(self._rows))
            self._rows.prefetch(np.arange(start, self._swept))


def free_memory() -> int:
    """Bytes that are free or can be freed at once, no more than a container's limit; 0 if unknown."""
    try:
        lines = dict(line.split(":") for line in _MEMORY.read_text().splitlines())
        found = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        return 0
    try:
        return min(found, int(_CONTAINER_LIMIT.read_text()))
    except (OSError, ValueError):  # no limit
        return found
