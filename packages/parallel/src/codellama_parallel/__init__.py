"""Training on many devices: strategy, mesh, plan, `parallelize`, the parallel step, launching, and the estimate.

What plans (strategy, mesh, plan, buckets, schedule, estimate, launch) imports without MindSpore; what computes loads it
on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from codellama_parallel.mesh import Coordinate, Mesh
from codellama_parallel.plan import TABLE, Plan, Sharding
from codellama_parallel.strategy import ParallelConfig

if TYPE_CHECKING:
    from codellama_parallel.parallelize import build, initialize, load, parallelize
    from codellama_parallel.step import ParallelStep, StateTensor, StepResult

_HOMES = {
    "build": "parallelize",
    "initialize": "parallelize",
    "load": "parallelize",
    "parallelize": "parallelize",
    "ParallelStep": "step",
    "StateTensor": "step",
    "StepResult": "step",
}

__all__ = [
    "TABLE",
    "Coordinate",
    "Mesh",
    "ParallelConfig",
    "ParallelStep",
    "Plan",
    "Sharding",
    "StateTensor",
    "StepResult",
    "build",
    "initialize",
    "load",
    "parallelize",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # noqa: PLC0415  (only where something is loaded)

    # `parallelize` names a module as well as its function: the function is what the package exports
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
