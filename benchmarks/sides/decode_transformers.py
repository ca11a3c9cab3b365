"""transformers' side of the decode and prefill benchmarks, in float32. Also writes the checkpoint that all sides load.

python decode_transformers.py --make FOLDER      writes the random 135 M network
"""

import argparse
import json
import sys
from collections.abc import Callable

import decode_protocol
import torch
import transformers

# SmolLM-135M's sizes: what an independent small Llama looks like
SIZES = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "tie_word_embeddings": True,
    "max_position_embeddings": 16384,
    "rope_theta": 10000.0,
}


def make(folder: str) -> None:
    torch.manual_seed(0)
    network = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, initializer_range=0.05))
    network.save_pretrained(folder)


def load(flags: argparse.Namespace) -> decode_protocol.Generate:
    torch.set_num_threads(flags.threads)
    network = transformers.LlamaForCausalLM.from_pretrained(flags.model, dtype=torch.float32).eval()

    def generate(prompts: list[list[int]], count: int, first: Callable[[], None]) -> list[int]:
        def after_token(ids: torch.Tensor, _: object) -> torch.Tensor:
            if ids.shape[1] == len(prompts[0]) + 1:
                first()
            return torch.zeros(len(ids), dtype=torch.bool)  # go on

        with torch.no_grad():
            out = network.generate(
                torch.tensor(prompts),
                attention_mask=torch.ones(len(prompts), len(prompts[0]), dtype=torch.long),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
                stopping_criteria=[after_token],
            )
        return out[0, len(prompts[0]) :].tolist()

    return generate


if __name__ == "__main__":
    if sys.argv[1] == "--make":
        make(sys.argv[2])
        print(json.dumps({"made": sys.argv[2]}))
    else:
        decode_protocol.run(load, f"transformers {transformers.__version__}, torch {torch.__version__}")
