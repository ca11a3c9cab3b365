"""Low-rank adapters as arrays: their names and shapes, and the files that hold them.

r is the rank, `in` and `out` the sides of the adapted matrix. A is `lora_a` [r, in], B is `lora_b` [out, r]; they are
named after the matrix that they adapt: `model.layers.0.attention.wq.lora_a`. Files: our own checkpoints of LoRA runs,
and PEFT's directories.

A PEFT directory holds `adapter_config.json` and `adapter_model.safetensors`; its matrices are named
`base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight` (peft 0.21, checked against it in the tests).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from codellama_ckpt import Checkpoint, TensorEntry, open_checkpoint, to_hugging_face, to_mindformers, write_safetensors
from codellama_ckpt.configuration import CONFIG
from codellama_model.config import LlamaConfig
from numpy.typing import NDArray

from codellama_app.checkpoint_sizes import checkpoint_sizes, weights_path
from codellama_app.command import UserError

LORA_KEY = "lora"  # of a checkpoint's metadata: `AdapterConfig` as JSON
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."
_HOME = dict.fromkeys(("wq", "wk", "wv", "wo"), "attention") | dict.fromkeys(("w1", "w2", "w3"), "feed_forward")
_SIDES = {"lora_a": "lora_A", "lora_b": "lora_B"}
_BACK = {theirs: ours for ours, theirs in _SIDES.items()}


def adapter_shapes(config: LlamaConfig, rank: int, targets: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Every adapter matrix's name and shape."""
    shapes: dict[str, tuple[int, int]] = {}
    weights = config.parameter_shapes()
    for layer in range(config.num_layers):
        for target in targets:
            stem = f"model.layers.{layer}.{_HOME[target]}.{target}"
            outputs, inputs = weights[f"{stem}.weight"]
            shapes[f"{stem}.lora_a"] = (rank, inputs)
            shapes[f"{stem}.lora_b"] = (outputs, rank)
    return shapes


def random_adapters(shapes: Mapping[str, tuple[int, int]], seed: int) -> dict[str, NDArray[np.float32]]:
    """Adapters that change nothing yet: A uniform within in^-1/2 (peft's start), B 0."""
    rng = np.random.default_rng(seed)
    tree = {}
    for name, shape in shapes.items():
        bound = shape[1] ** -0.5 if name.endswith(".lora_a") else 0.0
        tree[name] = rng.uniform(-bound, bound, shape).astype(np.float32)
    return tree


@dataclass(frozen=True)
class AdapterConfig:
    """What the matrices alone do not say.

    Attributes:
        rank, alpha: the product B A is scaled by alpha / rank.
        targets: MindFormers' names of the adapted matrices (`wq`, ...).
        base: the checkpoint that they were trained on, as it was given; None where nobody said.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    base: str | None = None

    @property
    def scale(self) -> float:
        """Of the product B A."""
        return self.alpha / self.rank

    def to_json(self) -> str:
        """For a checkpoint's metadata."""
        return json.dumps({"rank": self.rank, "alpha": self.alpha, "targets": self.targets, "base": self.base})


@dataclass(frozen=True)
class Adapters:
    """Adapters in a file: their configuration, and each matrix when it is asked for."""

    config: AdapterConfig
    shapes: Mapping[str, tuple[int, ...]]
    checkpoint: Checkpoint
    names: Mapping[str, str]  # ours to the file's

    def read(self, name: str) -> NDArray[np.float32]:
        """A matrix by our name, float32."""
        return self.checkpoint.read(self.names[name], dtype="float32")


def open_adapters(path: Path) -> Adapters:
    """Opens a LoRA run's directory, one of its checkpoints, or a PEFT directory.

    Raises:
        CheckpointError: nothing there, or damaged.
        UserError: no adapters, or of a kind that is not supported.
    """
    if (path / PEFT_CONFIG).is_file():
        return _open_peft(path)
    checkpoint = open_checkpoint(weights_path(path))
    if LORA_KEY not in checkpoint.metadata:
        raise UserError(f"{path} holds no adapters: expected a LoRA run, its checkpoint, or a PEFT directory")
    values = json.loads(checkpoint.metadata[LORA_KEY])
    config = AdapterConfig(values["rank"], values["alpha"], tuple(values["targets"]), values["base"])
    names = {name: name for name in checkpoint}
    return Adapters(config, {name: checkpoint.shape(name) for name in names}, checkpoint, names)


def read_adapters(path: Path, expected: Mapping[str, Sequence[int]], scale: float) -> dict[str, NDArray[np.float32]]:
    """The matrices of adapters that must be exactly these, scaled alike.

    Raises:
        UserError: others.
    """
    adapters = open_adapters(path)
    found = dict(adapters.shapes)
    wanted = {name: tuple(shape) for name, shape in expected.items()}
    if found != wanted:
        name = next(name for name in {**wanted, **found} if found.get(name) != wanted.get(name))
        raise UserError(
            f"lora.adapter_path {path}: {name} is {found.get(name, 'not there')}, lora.rank and lora.targets make it"
            f" {wanted.get(name, 'none')}; its own are rank {adapters.config.rank},"
            f" targets {','.join(adapters.config.targets)}"
        )
    if adapters.config.scale != scale:
        raise UserError(
            f"lora.adapter_path {path} has alpha {adapters.config.alpha:g} at rank {adapters.config.rank}: give"
            f" lora.alpha {adapters.config.alpha:g}"
        )
    return {name: adapters.read(name) for name in expected}


def write_peft(adapters: Adapters, directory: Path) -> None:
    """Writes a PEFT directory, which `peft.PeftModel.from_pretrained` loads.

    Raises:
        UserError: the directory exists.
        CheckpointError: a failing write.
    """
    if directory.exists():
        raise UserError(f"{directory} exists; give a directory that is new")
    directory.mkdir(parents=True)
    entries = [
        TensorEntry(_peft_name(name), "float32", tuple(shape), lambda name=name: adapters.read(name))  # type: ignore[misc]
        for name, shape in adapters.shapes.items()
    ]
    write_safetensors(directory / PEFT_WEIGHTS, entries, {"format": "pt"})
    config = adapters.config
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(_their_target(target) for target in config.targets),
    }
    (directory / PEFT_CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def merge_adapters(base: Path, adapters: Adapters, output: Path) -> None:
    """Writes the base with W + alpha / r * B A in the place of every adapted W, one tensor in memory at a time.

    Args:
        base: a checkpoint of any kind.
        adapters: of its matrices.
        output: a `.safetensors` file, in float32, with MindFormers' names and the network's sizes where they are known.

    Raises:
        UserError: a wrong name for the output, or adapters of another network.
        CheckpointError: the base can not be read, or a failing write.
    """
    if output.suffix != ".safetensors" or not output.parent.is_dir():
        raise UserError(f"--output_path {output}: expected a .safetensors file in a folder that exists")
    checkpoint = open_checkpoint(weights_path(base))
    stems = dict.fromkeys(name.rpartition(".")[0] for name in adapters.shapes)
    for stem in stems:
        inputs, outputs = adapters.shapes[f"{stem}.lora_a"][1], adapters.shapes[f"{stem}.lora_b"][0]
        weight = f"{stem}.weight"
        if weight not in checkpoint or checkpoint.shape(weight) != (outputs, inputs):
            raise UserError(f"{base}: {weight} is not [{outputs}, {inputs}], which these adapters were trained on")

    def load(name: str) -> NDArray[np.float32]:
        weight = checkpoint.read(name, dtype="float32")
        stem = name.removesuffix(".weight")
        if stem in stems:
            weight += np.float32(adapters.config.scale) * (
                adapters.read(f"{stem}.lora_b") @ adapters.read(f"{stem}.lora_a")
            )
        return weight

    entries = [
        TensorEntry(name, "float32", checkpoint.shape(name), lambda name=name: load(name))  # type: ignore[misc]
        for name in checkpoint
    ]
    sizes = checkpoint_sizes(base)
    metadata = {} if sizes is None else {CONFIG: json.dumps(sizes.to_hugging_face())}
    write_safetensors(output, entries, metadata)


def _open_peft(path: Path) -> Adapters:
    try:
        values = json.loads((path / PEFT_CONFIG).read_text(encoding="utf-8"))
        rank, alpha, kind = int(values["r"]), float(values["lora_alpha"]), values["peft_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / PEFT_CONFIG} is no configuration of PEFT's ({error})") from None
    # each of these changes what the matrices mean
    special = (
        "use_dora",
        "use_rslora",
        "fan_in_fan_out",
        "rank_pattern",
        "alpha_pattern",
        "modules_to_save",
        "lora_bias",
    )
    odd = [key for key in special if values.get(key)]
    if kind != "LORA" or odd or values.get("bias", "none") != "none":
        raise UserError(f"{path}: {', '.join(odd) or kind} of PEFT is not supported, only plain LoRA without biases")
    checkpoint = open_checkpoint(path / PEFT_WEIGHTS)
    names = {_our_name(name, path): name for name in checkpoint}
    targets = tuple(dict.fromkeys(name.rsplit(".", 2)[1] for name in names))
    config = AdapterConfig(rank, alpha, targets, values.get("base_model_name_or_path"))
    return Adapters(config, {ours: checkpoint.shape(theirs) for ours, theirs in names.items()}, checkpoint, names)


def _our_name(theirs: str, path: Path) -> str:
    stem, _, side = theirs.removesuffix(".weight").rpartition(".")
    if not theirs.startswith(_PEFT_PREFIX) or side not in _BACK:
        raise UserError(f"{path / PEFT_WEIGHTS}: {theirs} is no adapter of a Llama's linear layer")
    ours = to_mindformers(f"{stem.removeprefix(_PEFT_PREFIX)}.weight")
    return f"{ours.removesuffix('.weight')}.{_BACK[side]}"


def _peft_name(ours: str) -> str:
    stem, _, side = ours.rpartition(".")
    theirs = to_hugging_face(f"{stem}.weight").removesuffix(".weight")
    return f"{_PEFT_PREFIX}{theirs}.{_SIDES[side]}.weight"


def _their_target(target: str) -> str:
    return to_hugging_face(f"model.layers.0.{_HOME[target]}.{target}.weight").split(".")[-2]
