"""What the process tests run in a process of its own: `python kernels_child.py NAME`."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import kernels_call
import kernels_oracle as oracle
import numpy as np
from kernels_oracle import Sizes

SIZES = Sizes(heads=6, kv_heads=2, width=16, hidden=64, ffn=200)
TOLERANCE = 5e-5


class Case:
    """A layer with inputs of its own and what must come out."""

    def __init__(self, seed: int, length: int) -> None:
        generator = np.random.default_rng(seed)
        self.weights = SIZES.weights(generator)
        self.x = generator.standard_normal((length, SIZES.hidden)).astype(np.float32)
        self.positions = np.arange(300, 300 + length, dtype=np.int32)[None]
        self.rotary = oracle.rotary(300 + length, SIZES.width)
        shape = (SIZES.kv_heads * (301 + length), SIZES.width)
        self.keys, self.values = (generator.standard_normal(shape).astype(np.float32) for _ in range(2))
        arguments = (self.x, self.positions, *self.rotary, self.keys, self.values, self.weights)
        self.expected, *_ = oracle.layer(*arguments, kernels_call.EPS)

    def check(self) -> None:
        out = kernels_call.layer(self.x, self.positions, *self.rotary, self.keys, self.values, self.weights)
        np.testing.assert_allclose(out, self.expected, rtol=0, atol=TOLERANCE)


def fork() -> None:
    """A child forked after the parent's threads have started, and while another thread is inside an operator."""
    case, other = Case(0, 1), Case(1, 40)
    case.check()
    stop = threading.Event()

    def keep_busy() -> None:
        while not stop.is_set():
            other.check()

    busy = threading.Thread(target=keep_busy)
    busy.start()
    for _ in range(5):
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # a hang ends the child with a status that is no success
            case.check()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        case.check()
    stop.set()
    busy.join()


def callers() -> None:
    """Several threads of one process call at once."""
    failures = []

    def work(case: Case) -> None:
        try:
            for _ in range(50):
                case.check()
        except AssertionError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(Case(seed, length),)) for seed, length in enumerate((1, 3, 40))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


def idle() -> None:
    """Threads without work sleep."""
    Case(0, 1).check()
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1


def one_core() -> None:
    """Four threads on one core get on nearly as fast as one would."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    case = Case(0, 1)
    case.check()
    before = time.process_time()
    for _ in range(200):
        case.check()
    assert time.process_time() - before < 2.0  # one thread needs 0.02 s; waiting by turning the whole slice, minutes


def neighbour() -> None:
    """A process that takes one of two cores by priority does not make two threads much slower than one."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        print("skip: needs two cores")
        return
    os.sched_setaffinity(0, cores)
    greedy = os.fork()
    if greedy == 0:
        os.sched_setaffinity(0, cores[1:])
        while os.getppid() != 1:
            pass
        os._exit(0)
    os.nice(10)
    generator = np.random.default_rng(0)
    sizes = Sizes(heads=8, kv_heads=4, width=64, hidden=512, ffn=1376)
    weights = sizes.weights(generator)
    arguments = (np.ones((1, 512), np.float32), np.zeros((1, 1), np.int32), *oracle.rotary(8, 64))
    caches = tuple(np.zeros((4 * 9, 64), np.float32) for _ in range(2))
    times = []
    try:
        for _ in range(3):
            before = time.perf_counter()
            for _ in range(400):
                kernels_call.layer(*arguments, *caches, weights)
            times.append((time.perf_counter() - before) / 400)
    finally:
        os.kill(greedy, signal.SIGKILL)
        os.waitpid(greedy, 0)
    print(min(times))


def size() -> None:
    from codellama_kernels import threads

    print(threads())


if __name__ == "__main__":
    {"fork": fork, "callers": callers, "idle": idle, "one_core": one_core, "neighbour": neighbour, "size": size}[
        sys.argv[1]
    ]()
