"""Sizes of the network: `LlamaConfig`, the published presets, and the Hugging Face spelling of both.

Plain Python: nothing here imports MindSpore, so planning, converting and scoring tools can read a configuration in
milliseconds. What a run does with a network (batch size, learning rate, devices) is not here but in `codellama_app`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Union

JsonValue = Union[None, bool, int, float, str, list["JsonValue"], dict[str, "JsonValue"]]  # noqa: UP007  (recursive, on 3.10)


class ConfigError(ValueError):
    """A configuration names an impossible or unknown value. The message names the key."""


@dataclass(frozen=True)
class LlamaConfig:
    """Architecture of one Llama network. Names are MindFormers' (`LlamaConfig` of release 1.2).

    Args:
        vocab_size: rows of the embedding, V.
        hidden_size: width of the residual stream, H.
        num_layers: decoder layers.
        num_heads: query heads, N. `hidden_size` must be a multiple, unless `head_dim` is given.
        n_kv_heads: key/value heads, K; None means `num_heads` (multi-head attention). Must divide `num_heads`.
        intermediate_size: width of the feed-forward, F.
        head_dim: width of one head, D; None means `hidden_size // num_heads`. Must be even (rotary halves).
        max_position_embedding: longest sequence, in tokens.
        rms_norm_eps: epsilon inside the root of RMSNorm.
        theta: base of the rotary frequencies (1e6 for Code Llama, 1e4 for Llama 2).
        tie_word_embeddings: the output projection is the embedding matrix.
        bos_token_id, eos_token_id, pad_token_id: ids; `pad_token_id` None means that there is none.

    Raises:
        ConfigError: a value is impossible; the message names the key.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    num_layers: int = 32
    num_heads: int = 32
    n_kv_heads: int | None = None
    intermediate_size: int = 11008
    head_dim: int | None = None
    max_position_embedding: int = 16384
    rms_norm_eps: float = 1e-5
    theta: float = 1e6
    tie_word_embeddings: bool = False
    bos_token_id: int = 1
    eos_token_id: int = 2
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        for key in (
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_heads",
            "intermediate_size",
            "max_position_embedding",
        ):
            _require_positive_int(key, getattr(self, key))
        for key in ("n_kv_heads", "head_dim"):
            if getattr(self, key) is not None:
                _require_positive_int(key, getattr(self, key))
        for key in ("rms_norm_eps", "theta"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise ConfigError(f"{key} must be a finite number above 0, found {value!r}")
        if not isinstance(self.tie_word_embeddings, bool):
            raise ConfigError(f"tie_word_embeddings must be true or false, found {self.tie_word_embeddings!r}")
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, key)
            if value is None and key == "pad_token_id":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < self.vocab_size:
                raise ConfigError(f"{key} must be an id below vocab_size {self.vocab_size}, found {value!r}")
        if self.head_dim is None and self.hidden_size % self.num_heads:
            raise ConfigError(f"num_heads {self.num_heads} does not divide hidden_size {self.hidden_size}")
        if self.num_heads % self.kv_heads:
            raise ConfigError(f"n_kv_heads {self.kv_heads} does not divide num_heads {self.num_heads}")
        if self.head_size % 2:
            raise ConfigError(f"head_dim must be even for rotary embeddings, found {self.head_size}")

    @property
    def kv_heads(self) -> int:
        """Key/value heads, K."""
        return self.num_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def head_size(self) -> int:
        """Width of one head, D."""
        return self.hidden_size // self.num_heads if self.head_dim is None else self.head_dim

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter's name (MindFormers') and shape, in the order of the network."""
        hidden, ffn = self.hidden_size, self.intermediate_size
        query, key_value = self.num_heads * self.head_size, self.kv_heads * self.head_size
        shapes: dict[str, tuple[int, ...]] = {"model.tok_embeddings.embedding_weight": (self.vocab_size, hidden)}
        for index in range(self.num_layers):
            layer = f"model.layers.{index}"
            shapes |= {
                f"{layer}.attention_norm.weight": (hidden,),
                f"{layer}.attention.wq.weight": (query, hidden),
                f"{layer}.attention.wk.weight": (key_value, hidden),
                f"{layer}.attention.wv.weight": (key_value, hidden),
                f"{layer}.attention.wo.weight": (hidden, query),
                f"{layer}.ffn_norm.weight": (hidden,),
                f"{layer}.feed_forward.w1.weight": (ffn, hidden),
                f"{layer}.feed_forward.w3.weight": (ffn, hidden),
                f"{layer}.feed_forward.w2.weight": (hidden, ffn),
            }
        shapes["model.norm_out.weight"] = (hidden,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, hidden)
        return shapes

    def num_parameters(self) -> int:
        """Trainable numbers in the network."""
        total = 0
        for shape in self.parameter_shapes().values():
            size = 1
            for side in shape:
                size *= side
            total += size
        return total

    def flops_per_token(self, seq_length: int) -> int:
        """Floating-point operations of one token's forward and backward pass at this sequence length.

        6 per weight of a matrix product (the embedding look-up is none), plus attention's two products over a causal
        context of `seq_length` / 2 on average (PaLM, arXiv:2204.02311, appendix B).
        """
        weights = self.num_parameters()
        if not self.tie_word_embeddings:
            weights -= self.vocab_size * self.hidden_size
        return 6 * weights + 6 * self.num_layers * self.num_heads * self.head_size * seq_length

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> LlamaConfig:
        """Builds a configuration from MindFormers' names; an unknown key is a `ConfigError` that names it."""
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(f"unknown key {key!r} in the model configuration; known keys: {', '.join(known)}")
        return cls(**values)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, JsonValue]:
        """The inverse of `from_dict`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_hugging_face(cls, values: Mapping[str, object]) -> LlamaConfig:
        """Reads the content of a Hugging Face `config.json` of a Llama model, of transformers 4 or 5.

        Raises:
            ConfigError: another architecture, or a feature that Code Llama has not (biases, scaled rotary
                frequencies, another activation).
        """
        model_type = values.get("model_type")
        if model_type != "llama":
            raise ConfigError(f"model_type must be 'llama', found {model_type!r}")
        refused: tuple[tuple[str, tuple[object, ...]], ...] = (
            ("hidden_act", (None, "silu")),
            ("attention_bias", (None, False)),
            ("mlp_bias", (None, False)),
        )
        for key, allowed in refused:
            if values.get(key) not in allowed:
                raise ConfigError(f"{key} {values[key]!r} is not supported; expected {allowed[-1]!r}")
        rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
        if not isinstance(rope, Mapping):
            raise ConfigError(f"rope_parameters must be a table, found {rope!r}")
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        if rope_type != "default":
            raise ConfigError(f"rope_type {rope_type!r} is not supported; expected 'default' (unscaled frequencies)")
        missing = [key for key in _HUGGING_FACE_REQUIRED if key not in values]
        if missing:
            raise ConfigError(f"config.json lacks {', '.join(missing)}")
        ours = {name: values[theirs] for name, theirs in _HUGGING_FACE_NAMES.items() if theirs in values}
        ours["theta"] = rope.get("rope_theta", values.get("rope_theta", _LLAMA2_THETA))
        if isinstance(ours.get("eos_token_id"), list):  # several end ids: the first ends, generation adds the others
            ours["eos_token_id"] = ours["eos_token_id"][0]  # type: ignore[index]
        ours = {key: value for key, value in ours.items() if value is not None or key == "pad_token_id"}
        if isinstance(ours.get("pad_token_id"), int) and ours["pad_token_id"] < 0:  # type: ignore[operator]
            ours["pad_token_id"] = None  # Llama 2's early configurations spell "none" as -1
        return cls.from_dict(ours)

    def to_hugging_face(self) -> dict[str, JsonValue]:
        """A `config.json` that transformers 4 and 5 both load as `LlamaForCausalLM`."""
        values: dict[str, JsonValue] = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "rope_theta": self.theta,
            "rope_parameters": {"rope_theta": self.theta, "rope_type": "default"},
        }
        resolved = dataclasses.replace(self, n_kv_heads=self.kv_heads, head_dim=self.head_size).to_dict()
        values |= {theirs: resolved[name] for name, theirs in _HUGGING_FACE_NAMES.items()}
        return values


_LLAMA2_THETA = 1e4
_HUGGING_FACE_NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "intermediate_size": "intermediate_size",
    "head_dim": "head_dim",
    "max_position_embedding": "max_position_embeddings",
    "rms_norm_eps": "rms_norm_eps",
    "tie_word_embeddings": "tie_word_embeddings",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}
_HUGGING_FACE_REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def _require_positive_int(key: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{key} must be a whole number above 0, found {value!r}")


# Hidden, layers, heads, key/value heads and feed-forward width as published (meta-llama/codellama, config.json of
# each repository). 7B and 13B carry 16 infilling pieces above Llama 2's 32000, except as Python variants.
_SIZES: dict[str, dict[str, Any]] = {
    "7b": {"hidden_size": 4096, "num_layers": 32, "num_heads": 32, "n_kv_heads": 32, "intermediate_size": 11008},
    "13b": {"hidden_size": 5120, "num_layers": 40, "num_heads": 40, "n_kv_heads": 40, "intermediate_size": 13824},
    "34b": {"hidden_size": 8192, "num_layers": 48, "num_heads": 64, "n_kv_heads": 8, "intermediate_size": 22016},
}
_LLAMA2_PIECES, _INFILLING_PIECES = 32000, 32016


def _presets() -> dict[str, LlamaConfig]:
    presets = {}
    for size, sides in _SIZES.items():
        for variant in ("", "_python", "_instruct"):
            infilling = size != "34b" and variant != "_python"
            presets[f"codellama_{size}{variant}"] = LlamaConfig(
                vocab_size=_INFILLING_PIECES if infilling else _LLAMA2_PIECES,
                **sides,
            )
    # The same architecture as 34B (eight query heads to a key/value head there, two here), for one CPU and minutes: few
    # pieces, since every one of them must be seen often enough to be learnt in that time.
    presets["codellama_tiny"] = LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        num_layers=6,
        num_heads=8,
        n_kv_heads=4,
        intermediate_size=784,
        max_position_embedding=1024,
    )
    return presets


PRESETS: dict[str, LlamaConfig] = _presets()


def preset(name: str) -> LlamaConfig:
    """The published or tiny configuration of that name; a `ConfigError` lists the names."""
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
