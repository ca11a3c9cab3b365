"""The run configuration: typed sections, filled by a YAML file, overridden key by key from the command line.

Unknown keys, wrong types and impossible values are errors that name the key, before anything is loaded. Values from the
command line are text; they are converted by the field's type ("1e-4" is a number for a float, in YAML files too).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from codellama_model.config import ConfigError, LlamaConfig, preset
from codellama_parallel.strategy import ParallelConfig
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass


def _number(value: object) -> object:
    if isinstance(value, bool):  # which Python, and so pydantic, takes for 0 and 1
        raise ValueError("must be a number")
    return value


def _names(value: object) -> object:
    """`wq,wv`, as on a command line, is a list too."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _offsets(value: object) -> object:
    """`pipeline_offset: 1,-1`, as on a command line, is a list too."""
    if not isinstance(value, Mapping) or not isinstance(value.get("pipeline_offset"), str):
        return value
    text = value["pipeline_offset"]
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"parallel_config.pipeline_offset must be 0 or whole numbers like 1,-1, found {text!r}"
        ) from None
    return {**value, "pipeline_offset": numbers if "," in text else numbers[0]}


_STRICT_KEYS = ConfigDict(extra="forbid", allow_inf_nan=False)
_Number = BeforeValidator(_number)
PositiveInt = Annotated[int, Field(gt=0), _Number]
Count = Annotated[int, Field(ge=0), _Number]
Positive = Annotated[float, Field(gt=0), _Number]
NotNegative = Annotated[float, Field(ge=0), _Number]
Share = Annotated[float, Field(ge=0, le=1), _Number]
Below1 = Annotated[float, Field(ge=0, lt=1), _Number]


@dataclass(frozen=True, config=_STRICT_KEYS)
class DatasetConfig:
    """What to train on: MindRecord files, or a corpus of text from which they are made.

    Args:
        train_dataset_dir: MindRecord file, partitions or folder with rows of seq_length + 1 ids; None makes one of
            `corpus`.
        eval_dataset_dir: the same for the held-out loss; None with `train_dataset_dir` means no held-out loss.
        corpus: "stdlib" (the running Python's standard library), a folder, a glob or a file.
        seq_length: tokens a row is trained on, S.
        batch_size: rows of a micro-batch, B; a step takes `gradient_accumulation_steps` of them.
        fim_rate: share of documents turned into fill-in-the-middle (paper: 0.9).
        fim_spm_rate: share of those in suffix-prefix-middle order (paper: 0.5).
        eval_share: share of the corpus's files that is held out.
        eval_rows: how many held-out rows a validation scores at most.
    """

    train_dataset_dir: str | None = None
    eval_dataset_dir: str | None = None
    corpus: str = "stdlib"
    seq_length: PositiveInt = 4096
    batch_size: PositiveInt = 1
    fim_rate: Share = 0.9
    fim_spm_rate: Share = 0.5
    eval_share: Annotated[float, Field(gt=0, lt=1), _Number] = 0.1
    eval_rows: PositiveInt = 400


@dataclass(frozen=True, config=_STRICT_KEYS)
class TokenizerConfig:
    """Which SentencePiece model: a file, or None to train one on the corpus."""

    model_file: str | None = None


@dataclass(frozen=True, config=_STRICT_KEYS)
class OptimizerConfig:
    """AdamW, float32 moments, Llama 2's values; norms do not decay; `max_grad_norm` clips the gradients' joint norm."""

    learning_rate: Positive = 1e-5
    beta1: Below1 = 0.9
    beta2: Below1 = 0.95
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.0
    max_grad_norm: Positive = 1.0


@dataclass(frozen=True, config=_STRICT_KEYS)
class ScheduleConfig:
    """Learning rate over the steps: a linear warm-up, then down to `lr_end_ratio` of the peak.

    The warm-up takes `warmup_steps`, or where that is None `warmup_ratio` of all steps.
    """

    type: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: Count | None = None
    warmup_ratio: Share = 0.03
    lr_end_ratio: Share = 0.0


@dataclass(frozen=True, config=_STRICT_KEYS)
class LossScaleConfig:
    """Dynamic loss scaling of float16 runs: divided by `factor` on overflow, times it after `window` good steps."""

    initial: Annotated[float, Field(ge=1), _Number] = 65536.0
    factor: Annotated[float, Field(gt=1), _Number] = 2.0
    window: PositiveInt = 1000


@dataclass(frozen=True, config=_STRICT_KEYS)
class LoraConfig:
    """Low-rank adapters (arXiv:2106.09685): only they train and are saved.

    Args:
        rank: r; None trains the whole network.
        alpha: the adapters' product is scaled by alpha / rank.
        targets: matrices of every layer that get an adapter.
        adapter_path: adapters to start from: a LoRA run, one of its checkpoints or a PEFT directory.
    """

    rank: PositiveInt | None = None
    alpha: Positive = 16.0
    targets: Annotated[
        tuple[Literal["wq", "wk", "wv", "wo", "w1", "w2", "w3"], ...], Field(min_length=1), BeforeValidator(_names)
    ] = ("wq", "wv")
    adapter_path: str | None = None


@dataclass(frozen=True, config=_STRICT_KEYS)
class GenerationConfig:
    """Defaults of prediction."""

    max_new_tokens: PositiveInt = 256
    batch_size: PositiveInt = 8


@dataclass(frozen=True, config=_STRICT_KEYS)
class RunConfig:
    """One run.

    `model` holds `preset: NAME` and any keys of `LlamaConfig` over it; the name `checkpoint` means the sizes of
    `load_checkpoint`.

    Args:
        run_mode: "train" starts from random weights, "finetune" from `load_checkpoint`; "predict" does not train.
        output_dir: the run's directory.
        load_checkpoint: any checkpoint that `codellama_ckpt.open_checkpoint` reads.
        resume_training: go on from the newest checkpoint in `output_dir`, exactly; from the start where there is none.
        resume_anyway: go on although the configuration differs from the checkpoint's.
        seed: of weights, data order and fill-in-the-middle.
        max_steps, epochs: optimizer steps, passes over the data; the run ends with whichever ends first.
        gradient_accumulation_steps: micro-batches whose gradients add up to one step; times
            `parallel_config.micro_batch_num`, which means the same.
        compute_dtype: of training's matrix products, where the device has it; else float32, which the run says at its
            start. `codellama-plan` counts a network's bytes in it. Prediction takes `codellama-predict --compute_dtype`
            and `--weight_dtype`.
        recompute: drop what a layer computes and compute it again in the backward pass: less memory, more time. The
            same as `parallel_config.recompute: full`.
        z_loss: weight of the squared logarithm of the softmax's denominator (PaLM, arXiv:2204.02311, section 5).
        save_steps, save_minutes: a checkpoint every so many steps, and every so many minutes; one at the end always.
        keep_last: how many of the newest checkpoints to keep; None keeps all.
        keep_best: how many of those with the lowest validation loss to keep besides.
        eval_steps: a validation every so many steps; None validates at the end only.
        tensorboard: also write the metrics for TensorBoard, into `tensorboard/` of the run's directory.
    """

    model: dict[str, Any] = dataclasses.field(default_factory=lambda: {"preset": "codellama_7b"})
    run_mode: Literal["train", "finetune", "predict"] = "train"
    output_dir: str = "output"
    load_checkpoint: str | None = None
    resume_training: bool = False
    resume_anyway: bool = False
    seed: Count = 0
    max_steps: PositiveInt | None = None
    epochs: PositiveInt | None = None
    gradient_accumulation_steps: PositiveInt = 1
    compute_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    recompute: bool = False
    z_loss: NotNegative = 0.0
    save_steps: PositiveInt = 1000
    save_minutes: Positive | None = None
    keep_last: PositiveInt | None = None
    keep_best: Count = 0
    eval_steps: PositiveInt | None = None
    tensorboard: bool = False
    dataset: DatasetConfig = dataclasses.field(default_factory=DatasetConfig)
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    lr_schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    loss_scale: LossScaleConfig = dataclasses.field(default_factory=LossScaleConfig)
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    parallel_config: Annotated[ParallelConfig, BeforeValidator(_offsets)] = dataclasses.field(
        default_factory=ParallelConfig
    )
    generation: GenerationConfig = dataclasses.field(default_factory=GenerationConfig)

    def __post_init__(self) -> None:
        llama = self.llama()  # refuses impossible sizes at once
        if self.run_mode == "finetune" and not self.load_checkpoint:
            raise ConfigError("run_mode finetune starts from a checkpoint: give load_checkpoint")
        if self.run_mode == "train" and self.load_checkpoint:
            raise ConfigError("load_checkpoint needs run_mode finetune; run_mode train starts from random weights")
        if self.lora.rank is not None and self.run_mode != "finetune":
            raise ConfigError(f"lora.rank {self.lora.rank} needs run_mode finetune: adapters belong to trained weights")
        if self.lora.adapter_path is not None and self.lora.rank is None:
            raise ConfigError("lora.adapter_path needs lora.rank, that of the adapters")
        if self.dataset.seq_length > llama.max_position_embedding:
            raise ConfigError(
                f"dataset.seq_length {self.dataset.seq_length} exceeds"
                f" model.max_position_embedding {llama.max_position_embedding}"
            )
        warmup = self.lr_schedule.warmup_steps
        if warmup is not None and self.max_steps is not None and warmup > self.max_steps:
            raise ConfigError(f"lr_schedule.warmup_steps {warmup} exceeds max_steps {self.max_steps}")
        if self.keep_best and (self.eval_steps is None or self.save_steps % self.eval_steps):
            raise ConfigError(
                f"keep_best {self.keep_best} compares checkpoints by their validation loss: save_steps"
                f" {self.save_steps} must be a multiple of eval_steps, found {self.eval_steps}"
            )
        if self.keep_best and self.keep_last is None:
            raise ConfigError(f"keep_best {self.keep_best} needs keep_last: without it every checkpoint is kept")

    @property
    def strategy(self) -> ParallelConfig:
        """`parallel_config` with what other keys say of the same."""
        return dataclasses.replace(
            self.parallel_config,
            micro_batch_num=self.parallel_config.micro_batch_num * self.gradient_accumulation_steps,
            recompute="full" if self.recompute else self.parallel_config.recompute,
        )

    @property
    def step_rows(self) -> int:
        """Rows of a step, over all processes."""
        return self.dataset.batch_size * self.strategy.micro_batch_num * self.parallel_config.data_parallel

    def check_job(self, size: int) -> None:
        """Refuses what a job of so many processes can not do.

        Raises:
            ConfigError: with the reason.
        """
        if self.run_mode == "predict":
            raise ConfigError("run_mode predict is for codellama-predict: to train, give run_mode train or finetune")
        strategy = self.strategy
        if strategy.device_num != size and size == 1:
            raise ConfigError(
                f"parallel_config asks for {strategy.device_num} processes: give --worker_num {strategy.device_num}, or"
                " set data_parallel, model_parallel and pipeline_stage to 1"
            )
        strategy.check(self.llama(), size)
        strategy.check_batch(self.dataset.batch_size * strategy.micro_batch_num, self.dataset.seq_length)
        if size > 1 and self.lora.rank is not None:
            raise ConfigError(f"lora.rank {self.lora.rank}: adapters train in one process; leave --worker_num out")

    def llama(self) -> LlamaConfig:
        """The network's sizes."""
        values = dict(self.model)
        name = values.pop("preset", None)
        base = LlamaConfig() if name is None else self._of_checkpoint() if name == "checkpoint" else preset(str(name))
        fields = {field.name: field.type for field in dataclasses.fields(LlamaConfig)}
        for key, value in values.items():
            if key not in fields:
                raise ConfigError(f"unknown key 'model.{key}'; known: preset, {', '.join(fields)}")
            values[key] = _convert(f"model.{key}", value, str(fields[key]))
        return dataclasses.replace(base, **values)

    def _of_checkpoint(self) -> LlamaConfig:
        from codellama_app.checkpoint_sizes import checkpoint_sizes  # noqa: PLC0415  (reads files, for this one preset)

        sizes = checkpoint_sizes(Path(self.load_checkpoint)) if self.load_checkpoint else None
        if sizes is None:
            raise ConfigError(
                f"model.preset checkpoint: load_checkpoint {self.load_checkpoint} does not say the network's sizes; put"
                " its config.json beside it, or give a preset"
            )
        return sizes

    def to_yaml(self) -> str:
        """The configuration as a file that `load_config` reads back."""
        values = dataclasses.asdict(self)
        values["model"] = self.llama().to_dict()
        values["lora"]["targets"] = list(self.lora.targets)
        return yaml.safe_dump(values, sort_keys=False)


def load_config(name_or_file: str, overrides: Sequence[tuple[str, str]] = ()) -> RunConfig:
    """The configuration of that name (package data) or file, with `overrides` ("optimizer.learning_rate", "1e-4").

    Raises:
        ConfigError: no such configuration, no YAML, an unknown key, a wrong type, an impossible value; names the key.
    """
    values = _read(name_or_file)
    for key, text in overrides:
        _set(values, key, text)
    try:
        return TypeAdapter(RunConfig).validate_python(values)
    except ValidationError as error:
        raise ConfigError(f"configuration {name_or_file}: {_first_fault(error)}") from None


def config_names() -> list[str]:
    """The configurations that ship with the package."""
    return sorted(path.name.removesuffix(".yaml") for path in _folder().iterdir() if path.name.endswith(".yaml"))


def _folder() -> Any:
    return resources.files("codellama_app") / "configs"


def _read(name_or_file: str) -> dict[str, Any]:
    if name_or_file in config_names():
        text = (_folder() / f"{name_or_file}.yaml").read_text(encoding="utf-8")
    elif Path(name_or_file).is_file():
        try:
            text = Path(name_or_file).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ConfigError(f"configuration {name_or_file} is no UTF-8 text") from None
    else:
        raise ConfigError(f"no configuration {name_or_file!r}: neither a file nor one of {', '.join(config_names())}")
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise ConfigError(f"configuration {name_or_file} is no YAML: {where}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"configuration {name_or_file} must be a table of keys, found {type(values).__name__}")
    return values


class _Loader(yaml.SafeLoader):
    """YAML's safe types, and no key twice: YAML would take the last one without a word."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[object] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", key_node.start_mark)
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _set(values: dict[str, Any], key: str, text: str) -> None:
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"unknown key {key!r}: {section!r} is no section")
    values[last] = None if text in {"None", "null"} else text


def _convert(key: str, value: object, annotation: str) -> object:
    """`value`, text where it comes from a command line, as the field's annotation says."""
    if not isinstance(value, str):
        return (
            float(value) if annotation == "float" and isinstance(value, int) and not isinstance(value, bool) else value
        )
    types: Mapping[str, Any] = {"int": int, "float": float, "bool": bool, "int | None": int | None}
    try:
        return TypeAdapter(types[annotation]).validate_python(value)
    except ValidationError:
        raise ConfigError(f"{key} must be {annotation}, found {value!r}") from None


def _first_fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "unexpected_keyword_argument":
        section: Any = RunConfig
        for part in fault["loc"][:-1]:
            section = next(f.default_factory for f in dataclasses.fields(section) if f.name == part)
        return f"unknown key {key!r}; known: {', '.join(field.name for field in dataclasses.fields(section))}"
    if not key:
        return fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "dataclass_type":
        return f"{key} must be a table of keys, found {fault['input']!r}"
    if fault["type"] == "value_error":
        return f"{key} {fault['msg'].removeprefix('Value error, ')}, found {fault['input']!r}"
    return f"{key}: {fault['msg'][0].lower()}{fault['msg'][1:]}, found {fault['input']!r}"
