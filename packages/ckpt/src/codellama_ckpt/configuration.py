"""A network's configuration as Hugging Face spells it (`config.json`), and the parameters that such a network has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from codellama_ckpt import json_text
from codellama_ckpt.boxes import Shape
from codellama_ckpt.checkpoint import Checkpoint
from codellama_ckpt.errors import CheckpointError

CONFIG = "config"  # key of a checkpoint's metadata: the configuration as JSON
GENERATION_CONFIG = "generation_config"  # likewise, of generation
FILES = {CONFIG: "config.json", GENERATION_CONFIG: "generation_config.json"}  # in a Hugging Face directory
OUTPUT = "lm_head.weight"
EMBEDDING = "model.tok_embeddings.embedding_weight"
_MOST_LAYERS = 10_000
_LAYER = re.compile(r"model\.layers\.([0-9]{1,9})\.")

Configuration = dict[str, object]


def configurations(checkpoint: Checkpoint) -> dict[str, Configuration]:
    """The configurations that come with a checkpoint, in its metadata or as JSON files beside its own.

    Returns:
        What there is of `CONFIG` and `GENERATION_CONFIG`.
    """
    home = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    found = {}
    for key, file in FILES.items():
        if key in checkpoint.metadata:
            found[key] = json_text.parse(checkpoint.metadata[key].encode(), f"{checkpoint.path}: metadata {key!r}")
        elif (home / file).is_file():
            found[key] = json_text.read(home / file)
    return found


def expected_shapes(checkpoint: Checkpoint, config: Configuration | None) -> dict[str, Shape]:
    """Every parameter's name and shape: of the configuration, or where there is none, as the tensors themselves say.

    Raises:
        CheckpointError: the configuration is not one of a Llama network, or the tensors say nothing.
    """
    if config is None:
        return dict(_shapes(*_sizes_of_tensors(checkpoint)))
    where = f"{checkpoint.path}: its configuration"
    hidden, heads = (_size(config, key, where) for key in ("hidden_size", "num_attention_heads"))
    key_heads = _size(config, "num_key_value_heads", where, heads)
    head = _size(config, "head_dim", where, hidden // heads)
    layers = _size(config, "num_hidden_layers", where)
    if layers > _MOST_LAYERS:
        raise CheckpointError(f"{where}: {layers:,} layers, at most {_MOST_LAYERS:,} are taken seriously")
    vocabulary, inner = (_size(config, key, where) for key in ("vocab_size", "intermediate_size"))
    shapes = dict(_shapes(layers, vocabulary, hidden, heads * head, key_heads * head, inner))
    if is_tied(config):
        del shapes[OUTPUT]
    return shapes


def is_tied(config: Configuration | None) -> bool:
    """Whether the output projection is the embedding and has no tensor of its own."""
    return config is not None and config.get("tie_word_embeddings") is True


def config_of_meta(params: Mapping[str, object], shapes: Mapping[str, Shape], where: str) -> Configuration:
    """Meta's `params.json` as a Hugging Face configuration.

    Args:
        params: the content of the file.
        shapes: of the whole tensors, by MindFormers' names; they say what the file leaves open.
        where: names the file in errors.
    """
    hidden, layers, heads = (_size(params, key, where) for key in ("dim", "n_layers", "n_heads"))
    theta = params.get("rope_theta", params.get("rope_freq_base", 1e4))
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not theta > 0:
        raise CheckpointError(f"{where}: rope_theta must be a number above 0, found {theta!r:.80}")
    epsilon = params.get("norm_eps")
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float):
        raise CheckpointError(f"{where}: norm_eps must be a number, found {epsilon!r:.80}")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "vocab_size": shapes[EMBEDDING][0],
        "hidden_size": hidden,
        "intermediate_size": shapes["model.layers.0.feed_forward.w1.weight"][0],
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": _size(params, "n_kv_heads", where, heads),
        "rms_norm_eps": epsilon,
        "rope_theta": float(theta),
        "rope_parameters": {"rope_theta": float(theta), "rope_type": "default"},
        # Code Llama was trained on 16k tokens, Llama 2 on 4k; the file does not say it, its base does.
        "max_position_embeddings": 16384 if theta > 1e4 else 4096,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def as_metadata(found: Mapping[str, Configuration]) -> dict[str, str]:
    """Configurations as text fields of a checkpoint file."""
    return {key: json.dumps(value, ensure_ascii=False) for key, value in found.items()}


def configuration_files(directory: Path, found: Mapping[str, Configuration], dtype: str) -> dict[Path, bytes]:
    """The JSON files of a Hugging Face directory whose weights are of `dtype`, and their contents."""
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **found[CONFIG]}
    # transformers 4 writes torch_dtype, 5 dtype, and both read torch_dtype.
    config |= {key: dtype for key in ("torch_dtype", "dtype") if key in config} or {"torch_dtype": dtype}
    contents = {**found, CONFIG: config}
    return {directory / FILES[key]: (json.dumps(value, indent=2) + "\n").encode() for key, value in contents.items()}


def _shapes(
    layers: int, vocabulary: int, hidden: int, queries: int, keys: int, inner: int
) -> Iterator[tuple[str, Shape]]:
    yield EMBEDDING, (vocabulary, hidden)
    for layer in range(layers):
        start = f"model.layers.{layer}."
        yield start + "attention.wq.weight", (queries, hidden)
        yield start + "attention.wk.weight", (keys, hidden)
        yield start + "attention.wv.weight", (keys, hidden)
        yield start + "attention.wo.weight", (hidden, queries)
        yield start + "feed_forward.w1.weight", (inner, hidden)
        yield start + "feed_forward.w2.weight", (hidden, inner)
        yield start + "feed_forward.w3.weight", (inner, hidden)
        yield start + "attention_norm.weight", (hidden,)
        yield start + "ffn_norm.weight", (hidden,)
    yield "model.norm_out.weight", (hidden,)
    yield OUTPUT, (vocabulary, hidden)


def _sizes_of_tensors(checkpoint: Checkpoint) -> tuple[int, int, int, int, int, int]:
    """Layers, vocabulary, hidden, query, key and feed-forward widths, as the first tensor concerned has them."""
    named = {"embedding": EMBEDDING, "queries": "attention.wq.weight", "keys": "attention.wk.weight"}
    named["inner"] = "feed_forward.w1.weight"
    rows = {}
    for what, suffix in named.items():
        name = next((name for name in checkpoint if name.endswith(suffix)), None)
        if name is None or len(checkpoint.shape(name)) != 2:
            raise CheckpointError(
                f"{checkpoint.path} has no usable tensor {suffix!r}, and no {FILES[CONFIG]} beside it says the sizes"
            )
        rows[what] = checkpoint.shape(name)
    layers = 1 + max((int(match[1]) for name in checkpoint if (match := _LAYER.match(name))), default=-1)
    if layers > len(checkpoint):
        raise CheckpointError(f"{checkpoint.path}: a layer {layers - 1:,} among {len(checkpoint)} tensors")
    vocabulary, hidden = rows["embedding"]
    return layers, vocabulary, hidden, rows["queries"][0], rows["keys"][0], rows["inner"][0]


def _size(values: Mapping[str, object], key: str, where: str, default: int | None = None) -> int:
    value = values.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
        raise CheckpointError(f"{where}: {key} must be a whole number above 0, found {value!r:.80}")
    return value
