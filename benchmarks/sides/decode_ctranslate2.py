"""CTranslate2's side of the decode and prefill benchmarks, in float32.

python decode_ctranslate2.py --make HUGGING_FACE_DIRECTORY FOLDER      converts the checkpoint
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import ctranslate2
import decode_protocol


def make(source: str, folder: str) -> None:
    """CTranslate2 knows tokens by their text: a vocabulary of numbers stands in for a tokenizer."""
    from ctranslate2.converters.transformers import LlamaLoader, TransformersConverter  # noqa: PLC0415

    count = json.loads((Path(source) / "config.json").read_text())["vocab_size"]
    LlamaLoader.get_vocabulary = lambda *_: [str(number) for number in range(count)]
    LlamaLoader.set_vocabulary = lambda _, spec, tokens: spec.register_vocabulary(tokens)

    def configure(_: object, config: object, *__: object) -> None:
        config.bos_token, config.eos_token, config.unk_token = "1", "2", "0"  # type: ignore[attr-defined]
        config.layer_norm_epsilon = None  # type: ignore[attr-defined]

    LlamaLoader.set_config = configure
    TransformersConverter.load_tokenizer = lambda *_, **__: None
    shutil.rmtree(folder, ignore_errors=True)
    TransformersConverter(source).convert(folder, quantization="float32")


def load(flags: argparse.Namespace) -> decode_protocol.Generate:
    generator = ctranslate2.Generator(flags.model, device="cpu", compute_type="float32", intra_threads=flags.threads)

    def generate(prompts: list[list[int]], count: int, first: Callable[[], None]) -> list[int]:
        seen = False

        def on_token(_: object) -> bool:
            nonlocal seen
            if not seen:
                first()
            seen = True
            return False  # go on

        results = generator.generate_batch(
            [[str(token) for token in prompt] for prompt in prompts],
            max_length=count,
            min_length=count,
            sampling_topk=1,
            include_prompt_in_result=False,
            end_token=[],
            callback=on_token,
        )
        return results[0].sequences_ids[0]

    return generate


if __name__ == "__main__":
    if sys.argv[1] == "--make":
        make(sys.argv[2], sys.argv[3])
        print(json.dumps({"made": sys.argv[3]}))
    else:
        decode_protocol.run(load, f"ctranslate2 {ctranslate2.__version__}")
