"""Generations for a benchmark: every (task, sample) once, in batches that are the same however often a run is resumed.

Batches are cut from all samples in one order, and each has a seed of its own. So a text depends on the settings alone,
not on what was there already or on how many processes share the work. What is done is in journals, a line a sample.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from codellama_model import Sampling, Token
from codellama_tokenizer import CodeLlamaTokenizer

Key = tuple[str, int]  # task_id, number of the sample
_JOURNALS = "generations.*.partial"


class LanguageModel(Protocol):
    """What generation needs of `CodeLlama`."""

    tokenizer: CodeLlamaTokenizer | None
    stop_ids: frozenset[int]

    @property
    def config(self) -> Any: ...
    def tokens(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        sampling: Sampling | None,
        stop_ids: Any,
        stop: Sequence[str],
        batch_size: int,
    ) -> Iterator[Token]: ...


@dataclass(frozen=True)
class Plan:
    """What is generated, and how.

    Attributes:
        rows: the prompts: `task_id`, `prompt`, for infilling also `suffix` and `suffix_first`.
        n_samples: generations of each.
        chat: whether a prompt is a user's message.
        sampling: do_sample, temperature, top_p, top_k, seed.
        stop: texts that end a generation.
    """

    rows: Sequence[dict[str, Any]]
    n_samples: int
    chat: bool
    sampling: dict[str, Any]
    max_new_tokens: int
    batch_size: int
    stop: Sequence[str]

    def batches(self) -> list[list[tuple[Key, dict[str, Any]]]]:
        """All samples, prompts of like length together: a batch computes as many positions as its longest needs."""
        rows = sorted(self.rows, key=lambda row: (len(row["prompt"]), row["task_id"]))
        samples = [((row["task_id"], number), row) for row in rows for number in range(self.n_samples)]
        return [samples[start : start + self.batch_size] for start in range(0, len(samples), self.batch_size)]


def generate(
    lm: LanguageModel, plan: Plan, folder: Path, worker: int, workers: int, step: Callable[[], object]
) -> None:
    """Does one worker's share of the batches that are not in the folder's journals yet.

    Raises:
        codellama_model.GenerationError: impossible settings.
    """
    done = read_journals(folder)
    with (folder / f"generations.{worker}.partial").open("a", encoding="utf-8") as journal:
        for number, batch in enumerate(plan.batches()):
            missing = {key for key, _ in batch if key not in done}
            if number % workers != worker or not missing:
                continue
            for key, text in _texts(lm, plan, number, batch):
                if key in missing:
                    row = {"task_id": key[0], "sample": key[1], "generation": text}
                    journal.write(json.dumps(row) + "\n")
                    journal.flush()
                    step()


def _texts(
    lm: LanguageModel, plan: Plan, number: int, batch: Sequence[tuple[Key, dict[str, Any]]]
) -> Iterator[tuple[Key, str | None]]:
    """The texts of a batch as they are finished; None where a prompt fills the network's context."""
    tokenizer = lm.tokenizer
    assert tokenizer is not None
    prompts = [_ids(tokenizer, row, plan.chat) for _, row in batch]
    fitting = [index for index, ids in enumerate(prompts) if len(ids) < lm.config.max_position_embedding]
    for index in sorted(set(range(len(batch))) - set(fitting)):
        yield batch[index][0], None
    if not fitting:
        return
    seed = int.from_bytes(hashlib.sha256(f"{plan.sampling['seed']} {number}".encode()).digest()[:4], "big") >> 1
    tokens = lm.tokens(
        [prompts[index] for index in fitting],
        plan.max_new_tokens,
        sampling=Sampling(**{**plan.sampling, "seed": seed}),
        stop_ids=set(lm.stop_ids) | ({tokenizer.eot_id} - {None}),
        stop=plan.stop,
        batch_size=len(fitting),
    )
    decoders = [tokenizer.incremental_decoder(continuation=True) for _ in fitting]
    texts = [""] * len(fitting)
    for token in tokens:
        texts[token.row] += decoders[token.row].push(token.id)
        if token.last:
            yield batch[fitting[token.row]][0], texts[token.row] + decoders[token.row].finish()


def _ids(tokenizer: CodeLlamaTokenizer, row: dict[str, Any], chat: bool) -> list[int]:
    if "suffix" in row:
        return tokenizer.encode_infilling(row["prompt"], row["suffix"], suffix_first=row["suffix_first"])
    if chat:
        return tokenizer.encode_chat([{"role": "user", "content": row["prompt"]}])
    return tokenizer.encode(row["prompt"])


def read_journals(folder: Path) -> dict[Key, str | None]:
    """What has been generated so far. A last line that is not complete does not count."""
    done: dict[Key, str | None] = {}
    for path in sorted(folder.glob(_JOURNALS)):
        *lines, _ = path.read_text(encoding="utf-8").split("\n")
        for line in lines:
            row = json.loads(line)
            done[row["task_id"], row["sample"]] = row["generation"]
    return done


def repair_journals(folder: Path) -> None:
    """Removes what an interruption cut off, so that what is appended begins a line. Not while anybody writes."""
    for path in folder.glob(_JOURNALS):
        text = path.read_text(encoding="utf-8")
        path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")


def remove_journals(folder: Path) -> None:
    """Once everything is in the one file."""
    for path in folder.glob(_JOURNALS):
        path.unlink()
