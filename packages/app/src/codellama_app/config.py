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
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

_STRICT_KEYS = ConfigDict(extra="forbid")
PositiveInt = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=_STRICT_KEYS)
class DatasetConfig:
    """What to train on: MindRecord files, or a corpus of text from which they are made.

    Args:
        train_dataset_dir: MindRecord file, partitions or folder with rows of seq_length + 1 ids; None makes one of
            `corpus`.
        eval_dataset_dir: the same for the held-out loss; None with `train_dataset_dir` means no held-out loss.
        corpus: "stdlib" (the running Python's standard library), a folder, a glob or a file.
        seq_length: tokens a row is trained on, S.
        batch_size: rows a step, B.
        fim_rate: share of documents turned into fill-in-the-middle (paper: 0.9).
        fim_spm_rate: share of those in suffix-prefix-middle order (paper: 0.5).
        eval_share: share of the corpus's files that is held out.
        eval_rows: how many held-out rows are scored at the end.
    """

    train_dataset_dir: str | None = None
    eval_dataset_dir: str | None = None
    corpus: str = "stdlib"
    seq_length: PositiveInt = 4096
    batch_size: PositiveInt = 1
    fim_rate: Share = 0.9
    fim_spm_rate: Share = 0.5
    eval_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    eval_rows: PositiveInt = 400


@dataclass(frozen=True, config=_STRICT_KEYS)
class TokenizerConfig:
    """Which SentencePiece model: a file, or None to train one on the corpus."""

    model_file: str | None = None


@dataclass(frozen=True, config=_STRICT_KEYS)
class OptimizerConfig:
    """AdamW, Llama 2's values; `max_grad_norm` clips the gradients' joint norm."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0


@dataclass(frozen=True, config=_STRICT_KEYS)
class ScheduleConfig:
    """Learning rate over the steps: linear warm-up over `warmup_ratio` of them, then to `lr_end_ratio` of the peak."""

    type: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: Share = 0.03
    lr_end_ratio: Share = 0.0


@dataclass(frozen=True, config=_STRICT_KEYS)
class GenerationConfig:
    """Defaults of prediction."""

    max_new_tokens: PositiveInt = 256
    batch_size: PositiveInt = 8


@dataclass(frozen=True, config=_STRICT_KEYS)
class RunConfig:
    """One run. `model` holds `preset: NAME` and any keys of `LlamaConfig` over it.

    Args:
        run_mode: "train" starts from random weights, "finetune" from `load_checkpoint`.
        output_dir: the run's directory.
        load_checkpoint: any checkpoint that `codellama_ckpt.open_checkpoint` reads.
        seed: of weights, data order and fill-in-the-middle.
        max_steps: optimizer steps.
        save_steps: a checkpoint every so many steps, and one at the end.
    """

    model: dict[str, Any] = dataclasses.field(default_factory=lambda: {"preset": "codellama_7b"})
    run_mode: Literal["train", "finetune"] = "train"
    output_dir: str = "output"
    load_checkpoint: str | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    max_steps: PositiveInt = 1000
    save_steps: PositiveInt = 1000
    dataset: DatasetConfig = dataclasses.field(default_factory=DatasetConfig)
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    lr_schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    generation: GenerationConfig = dataclasses.field(default_factory=GenerationConfig)

    def __post_init__(self) -> None:
        self.llama()  # refuses impossible sizes at once
        if self.run_mode == "finetune" and not self.load_checkpoint:
            raise ConfigError("run_mode finetune starts from a checkpoint: give load_checkpoint")
        if self.run_mode == "train" and self.load_checkpoint:
            raise ConfigError("load_checkpoint needs run_mode finetune; run_mode train starts from random weights")
        if self.dataset.seq_length > self.llama().max_position_embedding:
            raise ConfigError(
                f"dataset.seq_length {self.dataset.seq_length} exceeds"
                f" model.max_position_embedding {self.llama().max_position_embedding}"
            )

    def llama(self) -> LlamaConfig:
        """The network's sizes."""
        values = dict(self.model)
        base = preset(str(values.pop("preset"))) if "preset" in values else LlamaConfig()
        fields = {field.name: field.type for field in dataclasses.fields(LlamaConfig)}
        for key, value in values.items():
            if key not in fields:
                raise ConfigError(f"unknown key 'model.{key}'; known: preset, {', '.join(fields)}")
            values[key] = _convert(f"model.{key}", value, str(fields[key]))
        return dataclasses.replace(base, **values)

    def to_yaml(self) -> str:
        """The configuration as a file that `load_config` reads back."""
        values = dataclasses.asdict(self)
        values["model"] = self.llama().to_dict()
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
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise ConfigError(f"configuration {name_or_file} is no YAML: {where}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"configuration {name_or_file} must be a table of keys, found {type(values).__name__}")
    return values


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
    return f"{key}: {fault['msg'][0].lower()}{fault['msg'][1:]}, found {fault['input']!r}"
