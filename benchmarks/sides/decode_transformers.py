"""The peer's side of the decode benchmark: transformers in float32, as `decode_ours.py`. Also writes the checkpoint.

python decode_transformers.py --make FOLDER                                writes the random 135 M network
python decode_transformers.py CHECKPOINT PROMPT_TOKENS NEW_TOKENS          then lines on stdin
python decode_transformers.py CHECKPOINT PROMPT_TOKENS NEW_TOKENS --cold   one first token in a fresh process
"""

import json
import sys
import time

STARTED = time.perf_counter()
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
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
}


def main() -> None:
    if sys.argv[1] == "--make":
        torch.manual_seed(0)
        network = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, initializer_range=0.05))
        network.save_pretrained(sys.argv[2])
        print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__}), flush=True)
        return
    checkpoint, prompt_tokens, new_tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    network = transformers.LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    prompt = torch.arange(5, 5 + prompt_tokens)[None]

    def generate(count: int) -> tuple[list[int], float]:
        start = time.perf_counter()
        with torch.no_grad():
            out = network.generate(
                prompt, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0, eos_token_id=None
            )
        return out[0, prompt_tokens:].tolist(), time.perf_counter() - start

    if "--cold" in sys.argv:
        generate(1)
        print(json.dumps({"first_token_seconds": time.perf_counter() - STARTED}), flush=True)
        return
    generate(4)
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        _, first = generate(1)
        ids, whole = generate(new_tokens)
        print(
            json.dumps({"decode": (new_tokens - 1) / (whole - first), "prefill": prompt_tokens / first, "ids": ids}),
            flush=True,
        )


if __name__ == "__main__":
    main()
