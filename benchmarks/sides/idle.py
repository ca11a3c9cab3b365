"""Waits for a quiet machine, so that a measurement is not one of its neighbours."""

import time
from pathlib import Path

QUIET = 0.1  # share of the processors' time that others may use
WINDOW = 0.5  # seconds over which it is looked at


def wait_until_idle(limit: float) -> float:
    """Returns 0 as soon as the machine is quiet; after `limit` seconds, the share of its time that is in use."""
    deadline = time.monotonic() + limit
    while True:
        share = busy_share()
        if share <= QUIET:
            return 0.0
        if time.monotonic() >= deadline:
            return share


def busy_share() -> float:
    """Share of all processors' time that was in use during the next `WINDOW` seconds."""
    before = _times()
    time.sleep(WINDOW)
    passed = [now - then for now, then in zip(_times(), before, strict=True)]
    idle = passed[3] + passed[4]  # idle, and waiting for a device
    return 1.0 - idle / max(sum(passed), 1)


def _times() -> list[int]:
    return [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
