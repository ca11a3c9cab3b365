"""What the tests of sums over processes run: `python kernels_sum_child.py NAME`. A rank is a fork of this process."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import kernels_call
import numpy as np
from codellama_kernels.shared_sum import Offer, SharedSum
from numpy.typing import NDArray

CHUNK = 1 << 16  # numbers that go through at a time (csrc/shared_sum.cpp)
SIZES = (1, 15, 16, 17, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5)
DONE, FAILED = 0, 3


class Rank:
    """One process of a group."""

    def __init__(self, offer: Offer, rank: int, size: int, seconds: float) -> None:
        self.rank, self.size = rank, size
        self.channel = SharedSum(offer.numbers, rank, size, seconds)

    def sum(self, x: NDArray[np.float32], number: int = 0) -> tuple[int, NDArray[np.float32]]:
        """(status, sum)."""
        out = np.full_like(x, np.nan)
        return kernels_call.call("codellama_shared_sum", x, self.channel.labels(number).asnumpy(), out), out


def in_processes(size: int, body: Callable[[Rank], None], seconds: float = 60) -> None:
    """Runs `body` as so many ranks, all of which must get to its end. Who has ended is gone at once, as under msrun."""
    offer = Offer(size)
    for rank in range(size):
        if os.fork() == 0:
            try:
                body(Rank(offer, rank, size, seconds))
            except BaseException as error:
                os.write(2, f"rank {rank}: {error!r}\n".encode())
                os._exit(1)
            os._exit(0)
    assert [os.wait()[1] for _ in range(size)] == [0] * size
    offer.close()


def sums() -> None:
    """Every number is that of a float32 sum in the order of ranks, on all ranks, call after call."""

    def body(rank: Rank) -> None:
        for number, length in enumerate((*SIZES, *reversed(SIZES))):
            parts = np.random.default_rng(number).standard_normal((rank.size, length)).astype(np.float32)
            expected = parts[0].copy()
            for part in parts[1:]:
                expected += part
            status, found = rank.sum(parts[rank.rank], number)
            assert status == DONE, (length, status)
            np.testing.assert_array_equal(found, expected)

    for size in (1, 2, 3, 5):
        in_processes(size, body)


def ended() -> None:
    """A rank is gone: the others end within seconds, and so does every later sum."""

    def body(rank: Rank) -> None:
        x = np.ones(3 * CHUNK, np.float32)
        assert rank.sum(x)[0] == DONE
        if rank.rank == 1:
            os._exit(0)
        start = time.monotonic()
        assert rank.sum(x)[0] == FAILED
        assert rank.sum(x)[0] == FAILED
        assert time.monotonic() - start < 10

    in_processes(3, body)


def late() -> None:
    """A rank that does not come in time: the sum fails for those that wait, and for it, though another is tried."""
    read, write = os.pipe()

    def body(rank: Rank) -> None:
        if rank.rank == 1:
            os.read(read, 1)
        assert rank.sum(np.ones(9, np.float32))[0] == FAILED
        os.write(write, b"late")
        assert rank.sum(np.ones(9, np.float32))[0] == FAILED

    in_processes(2, body, seconds=1)


def other() -> None:
    """Ranks that meet in sums which are not the same."""

    def body_of(length: int, number: int) -> Callable[[Rank], None]:
        def body(rank: Rank) -> None:
            x = np.ones(9 + length * rank.rank, np.float32)
            assert rank.sum(x, number * rank.rank)[0] == FAILED

        return body

    in_processes(2, body_of(1, 0))
    in_processes(2, body_of(0, 1))


def asleep() -> None:
    """Who waits does not compute."""

    def body(rank: Rank) -> None:
        if rank.rank == 1:
            time.sleep(1)
        before = time.process_time()
        assert rank.sum(np.ones(9, np.float32))[0] == DONE
        assert time.process_time() - before < 0.2

    in_processes(2, body)


def not_here() -> None:
    """An offer that is not this machine's is refused."""
    offer = Offer(2)
    process, file, high, low = offer.numbers
    for numbers in ((process, file, high, low ^ 1), (process, 1000, high, low), (0, 0, 0, 0)):
        try:
            SharedSum(numbers, 0, 2, 1.0)
        except OSError:
            continue
        raise AssertionError(numbers)


if __name__ == "__main__":
    {"sums": sums, "ended": ended, "late": late, "other": other, "asleep": asleep, "not_here": not_here}[sys.argv[1]]()
