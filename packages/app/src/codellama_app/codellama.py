"""`CodeLlama`: one object that loads any checkpoint and computes logits and generations with it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
from codellama_ckpt.configuration import CONFIG
from codellama_model import Generator, LlamaConfig, LlamaForCausalLM, Sampling, Token, sequence_logits
from codellama_model.ops import Operations, select
from codellama_model.quantization import WEIGHT_DTYPES, WeightDtype
from codellama_tokenizer import CodeLlamaTokenizer, IncrementalDecoder
from numpy.typing import NDArray

from codellama_app.command import UserError, start_mindspore
from codellama_app.pretrained import open_pretrained
from codellama_app.ranks import Ranks, join
from codellama_app.split_network import WholeLogits, split_network
from codellama_app.split_plan import check_shared_compute
from codellama_app.weights import network_from


class CodeLlama:
    """A network with its generator and, where there is one, its tokenizer.

    Attributes:
        config: the whole network's sizes.
        network: the network, or this process's part of it, in evaluation use.
        tokenizer: None where the checkpoint came without `tokenizer.model`.
        stop_ids: ids that end a generation unless a call names others.
        rank: this process's number among those that share the network, 0 where it has it alone.
    """

    def __init__(
        self,
        network: LlamaForCausalLM,
        tokenizer: CodeLlamaTokenizer | None = None,
        stop_ids: Collection[int] | None = None,
        whole_logits: WholeLogits | None = None,
        rank: int = 0,
    ) -> None:
        self.network, self.rank = network, rank
        self._logits = network if whole_logits is None else whole_logits
        self.config = self._logits.config
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
        compute_dtype: str = "float32",
        device_num: int = 1,
    ) -> CodeLlama:
        """Loads a checkpoint of any kind, tensor by tensor. Puts MindSpore into graph mode.

        Where a Hugging Face `generation_config.json` is there, or comes with the checkpoint, its `eos_token_id` says
        what ends a text. How ids are chosen is each call's matter.

        Args:
            path: a Hugging Face directory of a Llama model (safetensors), a training run's directory (its newest
                checkpoint), a sharded checkpoint, or a full checkpoint file.
            fallback_config: the network's sizes, for a checkpoint that does not say them.
            tokenizer: a SentencePiece model; by default `tokenizer.model` of the directory or of its run.
            weight_dtype: how the matrices are kept, whatever the checkpoint stores: "fp32", "fp16", or "int8" with a
                scale for each 64 neighbours. All are computed with in float32.
            compute_dtype: of the products of prompts. "bfloat16" rounds their operands to bfloat16, which is faster, on
                a processor that has such products; generated tokens and `logits` are computed in float32 either way.
            device_num: processes that share the network. This one must be a rank of a job of so many (`msrun`), in
                which all ranks make the same calls; a rank reads its part of the checkpoint only. Not with "int8",
                nor with "bfloat16".

        Raises:
            ValueError: another `weight_dtype`.
            UserError: adapters, which must be merged first; no rank of such a job; int8 or bfloat16 with
                `device_num`; a compute_dtype that is not served here.
            CheckpointError: no checkpoint, a damaged one, or tensors that do not fit.
            ConfigError: the sizes are not given, not those of a Llama network, or can not be shared by `device_num`.
            TokenizerError: a tokenizer that can not be read, or with more pieces than the network has rows.
        """
        if weight_dtype not in WEIGHT_DTYPES:
            raise ValueError(f"weight_dtype must be one of {', '.join(WEIGHT_DTYPES)}, found {weight_dtype!r}")
        ranks = Ranks()
        if device_num > 1:
            check_shared_compute(compute_dtype)
            ranks = join()
            ranks.require(device_num, f"device_num {device_num} needs so many processes, started with msrun")
        found = open_pretrained(path, fallback_config, tokenizer)
        start_mindspore()
        if device_num == 1:
            network = network_from(found.config, found.checkpoint, weight_dtype, prediction_operations(compute_dtype))
            return cls(network, found.tokenizer, found.stop_ids)
        network = split_network(found.config, found.checkpoint, ranks, weight_dtype)
        whole_logits = WholeLogits(network, found.config, ranks.size)
        return cls(network, found.tokenizer, found.stop_ids, whole_logits, ranks.rank)

    def logits(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """ids int [batch, seq] -> logits float32 [batch, seq, vocab].

        Raises:
            GenerationError: wrong shape, an id outside the vocabulary, or more tokens than the context.
        """
        return sequence_logits(self._logits, ids)

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


def prediction_operations(compute_dtype: str) -> Operations:
    """The device's operations with the products of prompts in that format.

    Raises:
        UserError: the device has no such products.
    """
    try:
        return select(compute_dtype=compute_dtype)
    except ValueError as error:
        raise UserError(str(error)) from None


def config_metadata(config: LlamaConfig) -> dict[str, str]:
    """What a checkpoint carries so that `from_pretrained` needs no configuration."""
    return {CONFIG: json.dumps(config.to_hugging_face())}
