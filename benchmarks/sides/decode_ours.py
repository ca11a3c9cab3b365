"""The project's side of the decode and prefill benchmarks."""

import argparse
from collections.abc import Callable

import decode_protocol


def load(flags: argparse.Namespace) -> decode_protocol.Generate:
    from codellama_app import CodeLlama  # noqa: PLC0415  (part of what a cold start costs)

    lm = CodeLlama.from_pretrained(flags.model, weight_dtype=flags.weights, compute_dtype=flags.compute_dtype)

    def generate(prompts: list[list[int]], count: int, first: Callable[[], None]) -> list[int]:
        tokens = lm.tokens(prompts, count, stop_ids=(), batch_size=flags.batch)
        ids = [next(tokens).id]
        first()
        return ids + [token.id for token in tokens if token.row == 0]

    return generate


if __name__ == "__main__":
    decode_protocol.run(load, "")
