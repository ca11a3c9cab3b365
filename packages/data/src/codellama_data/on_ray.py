"""The shards of a `preprocess` run as Ray tasks: one machine or a cluster, which must see the same files.

Without Ray the same is done by hand: `--shard_id I --num_shards N` on N machines.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from codellama_data.errors import DataError

Result = TypeVar("Result")


def shard_path(output: Path, shard_id: int, num_shards: int) -> Path:
    """Where a shard's rows go: `corpus.mindrecord` becomes `corpus.0of4.mindrecord` and so on."""
    return output.with_name(f"{output.stem}.{shard_id}of{num_shards}{output.suffix}")


def run_shards(function: Callable[[int], Result], num_shards: int, cpus_per_shard: int) -> Iterator[tuple[int, Result]]:
    """Call `function(shard_id)` for every shard as Ray tasks; results come as they finish.

    Joins the cluster of `RAY_ADDRESS`, else starts Ray on this machine. When one shard fails the others are cancelled.

    Args:
        function: picklable; runs on any machine of the cluster.
        num_shards: N.
        cpus_per_shard: processors that a shard keeps busy.

    Raises:
        DataError: Ray is not installed, or a shard failed (the message names it).
    """
    try:
        import ray  # noqa: PLC0415 (an optional dependency)
    except ImportError:
        raise DataError("--ray needs Ray, install codellama-data[ray]") from None

    def shard_task(shard: int) -> Result:  # Ray takes plain functions only
        return function(shard)

    started = not ray.is_initialized()
    if started:
        # Ray's workers start in a folder and with a path of their own.
        path = os.pathsep.join(str(Path(one or ".").resolve()) for one in sys.path)
        ray.init(log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": {"PYTHONPATH": path}})
    try:
        task = ray.remote(num_cpus=cpus_per_shard)(shard_task)
        running = {task.remote(shard): shard for shard in range(num_shards)}
        while running:
            (done,), _ = ray.wait(list(running), num_returns=1)
            shard = running.pop(done)
            try:
                yield shard, ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise DataError(f"shard {shard} of {num_shards}: {error.cause}") from None
            except ray.exceptions.RayError as error:
                raise DataError(f"shard {shard} of {num_shards}: {type(error).__name__}") from None
    finally:
        if started:
            ray.shutdown()
