"""`Mesh`: which rank stands where on the axes pipeline, data and model, and who its neighbours are. Plain Python.

Ranks count along the model axis first, then data, then pipeline, as MindSpore's own parallel modes do: the ranks that
talk most (one model-parallel group) have consecutive numbers, so they share a machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from codellama_parallel.strategy import ParallelConfig

Ranks = tuple[int, ...]


class Coordinate(NamedTuple):
    """Where a rank stands on each axis, from 0."""

    pipeline: int
    data: int
    model: int


@dataclass(frozen=True)
class Mesh:
    """The ranks of a job as a grid, seen from `rank`.

    Raises:
        ValueError: `rank` is none of the job's.
    """

    strategy: ParallelConfig
    rank: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank {self.rank} is none of the job's {self.size} (0 to {self.size - 1})")

    @property
    def size(self) -> int:
        """Ranks in all."""
        return self.strategy.device_num

    @property
    def coordinate(self) -> Coordinate:
        """Where this rank stands."""
        return self.coordinate_of(self.rank)

    def coordinate_of(self, rank: int) -> Coordinate:
        """Where another rank stands."""
        rest, model = divmod(rank, self.strategy.model_parallel)
        pipeline, data = divmod(rest, self.strategy.data_parallel)
        return Coordinate(pipeline, data, model)

    def rank_at(self, pipeline: int, data: int, model: int) -> int:
        """The rank at a coordinate."""
        return (pipeline * self.strategy.data_parallel + data) * self.strategy.model_parallel + model

    @property
    def stage(self) -> int:
        """This rank's pipeline stage."""
        return self.coordinate.pipeline

    @property
    def first_stage(self) -> bool:
        """Whether this rank holds the embedding."""
        return self.stage == 0

    @property
    def last_stage(self) -> bool:
        """Whether this rank computes the loss."""
        return self.stage == self.strategy.pipeline_stage - 1

    def model_group(self) -> Ranks:
        """The ranks that split this one's layers among them, in order of their parts."""
        pipeline, data, _ = self.coordinate
        return tuple(self.rank_at(pipeline, data, model) for model in range(self.strategy.model_parallel))

    def data_group(self) -> Ranks:
        """The ranks that hold the same slices as this one and see other rows."""
        pipeline, _, model = self.coordinate
        return tuple(self.rank_at(pipeline, data, model) for data in range(self.strategy.data_parallel))

    def key_value_group(self, kv_heads: int) -> Ranks:
        """The ranks of the model group that hold the same key/value head; this rank alone where heads are split."""
        shared = max(1, self.strategy.model_parallel // kv_heads)
        pipeline, data, model = self.coordinate
        start = model // shared * shared
        return tuple(self.rank_at(pipeline, data, other) for other in range(start, start + shared))

    def stage_pair(self, lower: int, upper: int) -> Ranks:
        """The ranks at this data and model coordinate on two stages."""
        _, data, model = self.coordinate
        return self.rank_at(lower, data, model), self.rank_at(upper, data, model)

    def world(self) -> Ranks:
        """All ranks."""
        return tuple(range(self.size))
