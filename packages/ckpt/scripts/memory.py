"""Run every command on one checkpoint under a memory limit, and show its peak and its speed.

    python packages/ckpt/scripts/memory.py CHECKPOINT FOLDER

The limit is 1 GB and the largest tensor, whatever the checkpoint's size. It is set as RLIMIT_DATA, which Linux enforces
on all private memory; the peak of resident memory is measured too, and exceeding the limit there exits 1. FOLDER takes
up to twice the checkpoint's size; what is written there is removed.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from codellama_ckpt import open_checkpoint, plan

RANKS = 4


def main(source: str, folder: Path) -> int:
    """Run all commands; 1 if one failed or took more than the limit."""
    job = plan(open_checkpoint(source))
    largest = max(map(job.checkpoint.size, job.names))
    limit = 10**9 + 2 * largest  # bf16 -> fp32 doubles a tensor
    layout = folder / "layout.json"
    layout.write_text(json.dumps(rows_by_rank(job.checkpoint)))
    full, shards, ranks, back = (folder / name for name in ("full.safetensors", "shards", "ranks", "back"))
    ckpt, wide = folder / "full.ckpt", folder / "wide.safetensors"
    print(f"{job.size / 1e9:.2f} GB, largest tensor {largest / 1e9:.2f} GB, limit 1 GB + the largest written")
    commands = [
        (["convert", "--input_path", source, "--output_path", full], 1, []),
        (["verify", full], 0, []),
        (["convert", "--reversed", "--input_path", full, "--output_path", back], 1, [back]),
        (["shard", "--input_path", full, "--output_path", shards, "--layout", layout], 1, [full]),
        (["merge", "--input_path", shards, "--output_path", ckpt], 1, []),
        (["verify", shards], 0, [shards]),
        (["verify", ckpt], 0, [ckpt]),
        (["convert", "--input_path", source, "--output_path", wide, "--dtype", "fp32"], 2, [wide]),
        (
            ["shard", "--format", "mindformers", "--input_path", source, "--output_path", ranks, "--layout", layout],
            1,
            [],
        ),
        (["merge", "--input_path", ranks, "--output_path", full], 1, [ranks, full]),
        (["convert", "--input_path", source, "--output_path", wide, "--dtype", "fp16"], 1, [wide]),
    ]
    failed = 0
    for command, written, done_with in commands:
        arguments = [str(argument) for argument in command]
        allowed = 10**9 + max(1, written) * largest
        start = time.monotonic()
        child = subprocess.Popen(
            [sys.executable, "-m", "codellama_ckpt", *arguments],
            stdout=subprocess.DEVNULL,
        )
        resource.prlimit(child.pid, resource.RLIMIT_DATA, (allowed, allowed))
        _, status, usage = os.wait4(child.pid, 0)
        seconds, peak = time.monotonic() - start, usage.ru_maxrss * 1024
        good = status == 0 and peak <= allowed <= limit
        failed |= not good
        what = " ".join(argument for argument in arguments if "/" not in argument and argument not in SILENT)
        print(
            f"{what}: peak {peak / 1e6:,.0f} MB, {job.size / seconds / 1e9:.2f} GB/s{'' if good else ', FAILED'}",
            flush=True,
        )
        for path in done_with:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    layout.unlink()
    return failed


SILENT = ("--input_path", "--output_path", "--layout")


def rows_by_rank(checkpoint) -> dict[str, object]:  # type: ignore[no-untyped-def]
    """A layout of matrices by rows, the rest copied."""
    parameters = {}
    for name in checkpoint:
        shape = checkpoint.shape(name)
        slices = {}
        for rank in range(RANKS):
            box = [[0, size] for size in shape]
            if len(shape) == 2:
                box[0] = [rank * shape[0] // RANKS, (rank + 1) * shape[0] // RANKS]
            slices[str(rank)] = box
        parameters[name] = {"shape": shape, "slices": slices}
    return {"format": "codellama-layout", "version": 1, "world_size": RANKS, "parameters": parameters}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
