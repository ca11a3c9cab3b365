"""Text generation over ids: ragged batches, greedy or sampled, one id at a time.

Covers prompt processing in blocks, decoding, stopping and the choice of static shapes. Text (tokenizers, stop strings)
is the caller's: it watches the ids that come out and says when a row has enough.

Shapes are static so that nothing is compiled while text grows: prompts enter in blocks of `BLOCKS` tokens, and the
cache has a power of two of positions. So a process compiles at most one graph a block size and one for decoding, per
(batch, cache length) it uses.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor
from numpy.typing import NDArray

from codellama_model.cache import CachedLlama
from codellama_model.llama import LlamaForCausalLM
from codellama_model.sampling import Sampling, draw

BLOCKS = (16, 64, 256, 512)  # tokens a row that one graph call takes in; each size is a graph of its own
_SMALLEST_CACHE = 256
_KEPT_CACHES = 2  # cells whose caches and graphs stay in memory


class GenerationError(ValueError):
    """A prompt that the network can not take. The message says which and why."""


@dataclass(frozen=True)
class Token:
    """One generated id: of which prompt (index into the caller's list), and whether it is the row's last."""

    row: int
    id: int
    last: bool


class Generator:
    """Generates with one network; keeps its compiled graphs between calls.

    Args:
        network: in evaluation use; its parameters are shared, not copied.
    """

    def __init__(self, network: LlamaForCausalLM) -> None:
        self.network = network
        self.config = network.config
        self._caches: dict[tuple[int, int], CachedLlama] = {}

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        sampling: Sampling | None = None,
        stop_ids: Collection[int] | None = None,
        should_stop: Callable[[int, int], bool] | None = None,
        batch_size: int = 8,
    ) -> list[list[int]]:
        """The new ids of every prompt; an id of `stop_ids` that ends a row is included, as transformers does.

        Arguments and errors: `stream`.
        """
        outputs: list[list[int]] = [[] for _ in prompts]
        for token in self.stream(
            prompts,
            max_new_tokens,
            sampling=sampling,
            stop_ids=stop_ids,
            should_stop=should_stop,
            batch_size=batch_size,
        ):
            outputs[token.row].append(token.id)
        return outputs

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        sampling: Sampling | None = None,
        stop_ids: Collection[int] | None = None,
        should_stop: Callable[[int, int], bool] | None = None,
        batch_size: int = 8,
    ) -> Iterator[Token]:
        """Yields ids as they are generated, rows of a batch interleaved.

        Args:
            prompts: lists of ids, of any lengths.
            max_new_tokens: at most so many ids a row; fewer where the context (`max_position_embedding`) ends.
            sampling: None means greedy.
            stop_ids: a row ends with the first of them; None means the configuration's `eos_token_id`.
            should_stop: called with (row, id) after each id; True ends the row.
            batch_size: rows computed together.

        Raises:
            GenerationError: an empty prompt, an id outside the vocabulary, a prompt as long as the context or longer.
        """
        sampling = sampling or Sampling()
        stops = {self.config.eos_token_id} if stop_ids is None else set(stop_ids)
        if max_new_tokens < 1:
            raise GenerationError(f"max_new_tokens must be 1 or more, found {max_new_tokens}")
        if batch_size < 1:
            raise GenerationError(f"batch_size must be 1 or more, found {batch_size}")
        for row, prompt in enumerate(prompts):
            self._check_prompt(row, prompt)
        for start in range(0, len(prompts), batch_size):
            rows = range(start, min(start + batch_size, len(prompts)))
            yield from self._run([prompts[row] for row in rows], rows, max_new_tokens, sampling, stops, should_stop)

    def _check_prompt(self, row: int, prompt: Sequence[int]) -> None:
        if not prompt:
            raise GenerationError(f"prompt {row} is empty; start it with the bos id {self.config.bos_token_id}")
        for token_id in prompt:
            if not 0 <= token_id < self.config.vocab_size:
                raise GenerationError(
                    f"prompt {row} holds id {token_id}, outside the vocabulary of {self.config.vocab_size} ids"
                )
        context = self.config.max_position_embedding
        if len(prompt) >= context:
            raise GenerationError(
                f"prompt {row} has {len(prompt)} tokens, which leaves no room in the context of {context};"
                f" shorten it to {context - 1} or fewer"
            )

    def _run(
        self,
        prompts: Sequence[Sequence[int]],
        rows: range,
        max_new_tokens: int,
        sampling: Sampling,
        stops: Collection[int],
        should_stop: Callable[[int, int], bool] | None,
    ) -> Iterator[Token]:
        """One batch. `rows` are the prompts' numbers in the caller's list."""
        context = self.config.max_position_embedding
        lengths = np.array([len(prompt) for prompt in prompts])
        budgets = np.minimum(max_new_tokens, context - lengths)
        cache = self._cache(len(prompts), int((lengths + budgets).max()))
        generators = [sampling.generator(row) for row in rows]
        greedy, logits = self._prefill(cache, prompts, sampling.do_sample)
        running = np.ones(cache.batch, bool)
        running[len(prompts) :] = False
        produced = 0
        while True:
            ids = greedy.copy()
            produced += 1
            for index, row in enumerate(rows):
                if not running[index]:
                    continue
                if sampling.do_sample:
                    ids[index] = draw(logits[index], sampling, generators[index])
                token_id = int(ids[index])
                ended = token_id in stops or produced >= budgets[index]
                if should_stop is not None and should_stop(row, token_id):
                    ended = True
                running[index] = not ended
                yield Token(row, token_id, ended)
            if not running.any():
                return
            positions = np.full(cache.batch, cache.spare, np.int32)
            positions[: len(prompts)] = np.where(running[: len(prompts)], lengths + produced - 1, cache.spare)
            greedy, logits = _call(cache, ids[:, None], positions[:, None], np.arange(cache.batch), sampling.do_sample)

    def _prefill(
        self, cache: CachedLlama, prompts: Sequence[Sequence[int]], want_logits: bool
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Puts the prompts into the cache; the prediction after each prompt's last id: ([B], [B, V])."""
        longest = max(len(prompt) for prompt in prompts)
        greedy = np.zeros(cache.batch, np.int32)
        logits = np.zeros((cache.batch, self.config.vocab_size if want_logits else 0), np.float32)
        start = 0
        while start < longest:
            block = next((size for size in BLOCKS if size >= longest - start), BLOCKS[-1])
            ids = np.zeros((cache.batch, block), np.int32)
            positions = np.full((cache.batch, block), cache.spare, np.int32)
            last = np.arange(cache.batch) * block
            ending = []
            for index, prompt in enumerate(prompts):
                part = prompt[start : start + block]
                ids[index, : len(part)] = part
                positions[index, : len(part)] = np.arange(start, start + len(part))
                if 0 < len(prompt) - start <= block:
                    last[index] += len(part) - 1
                    ending.append(index)
            block_greedy, block_logits = _call(cache, ids, positions, last, want_logits)
            greedy[ending] = block_greedy[ending]
            if want_logits:
                logits[ending] = block_logits[ending]
            start += block
        return greedy, logits

    def _cache(self, rows: int, positions: int) -> CachedLlama:
        """A cell for at least so many rows and positions, both rounded up to a power of two."""
        batch = _power_of_two(rows)
        context = self.config.max_position_embedding
        length = min(max(_power_of_two(positions + 1), _SMALLEST_CACHE), context + 1)
        key = (batch, length)
        if key in self._caches:
            self._caches[key] = self._caches.pop(key)  # newest last
        else:
            while len(self._caches) >= _KEPT_CACHES:
                del self._caches[next(iter(self._caches))]
            self._caches[key] = CachedLlama(self.network, batch, length)
            self._caches[key].set_train(False)
        return self._caches[key]


def _call(
    cache: CachedLlama, ids: NDArray[np.int32], positions: NDArray[np.int32], last: NDArray[np.int64], want_logits: bool
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    greedy, logits = cache(Tensor(ids, ms.int32), Tensor(positions, ms.int32), Tensor(last, ms.int32))
    empty = np.zeros((len(ids), 0), np.float32)
    return greedy.asnumpy(), logits.asnumpy() if want_logits else empty


def _power_of_two(least: int) -> int:
    return 1 << max(0, least - 1).bit_length()


def sequence_logits(network: LlamaForCausalLM, ids: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """ids int [B, S] -> logits float32 [B, S, V] of the whole-sequence pass.

    The sequence is padded on the right to a power of two, which no earlier position sees, so lengths share graphs.

    Raises:
        GenerationError: not two axes, an id outside the vocabulary, or longer than the context.
    """
    config = network.config
    ids = np.asarray(ids)
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        raise GenerationError(f"ids must be whole numbers of shape [batch, seq], found {ids.dtype} {list(ids.shape)}")
    batch, length = ids.shape
    if length > config.max_position_embedding:
        raise GenerationError(f"{length} tokens do not fit the context of {config.max_position_embedding}")
    outside = ids[(ids < 0) | (ids >= config.vocab_size)]
    if outside.size:
        raise GenerationError(f"id {outside[0]} lies outside the vocabulary of {config.vocab_size} ids")
    if ids.size == 0:
        return np.zeros((batch, length, config.vocab_size), np.float32)
    padded = np.zeros((batch, min(_power_of_two(max(length, BLOCKS[0])), config.max_position_embedding)), np.int32)
    padded[:, :length] = ids
    logits = network(Tensor(padded)).asnumpy()
    return logits.reshape(*padded.shape, config.vocab_size)[:, :length]
