"""Documents to ids for `--dataset_type code`, part of them as fill-in-the-middle (arXiv:2308.12950, section 2.3)."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from codellama_tokenizer import CodeLlamaTokenizer

from codellama_data.errors import DataError


@dataclass(frozen=True)
class InfillingPlan:
    """How many documents are turned around, and how.

    Args:
        rate: share of documents that become fill-in-the-middle.
        spm_rate: share of those in suffix-prefix-middle order; the others are prefix-suffix-middle.
        seed: of all choices; a document's own name is mixed in, so no choice depends on other documents.
    """

    rate: float = 0.9
    spm_rate: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("fim_rate", self.rate), ("fim_spm_rate", self.spm_rate)):
            if not 0 <= value <= 1:
                raise DataError(f"{name} must be from 0 to 1, found {value}")

    def check(self, tokenizer: CodeLlamaTokenizer) -> None:
        """Refuse a tokenizer without infilling pieces where some documents need them."""
        if self.rate > 0 and not tokenizer.supports_infilling:
            raise DataError(f"{tokenizer.model_file}: has no infilling pieces; use another tokenizer or fim_rate 0")


def split_document(text: str, generator: random.Random) -> tuple[str, str, str]:
    """Cut a text at two places, uniform over its characters, into (prefix, middle, suffix); parts may be empty."""
    first, second = sorted((generator.randint(0, len(text)), generator.randint(0, len(text))))
    return text[:first], text[first:second], text[second:]


def encode_document(name: str, text: str, tokenizer: CodeLlamaTokenizer, plan: InfillingPlan) -> tuple[list[int], bool]:
    """The ids of one document, BOS first and EOS last.

    Returns:
        (ids, whether it was turned into fill-in-the-middle).

    Raises:
        TokenizerError: the text can not be encoded.
    """
    generator = random.Random(name_hash("infilling", plan.seed, name))
    if generator.random() >= plan.rate:
        return tokenizer.encode(text, bos=True, eos=True), False
    suffix_first = generator.random() < plan.spm_rate
    prefix, middle, suffix = split_document(text, generator)
    return tokenizer.encode_infilling_document(prefix, middle, suffix, suffix_first=suffix_first), True


def name_hash(purpose: str, seed: int, name: str) -> int:
    """64 bits that depend on the purpose, the seed and a document's name alone."""
    key = f"{purpose}\0{seed}\0{name}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "little")


def is_for_evaluation(name: str, seed: int, share: float) -> bool:
    """Whether a document belongs to the evaluation part: stable when other documents come and go."""
    return name_hash("evaluation", seed, name) < share * 2**64
