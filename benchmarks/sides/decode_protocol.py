"""What every side of the decode and prefill benchmarks does alike: arguments, prompts, timing, answers as JSON lines.

    python decode_SIDE.py MODEL --weights fp16 --prompt_tokens 512 --new_tokens 64 --batch 1          lines on stdin
    python decode_SIDE.py MODEL ... --cold             one first token in a fresh process, then exit

A side gives `run` a function that loads the model and returns `generate(prompts, count, first)`. That generates
exactly `count` ids a prompt, greedily, calls `first()` as soon as the first one is there, and returns the first
prompt's. What passes until `first` is the prompt's time, what passes after it is decoding. Needs nothing but the
standard library.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable

STARTED = time.perf_counter()
Generate = Callable[[list[list[int]], int, Callable[[], None]], list[int]]


def run(load: Callable[[argparse.Namespace], Generate], version: str) -> None:
    """Answers every line on stdin with one measurement."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--weights", default="fp32")
    parser.add_argument("--prompt_tokens", type=int, default=512)
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compute_dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--cold", action="store_true")
    flags = parser.parse_args()
    flags.positions = flags.prompt_tokens + flags.new_tokens
    # Ids of a small range, another start for every row, and never the end of a text.
    prompts = [[5 + (row + 7 * place) % 300 for place in range(flags.prompt_tokens)] for row in range(flags.batch)]
    generate = load(flags)
    if flags.cold:
        generate(prompts, 1, lambda: None)
        print(json.dumps({"first_token_seconds": time.perf_counter() - STARTED}), flush=True)
        return
    generate(prompts, min(4, flags.new_tokens), lambda: None)  # compiles, and warms the caches
    print(json.dumps({"ready": True, "version": version}), flush=True)
    for _ in sys.stdin:
        times = [time.perf_counter()]
        ids = generate(prompts, flags.new_tokens, lambda: times.append(time.perf_counter()))  # noqa: B023
        start, first, *_ = times
        answer = {"prefill": flags.batch * flags.prompt_tokens / (first - start), "ids": ids}
        if flags.new_tokens > 1:
            answer["decode"] = flags.batch * (flags.new_tokens - 1) / (time.perf_counter() - first)
        answer["memory"] = peak_memory()
        print(json.dumps(answer), flush=True)


def peak_memory() -> int:
    """The most bytes this process has had in memory."""
    with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
