"""The estimate as text: what `codellama-plan` prints. Plain Python."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from codellama_model.config import ConfigError

from codellama_parallel.devices import GIBI, Device
from codellama_parallel.memory import Memory, Work, memory
from codellama_parallel.mesh import Coordinate
from codellama_parallel.plan import Plan
from codellama_parallel.search import Candidate
from codellama_parallel.throughput import MATRIX_EFFICIENCY, throughput
from codellama_parallel.traffic import predicted

_TRAINING = ("parameters", "gradients", "optimizer", "activations", "buffers", "total")
_GENERATION = ("parameters", "cache", "activations", "total")
_UNITS = {"": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}


def estimate_lines(plan: Plan, work: Work, device: Device, device_memory: int) -> list[str]:
    """Memory and traffic of one rank of every stage, and the speed of a step. Ranks of a stage differ in nothing.

    Of generation, the memory alone.
    """
    strategy = plan.strategy
    columns = _TRAINING if work.training else _GENERATION
    if work.training:
        kind = (
            f"a step: {strategy.data_parallel} x {strategy.micro_batch_num} micro-batches of {work.rows} x"
            f" {work.seq_length} tokens; weights of {work.parameter_bytes} bytes, gradients and moments float32"
        )
    else:
        kind = (
            f"generation: {work.rows} x {work.seq_length} positions; weights of {work.parameter_bytes} bytes, key/value"
            f" cache of {work.cache_bytes}"
        )
    lines = [
        f"{plan.config.num_parameters():,} parameters on {strategy.device_num} devices: data_parallel"
        f" {strategy.data_parallel} x model_parallel {strategy.model_parallel} x pipeline_stage"
        f" {strategy.pipeline_stage}, layers of stages {list(plan.layers)}",
        kind,
        "",
        "GiB per rank  " + "".join(f"{name:>13}" for name in columns) + f"   of {device_memory / GIBI:.0f}",
    ]
    for stage in range(strategy.pipeline_stage):
        one = memory(plan, Coordinate(stage, 0, 0), work)
        fits = "fits" if one.total <= device_memory else "DOES NOT FIT"
        lines.append(f"  stage {stage:<6}" + "".join(f"{_gib(one, name):>13.2f}" for name in columns) + f"   {fits}")
    if not work.training:
        return lines
    lines.append("activations and buffers are never there together: the total counts the larger of the two")
    lines += ["", "GiB per rank and step, by collective and group"]
    for stage in range(strategy.pipeline_stage):
        traffic = predicted(plan, Coordinate(stage, 0, 0), work)
        parts = ", ".join(
            f"{operation} {axis} {size / GIBI:.4g}" for (operation, axis), size in sorted(traffic.bytes.items())
        )
        lines.append(f"  stage {stage:<6} {parts or 'none'}")
    speed = throughput(plan, work, device)
    lines += [
        "",
        f"{device.name}: {speed.tokens_per_second:,.0f} tokens/s per device, MFU {speed.mfu:.1%}, step"
        f" {speed.step_seconds:.3g} s (computing {speed.compute_seconds:.3g} s, bubble {speed.bubble:.1%},"
        f" collectives {speed.communication_seconds:.3g} s)",
        f"assumed: matrix products at {MATRIX_EFFICIENCY:.0%} of the peak, nothing overlaps; left out: element-wise"
        " operations, optimizer, latency, host",
    ]
    lines += [f"source: {source}" for source in device.sources]
    return lines


def search_lines(found: Sequence[Candidate], limit: int = 10) -> list[str]:
    """The best candidates as a table."""
    lines = [f"{len(found)} strategies fit; the best {min(limit, len(found))}:"]
    lines.append("   dp   mp   pp micro  seq zero1 recompute   GiB/rank  tokens/s/device   MFU")
    for one in found[:limit]:
        strategy = one.strategy
        speed = one.throughput
        fast = f"{'-':>17}{'-':>6}" if speed is None else f"{speed.tokens_per_second:17,.0f}{speed.mfu:6.1%}"
        lines.append(
            f"{strategy.data_parallel:5}{strategy.model_parallel:5}{strategy.pipeline_stage:5}"
            f"{strategy.micro_batch_num:6}{_mark(strategy.use_seq_parallel):>5}{_mark(strategy.optimizer_shard):>6}"
            f" {strategy.recompute:<10}{one.memory.total / GIBI:10.1f}{fast}"
        )
    return lines


def parse_size(text: str) -> int:
    """Bytes of "64GB" (powers of 1024).

    Raises:
        ConfigError: no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]B)?", text.strip().upper())
    if match is None or float(match[1]) == 0:
        raise ConfigError(f"a size is a number above 0 with KB, MB, GB or TB behind it, found {text!r}")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def write_layout(plan: Plan, path: Path) -> None:
    """Writes the layout file; it appears whole or not at all.

    Raises:
        ConfigError: the folder does not exist or can not be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(plan.layout()), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True) if temporary.parent.is_dir() else None
        raise ConfigError(f"can not write {path}: {error.strerror}") from None


def _gib(one: Memory, name: str) -> float:
    return float(getattr(one, name)) / GIBI


def _mark(value: bool) -> str:
    return "yes" if value else "no"
