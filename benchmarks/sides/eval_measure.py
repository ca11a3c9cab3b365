"""What the sides of the scoring benchmark share: answer each line on stdin with one timed scoring as JSON."""

import json
import os
import resource
import sys
import time
from collections.abc import Callable


def serve(score: Callable[[], tuple[int, int]]) -> None:
    """`score` returns (samples, passed); what it prints goes nowhere."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # progress bars
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for _ in sys.stdin:
        start, before = time.perf_counter(), processor_seconds()
        samples, passed = score()
        seconds, cpu = time.perf_counter() - start, processor_seconds() - before
        answer = {"samples": samples, "passed": passed, "seconds": seconds, "cpu": cpu}
        print(json.dumps(answer), file=answers, flush=True)


def processor_seconds() -> float:
    """Of this process and all its ended descendants."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
