"""`CodeLlama`: one object that loads any checkpoint and computes logits and generations with it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
from codellama_ckpt import Checkpoint, CheckpointError, latest, open_checkpoint
from codellama_model import Generator, LlamaConfig, LlamaForCausalLM, Sampling, Token, sequence_logits
from codellama_model.config import ConfigError
from codellama_model.quantization import WEIGHT_DTYPES, WeightDtype
from codellama_tokenizer import CodeLlamaTokenizer, IncrementalDecoder
from numpy.typing import NDArray

from codellama_app.command import UserError, start_mindspore
from codellama_app.weights import CONFIG_KEY, network_from

CHECKPOINTS = "checkpoints"  # of a run's directory
TOKENIZER = "tokenizer.model"
_HUGGING_FACE_CONFIG = "config.json"


class CodeLlama:
    """A network with its generator and, where there is one, its tokenizer.

    Attributes:
        config: the network's sizes.
        network: the network, in evaluation use.
        tokenizer: None where the checkpoint came without `tokenizer.model`.
        stop_ids: ids that end a generation unless a call names others.
    """

    def __init__(
        self,
        network: LlamaForCausalLM,
        tokenizer: CodeLlamaTokenizer | None = None,
        stop_ids: Collection[int] | None = None,
    ) -> None:
        self.config = network.config
        self.network = network
        self.tokenizer = tokenizer
        self.stop_ids = frozenset({self.config.eos_token_id} if stop_ids is None else stop_ids)
        self._generator = Generator(network)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        fallback_config: LlamaConfig | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        weight_dtype: WeightDtype = "fp32",
    ) -> CodeLlama:
        """Loads a checkpoint of any kind, tensor by tensor. Puts MindSpore into graph mode.

        Args:
            path: a Hugging Face directory of a Llama model (safetensors), a training run's directory (its newest
                checkpoint), a sharded checkpoint, or a full checkpoint file.
            fallback_config: the network's sizes, for a checkpoint that does not say them.
            tokenizer: a SentencePiece model; by default `tokenizer.model` of the directory or of its run.
            weight_dtype: how the matrices are kept, whatever the checkpoint stores: "fp32", "fp16", or "int8" with a
                scale for each 64 neighbours. All are computed with in float32.

        Raises:
            ValueError: another `weight_dtype`.
            CheckpointError: no checkpoint, a damaged one, or tensors that do not fit.
            ConfigError: the sizes are not given, or not those of a Llama network.
            TokenizerError: a tokenizer that can not be read, or with more pieces than the network has rows.
        """
        if weight_dtype not in WEIGHT_DTYPES:
            raise ValueError(f"weight_dtype must be one of {', '.join(WEIGHT_DTYPES)}, found {weight_dtype!r}")
        path = Path(path)
        home = path if path.is_dir() else path.parent
        if (path / CHECKPOINTS).is_dir():
            newest = latest(path / CHECKPOINTS)
            if newest is None:
                raise CheckpointError(f"{path / CHECKPOINTS} holds no complete checkpoint; has the run saved one yet?")
            path = newest
        checkpoint = open_checkpoint(path)
        config, stop_ids = _configuration(checkpoint, home, fallback_config)
        loaded = _tokenizer(tokenizer, (home, path, path.parent.parent))
        if loaded is not None and loaded.vocab_size > config.vocab_size:
            loaded.check_vocab_size(config.vocab_size)
        start_mindspore()
        return cls(network_from(config, checkpoint, weight_dtype), loaded, stop_ids)

    def logits(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """ids int [batch, seq] -> logits float32 [batch, seq, vocab].

        Raises:
            GenerationError: wrong shape, an id outside the vocabulary, or more tokens than the context.
        """
        return sequence_logits(self.network, ids)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop_ids: Collection[int] | None = None,
        stop: Sequence[str] = (),
        batch_size: int = 8,
    ) -> list[list[int]]:
        """The new ids of every prompt; prompts may differ in length.

        A stop id, or the id that completes a stop string, ends its row and is the last id returned (as in
        transformers). Further arguments: `codellama_model.Sampling` and `codellama_model.Generator.stream`.

        Raises:
            GenerationError: a prompt is empty, too long, or holds an id outside the vocabulary.
            UserError: stop strings without a tokenizer.
        """
        outputs: list[list[int]] = [[] for _ in prompts]
        sampling = Sampling(do_sample=do_sample, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        for token in self.tokens(
            prompts, max_new_tokens, sampling=sampling, stop_ids=stop_ids, stop=stop, batch_size=batch_size
        ):
            outputs[token.row].append(token.id)
        return outputs

    def stream(
        self,
        ids: Sequence[int],
        max_new_tokens: int,
        *,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop_ids: Collection[int] | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[int]:
        """The new ids of one prompt, each as soon as it is there. Arguments and errors: `generate`."""
        sampling = Sampling(do_sample=do_sample, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        for token in self.tokens([ids], max_new_tokens, sampling=sampling, stop_ids=stop_ids, stop=stop):
            yield token.id

    def tokens(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        sampling: Sampling | None = None,
        stop_ids: Collection[int] | None = None,
        stop: Sequence[str] = (),
        batch_size: int = 8,
    ) -> Iterator[Token]:
        """Ids of all prompts as they come, each with its row: what `generate` collects. Errors: `generate`."""
        return self._generator.stream(
            prompts,
            max_new_tokens,
            sampling=sampling,
            stop_ids=self.stop_ids if stop_ids is None else stop_ids,
            should_stop=self._watch(len(prompts), stop) if stop else None,
            batch_size=batch_size,
        )

    def _watch(self, rows: int, stop: Sequence[str]) -> Callable[[int, int], bool]:
        """A function (row, id) that is true once the row's text holds one of the stop strings."""
        if self.tokenizer is None:
            raise UserError("stop strings need a tokenizer, and the checkpoint came without one: give `tokenizer`")
        decoders: list[IncrementalDecoder] = [
            self.tokenizer.incremental_decoder(continuation=True) for _ in range(rows)
        ]
        tails = [""] * rows
        longest = max(map(len, stop))

        def should_stop(row: int, token_id: int) -> bool:
            text = tails[row] + decoders[row].push(token_id)
            tails[row] = text[-longest:]
            return any(string in text for string in stop)

        return should_stop


def _configuration(
    checkpoint: Checkpoint, home: Path, fallback: LlamaConfig | None
) -> tuple[LlamaConfig, list[int] | None]:
    """The network's sizes as the checkpoint says them, and the ids that end a text where it names several."""
    if CONFIG_KEY in checkpoint.metadata:
        values = json.loads(checkpoint.metadata[CONFIG_KEY])
    elif (home / _HUGGING_FACE_CONFIG).is_file():
        values = _json(home / _HUGGING_FACE_CONFIG)
    elif fallback is not None:
        return fallback, None
    else:
        raise ConfigError(f"{checkpoint.path} does not say the network's sizes: put its config.json beside it")
    stop_ids = values.get("eos_token_id")
    generation = home / "generation_config.json"
    if generation.is_file():
        stop_ids = _json(generation).get("eos_token_id", stop_ids)
    config = LlamaConfig.from_hugging_face(values)
    return config, [int(token_id) for token_id in stop_ids] if isinstance(stop_ids, list) else None


def _json(path: Path) -> dict[str, object]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a JSON object, found {type(values).__name__}")
    return values


def _tokenizer(given: str | os.PathLike[str] | None, folders: Sequence[Path]) -> CodeLlamaTokenizer | None:
    if given is not None:
        return CodeLlamaTokenizer(given)
    for folder in folders:
        if (folder / TOKENIZER).is_file():
            return CodeLlamaTokenizer(folder / TOKENIZER)
    return None


def config_metadata(config: LlamaConfig) -> dict[str, str]:
    """What a checkpoint carries so that `from_pretrained` needs no configuration."""
    return {CONFIG_KEY: json.dumps(config.to_hugging_face())}
