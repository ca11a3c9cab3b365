"""What both sides of the training benchmark do alike: the networks' sizes, timing, answers as JSON lines.

    python train_SIDE.py SIZE STEPS [MICRO_BATCHES]          then lines on stdin

A side gives `run` a function that makes the network and returns `step(ids)`, which trains on ids int32 [rows,
sequence + 1] and returns the loss. `named_size` says what a SIZE is. A step has `batch` rows, or MICRO_BATCHES times as
many. Needs nothing but the standard library and NumPy.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Step = Callable[[np.ndarray], float]
LEARNING_RATE, WEIGHT_DECAY, MAX_GRAD_NORM = 1e-4, 0.1, 1.0

# Names are LlamaConfig's; `batch` rows of `sequence` tokens a step.
SIZES: dict[str, dict[str, int]] = {
    "56m": {
        "vocab_size": 32000,
        "hidden_size": 512,
        "num_layers": 8,
        "num_heads": 8,
        "n_kv_heads": 4,
        "intermediate_size": 1376,
        "batch": 4,
        "sequence": 256,
    },
    "long": {
        "vocab_size": 32000,
        "hidden_size": 768,
        "num_layers": 12,
        "num_heads": 12,
        "n_kv_heads": 6,
        "intermediate_size": 2048,
        "batch": 1,
        "sequence": 2048,
    },
}


def named_size(name: str) -> dict[str, int]:
    """A size of `SIZES`; "56m:4096" is its network with one row of 4096 tokens a step."""
    network, _, sequence = name.partition(":")
    return SIZES[network] | ({"batch": 1, "sequence": int(sequence)} if sequence else {})


def run(
    make: Callable[[dict[str, int]], tuple[Step, str]],
    besides: Mapping[str, Callable[[], float]] | None = None,
    requests: Iterable[object] = sys.stdin,
) -> None:
    """Answers every request with one measurement: seconds a step, loss, peak memory so far, and what is asked besides.

    Args:
        make: (a size, with `micro_batches`) -> the step, and what it runs on.
        besides: further measurements by name.
        requests: by default the lines on stdin.
    """
    micro_batches = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    size, steps = named_size(sys.argv[1]) | {"micro_batches": micro_batches}, int(sys.argv[2])
    rng = np.random.default_rng(0)
    shape = (size["batch"] * micro_batches, size["sequence"] + 1)
    batches = [rng.integers(3, size["vocab_size"], shape).astype(np.int32) for _ in range(steps)]
    step, about = make(size)
    losses = [step(batch) for batch in batches]  # compiles, and warms the caches
    answer({"about": about, "first_loss": losses[0]})
    for _ in requests:
        start = time.perf_counter()
        for batch in batches:
            loss = step(batch)
        seconds = (time.perf_counter() - start) / steps
        more = {name: measure() for name, measure in (besides or {}).items()}
        answer({"seconds": seconds, "loss": loss, "peak_bytes": peak_memory(), **more})


def llama_keys(size: dict[str, int]) -> dict[str, int]:
    """The arguments of LlamaConfig."""
    keys = {name: value for name, value in size.items() if name not in ("batch", "sequence", "micro_batches")}
    return keys | {"max_position_embedding": size["sequence"]}


def answer(values: dict[str, Any]) -> None:
    print(json.dumps(values), flush=True)


def peak_memory(process: int | str = "self") -> int:
    """The most bytes of memory that a process has held: interpreter, libraries and all."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def step_flops(size: dict[str, int]) -> float:
    """Of the matrix products of one step: three for each weight and token, and attention's, half of them masked."""
    width = size["hidden_size"] // size["num_heads"]
    attention = size["hidden_size"] * width * 2 * (size["num_heads"] + size["n_kv_heads"])
    weights = size["num_layers"] * (attention + 3 * size["hidden_size"] * size["intermediate_size"])
    weights += size["vocab_size"] * size["hidden_size"]
    scores = size["num_layers"] * size["sequence"] * size["hidden_size"]
    return 6.0 * size["batch"] * size["sequence"] * (weights + scores)
