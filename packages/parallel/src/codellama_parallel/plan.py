"""`Plan`: which slice of which parameter each rank holds. Plain Python.

A table of logical names says how each matrix is split; everything else follows from it and the strategy: the slices of
every rank, whose gradients must be added up, how often a number is held, and the layout file.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from types import MappingProxyType

from codellama_model.config import ConfigError, LlamaConfig

from codellama_parallel.mesh import Coordinate, Mesh
from codellama_parallel.strategy import ParallelConfig

Box = tuple[tuple[int, int], ...]  # [begin, end) of every dimension, in elements of the whole parameter


class Sharding(enum.Enum):
    """How a parameter is split over the model axis."""

    COLUMN = "column"  # by outputs: dimension 0 of [out, in]
    ROW = "row"  # by inputs: dimension 1 of [out, in]
    KEY_VALUE = "key_value"  # by outputs, whole key/value heads; where there are too few, several ranks share one
    VOCABULARY = "vocabulary"  # by ids: dimension 0 of [V, H]
    REPLICATED = "replicated"


TABLE: Mapping[str, Sharding] = MappingProxyType(
    {
        "model.tok_embeddings.embedding_weight": Sharding.VOCABULARY,
        "model.layers.*.attention_norm.weight": Sharding.REPLICATED,
        "model.layers.*.attention.wq.weight": Sharding.COLUMN,
        "model.layers.*.attention.wk.weight": Sharding.KEY_VALUE,
        "model.layers.*.attention.wv.weight": Sharding.KEY_VALUE,
        "model.layers.*.attention.wo.weight": Sharding.ROW,
        "model.layers.*.ffn_norm.weight": Sharding.REPLICATED,
        "model.layers.*.feed_forward.w1.weight": Sharding.COLUMN,
        "model.layers.*.feed_forward.w3.weight": Sharding.COLUMN,
        "model.layers.*.feed_forward.w2.weight": Sharding.ROW,
        "model.norm_out.weight": Sharding.REPLICATED,
        "lm_head.weight": Sharding.VOCABULARY,
    }
)
EMBEDDING, HEAD = "model.tok_embeddings.embedding_weight", "lm_head.weight"
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


class Plan:
    """The slices of every rank for a network of these sizes under this strategy.

    Args:
        config: the network's sizes.
        strategy: the job's.
        table: logical name (`*` stands for the number of a layer) -> how it is split; None means `TABLE`, without the
            head where it is tied to the embedding, and with the embedding whole under `vocab_emb_dp`.

    Raises:
        ConfigError: the strategy is impossible for these sizes; the table matches no parameter with an entry, or no
            entry with a parameter.
    """

    def __init__(
        self, config: LlamaConfig, strategy: ParallelConfig, table: Mapping[str, Sharding] | None = None
    ) -> None:
        strategy.check(config)
        self.config, self.strategy = config, strategy
        self.table = _default_table(config, strategy) if table is None else dict(table)
        self.shapes = config.parameter_shapes()
        self.layers = strategy.layers_of_stages(config.num_layers)
        self.check(self.shapes)

    def check(self, names: Iterable[str]) -> None:
        """Refuses names that the table does not cover, and entries of the table that cover no name.

        Raises:
            ConfigError: lists both.
        """
        logical = {_logical(name): name for name in names}
        forgotten = [name for key, name in logical.items() if key not in self.table]
        unmatched = [key for key in self.table if key not in logical]
        faults = [f"no entry for parameter {name}" for name in forgotten]
        faults += [f"entry {key!r} matches no parameter" for key in unmatched]
        if faults:
            raise ConfigError(f"the plan does not fit the network: {'; '.join(faults)}")

    def sharding(self, name: str) -> Sharding:
        """How this parameter is split."""
        return self.table[_logical(name)]

    @cached_property
    def _stage_of_layer(self) -> tuple[int, ...]:
        return tuple(stage for stage, layers in enumerate(self.layers) for _ in range(layers))

    def stages(self, name: str) -> tuple[int, ...]:
        """The pipeline stages that hold this parameter: one, or two for an embedding that is the head as well."""
        last = self.strategy.pipeline_stage - 1
        if match := _LAYER.match(name):
            return (self._stage_of_layer[int(match[1])],)
        if name == EMBEDDING:
            return (0, last) if self.config.tie_word_embeddings and last else (0,)
        return (last,)

    def layers_of(self, stage: int) -> range:
        """The numbers of a stage's layers."""
        start = sum(self.layers[:stage])
        return range(start, start + self.layers[stage])

    def box(self, name: str, where: Coordinate) -> Box | None:
        """The slice of a parameter that the rank at this coordinate holds; None where it holds nothing of it."""
        if where.pipeline not in self.stages(name):
            return None
        shape = self.shapes[name]
        dimension, parts, part = self._split(name, where.model)
        whole = [(0, side) for side in shape]
        if parts > 1:
            side = shape[dimension] // parts
            whole[dimension] = (part * side, (part + 1) * side)
        return tuple(whole)

    def local_shape(self, name: str, where: Coordinate) -> tuple[int, ...]:
        """The shape of that slice.

        Raises:
            KeyError: the rank holds nothing of it.
        """
        box = self.box(name, where)
        if box is None:
            raise KeyError(name)
        return tuple(end - begin for begin, end in box)

    def local_names(self, where: Coordinate) -> tuple[str, ...]:
        """The parameters of which that rank holds something, in the network's order."""
        return tuple(name for name in self.shapes if where.pipeline in self.stages(name))

    def _split(self, name: str, model: int) -> tuple[int, int, int]:
        """(dimension, parts, this rank's part) of the split over the model axis."""
        ranks, sharding = self.strategy.model_parallel, self.sharding(name)
        if sharding is Sharding.REPLICATED:
            return 0, 1, 0
        if sharding is Sharding.KEY_VALUE:
            parts = min(ranks, self.config.kv_heads)
            return 0, parts, model // (ranks // parts)
        return (1 if sharding is Sharding.ROW else 0), ranks, model

    def model_copies(self, name: str) -> int:
        """Ranks of one model group that hold the same slice."""
        return self.strategy.model_parallel // self._split(name, 0)[1]

    def partial_over_model(self, name: str) -> bool:
        """Whether the copies of one model group compute different parts of this parameter's gradient.

        They do where each sees its own heads (shared key/value heads) or its own tokens (sequence parallel).
        """
        if self.model_copies(name) == 1:
            return False
        return self.sharding(name) is Sharding.KEY_VALUE or self.strategy.use_seq_parallel

    def optimizer_parts(self, name: str) -> int:
        """Parts into which the data axis splits this parameter's optimizer state: `data_parallel` or 1.

        Slices are cut by dimension 0; one that `data_parallel` does not divide stays whole on every copy.
        """
        parts = self.strategy.data_parallel if self.strategy.optimizer_shard else 1
        rows = self.local_shape(name, Coordinate(self.stages(name)[0], 0, 0))[0]
        return parts if rows % parts == 0 else 1

    def optimizer_box(self, name: str, where: Coordinate) -> Box | None:
        """The part of a parameter whose optimizer state the rank at this coordinate keeps."""
        box = self.box(name, where)
        if box is None:
            return None
        parts = self.optimizer_parts(name)
        begin, end = box[0]
        rows = (end - begin) // parts
        part = where.data if parts > 1 else 0
        return ((begin + part * rows, begin + (part + 1) * rows), *box[1:])

    def copies(self, name: str) -> int:
        """Ranks of the job that update the same numbers of this parameter."""
        data = self.strategy.data_parallel // self.optimizer_parts(name)
        return len(self.stages(name)) * self.model_copies(name) * data

    def layout(self) -> dict[str, object]:
        """The layout file's content: which rank holds which slice of which parameter (format in the README)."""
        mesh = Mesh(self.strategy)
        parameters: dict[str, object] = {}
        for name, shape in self.shapes.items():
            slices = {}
            for rank in range(mesh.size):
                if (box := self.box(name, mesh.coordinate_of(rank))) is not None:
                    slices[str(rank)] = [list(side) for side in box]
            parameters[name] = {"shape": list(shape), "slices": slices}
        return {"format": "codellama-layout", "version": 1, "world_size": mesh.size, "parameters": parameters}


def _default_table(config: LlamaConfig, strategy: ParallelConfig) -> dict[str, Sharding]:
    table = dict(TABLE)
    if config.tie_word_embeddings:
        del table[HEAD]
    if strategy.vocab_emb_dp:
        table[EMBEDDING] = Sharding.REPLICATED
    return table


def _logical(name: str) -> str:
    return _LAYER.sub("model.layers.*.", name)
