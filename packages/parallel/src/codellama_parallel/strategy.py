"""`ParallelConfig`: how one training job is spread over devices, by the names that users of MindFormers know.

Plain Python. Every combination that can not run is refused here, with the reason, before anything is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from codellama_model.config import ConfigError, LlamaConfig

Recompute = Literal["none", "selective", "full"]
RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")


@dataclass(frozen=True)
class ParallelConfig:
    """The strategy of a job. `data_parallel` x `model_parallel` x `pipeline_stage` is its number of processes.

    Args:
        data_parallel: copies of the network that see different rows of a batch.
        model_parallel: ranks among which every matrix and the heads of attention are split (arXiv:1909.08053).
        pipeline_stage: groups of consecutive layers on different ranks.
        use_seq_parallel: between the split matrices a rank holds its part of the tokens only (arXiv:2205.05198).
        micro_batch_num: parts of a step's rows that are computed one after the other; their gradients add up.
        vocab_emb_dp: every rank holds the whole embedding; False splits it over the vocabulary.
        gradient_aggregation_group: number of buckets in which gradients travel over the data axis.
        optimizer_shard: each data-parallel copy keeps and updates its part of the optimizer state (ZeRO-1,
            arXiv:1910.02054).
        recompute: "full" keeps only the inputs of every layer's two branches for the backward pass, "selective" all but
            the scores of attention, "none" everything.
        pipeline_offset: 0 for an even share of layers. Otherwise one whole number a stage: those that add up to 0 are
            added to the even share (MindFormers' `offset`), those that add up to `num_layers` are the layers.

    Raises:
        ConfigError: a value that is impossible by itself; the message names the key.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # for run configurations that embed this class

    data_parallel: int = 1
    model_parallel: int = 1
    pipeline_stage: int = 1
    use_seq_parallel: bool = False
    micro_batch_num: int = 1
    vocab_emb_dp: bool = False
    gradient_aggregation_group: int = 4
    optimizer_shard: bool = False
    recompute: Recompute = "none"
    pipeline_offset: int | tuple[int, ...] = 0

    def __post_init__(self) -> None:
        for key in (
            "data_parallel",
            "model_parallel",
            "pipeline_stage",
            "micro_batch_num",
            "gradient_aggregation_group",
        ):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"parallel_config.{key} must be a whole number above 0, found {value!r}")
        for key in ("use_seq_parallel", "vocab_emb_dp", "optimizer_shard"):
            if not isinstance(getattr(self, key), bool):
                raise ConfigError(f"parallel_config.{key} must be true or false, found {getattr(self, key)!r}")
        if self.recompute not in RECOMPUTE:
            raise ConfigError(
                f"parallel_config.recompute must be one of {', '.join(RECOMPUTE)}, found {self.recompute!r}"
            )
        if isinstance(self.pipeline_offset, Sequence) and not isinstance(self.pipeline_offset, tuple):
            object.__setattr__(self, "pipeline_offset", tuple(self.pipeline_offset))
        self._check_offset()

    def _check_offset(self) -> None:
        offset = self.pipeline_offset
        if not isinstance(offset, tuple):
            if isinstance(offset, bool) or offset != 0:
                raise ConfigError(
                    f"parallel_config.pipeline_offset must be 0 or a list of one number a stage, found {offset!r}"
                )
            return
        if any(isinstance(value, bool) or not isinstance(value, int) for value in offset):
            raise ConfigError(f"parallel_config.pipeline_offset must hold whole numbers, found {list(offset)}")
        if len(offset) != self.pipeline_stage:
            raise ConfigError(
                f"parallel_config.pipeline_offset has {len(offset)} numbers for pipeline_stage {self.pipeline_stage};"
                " give one a stage"
            )

    @property
    def device_num(self) -> int:
        """Processes of the job."""
        return self.data_parallel * self.model_parallel * self.pipeline_stage

    @property
    def sequence_parts(self) -> int:
        """Parts into which the tokens are split between the matrices: `model_parallel` or 1."""
        return self.model_parallel if self.use_seq_parallel else 1

    def layers_of_stages(self, num_layers: int) -> tuple[int, ...]:
        """Layers of each stage; where an even share leaves a rest, the first stages have one more.

        Raises:
            ConfigError: `pipeline_offset` does not fit `num_layers`, or a stage would be empty.
        """
        stages = self.pipeline_stage
        share, rest = divmod(num_layers, stages)
        even = tuple(share + (stage < rest) for stage in range(stages))
        offset = self.pipeline_offset
        if not isinstance(offset, tuple) or not any(offset):
            layers = even
        elif sum(offset) == num_layers:
            layers = offset
        elif sum(offset) == 0:
            layers = tuple(size + shift for size, shift in zip(even, offset, strict=True))
        else:
            raise ConfigError(
                f"parallel_config.pipeline_offset {list(offset)} adds up to {sum(offset)}; it must be 0 (shifts from an"
                f" even share) or num_layers {num_layers} (layers of each stage)"
            )
        if min(layers) < 1:
            raise ConfigError(
                f"parallel_config.pipeline_stage {stages}: {num_layers} layers as {list(layers)} leave a stage empty"
            )
        return layers

    def check(self, config: LlamaConfig, device_num: int | None = None) -> None:
        """Refuses a strategy that a network of these sizes, or this number of processes, can not run with.

        Raises:
            ConfigError: with the reason.
        """
        if device_num is not None and self.device_num != device_num:
            raise ConfigError(
                f"data_parallel {self.data_parallel} x model_parallel {self.model_parallel} x pipeline_stage"
                f" {self.pipeline_stage} = {self.device_num} processes, but the job has {device_num}; make them equal"
            )
        ranks = self.model_parallel
        for key, size, what in (
            ("num_heads", config.num_heads, "each rank computes whole heads"),
            ("intermediate_size", config.intermediate_size, "each rank holds an equal part of w1, w2, w3"),
            ("vocab_size", config.vocab_size, "each rank holds an equal part of the head"),
        ):
            if size % ranks:
                raise ConfigError(f"parallel_config.model_parallel {ranks} does not divide {key} {size}: {what}")
        kv_heads = config.kv_heads
        if kv_heads % ranks and ranks % kv_heads:
            raise ConfigError(
                f"parallel_config.model_parallel {ranks} and n_kv_heads {kv_heads}: one must be a multiple of the"
                " other (each rank computes whole heads, or several ranks share one)"
            )
        if self.vocab_emb_dp and config.tie_word_embeddings and ranks > 1:
            raise ConfigError(
                "parallel_config.vocab_emb_dp keeps the embedding whole, but tie_word_embeddings makes it the head,"
                " which model_parallel splits over the vocabulary; set vocab_emb_dp false"
            )
        self.layers_of_stages(config.num_layers)

    def check_batch(self, rows: int, seq_length: int) -> None:
        """Refuses rows of a data-parallel rank (a step's, of `seq_length` tokens) that can not be split as asked.

        Raises:
            ConfigError: with the reason.
        """
        if rows % self.micro_batch_num:
            raise ConfigError(
                f"parallel_config.micro_batch_num {self.micro_batch_num} does not divide the {rows} rows that each"
                " data-parallel rank has in a step"
            )
        if rows // self.micro_batch_num * seq_length % self.sequence_parts:
            raise ConfigError(
                f"parallel_config.use_seq_parallel: {rows // self.micro_batch_num} rows of seq_length {seq_length} can"
                f" not be split evenly over model_parallel {self.model_parallel} ranks"
            )
