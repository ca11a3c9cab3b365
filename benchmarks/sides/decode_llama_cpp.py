"""llama.cpp's side of the decode and prefill benchmarks, through llama-cpp-python's plain C functions.

MODEL is a folder with model.fp16.gguf and model.int8.gguf (F16 and Q8_0), as `decode_gguf.py` writes them.
"""

import argparse
import ctypes
from collections.abc import Callable
from pathlib import Path

import decode_protocol
import llama_cpp
import numpy as np

CHUNK = 512  # tokens a call, llama.cpp's own default


def load(flags: argparse.Namespace) -> decode_protocol.Generate:
    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p())
    llama_cpp.llama_backend_init()
    file = str(Path(flags.model) / f"model.{flags.weights}.gguf")
    model_parameters = llama_cpp.llama_model_default_params()
    # Weights laid out for Intel AMX: built by GCC 12, llama.cpp 0.3.36's kernels for them end in a protection fault.
    model_parameters.use_extra_bufts = flags.weights != "int8"
    model = llama_cpp.llama_model_load_from_file(file.encode(), model_parameters)
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = (flags.positions + 8) * flags.batch
    parameters.n_seq_max = flags.batch
    parameters.n_batch = parameters.n_ubatch = CHUNK
    parameters.n_threads = parameters.n_threads_batch = flags.threads
    context = llama_cpp.llama_init_from_model(model, parameters)
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    memory = llama_cpp.llama_get_memory(context)
    batch = llama_cpp.llama_batch_init(CHUNK, 0, 1)

    def put(ids: list[tuple[int, int, int]], wanted: set[int]) -> None:
        """Tokens as (id, position, row); logits of the numbers in `wanted`."""
        batch.n_tokens = len(ids)
        for index, (token, position, row) in enumerate(ids):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
            batch.logits[index] = index in wanted
        if llama_cpp.llama_decode(context, batch):
            raise SystemExit("llama_decode failed")

    def greedy(index: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(context, index)
        return int(np.ctypeslib.as_array(logits, shape=(vocabulary,)).argmax())

    def generate(prompts: list[list[int]], count: int, first: Callable[[], None]) -> list[int]:
        llama_cpp.llama_memory_clear(memory, False)
        current = []
        for row, prompt in enumerate(prompts):
            for start in range(0, len(prompt), CHUNK):
                part = prompt[start : start + CHUNK]
                last = start + len(part) == len(prompt)
                put([(token, start + i, row) for i, token in enumerate(part)], {len(part) - 1} if last else set())
            current.append(greedy(len(part) - 1))
        ids = [current[0]]
        first()
        for step in range(count - 1):
            put([(token, len(prompts[0]) + step, row) for row, token in enumerate(current)], set(range(len(current))))
            current = [greedy(row) for row in range(len(current))]
            ids.append(current[0])
        return ids

    generate.kept = silent  # type: ignore[attr-defined]  (the library keeps only a pointer)
    return generate


if __name__ == "__main__":
    decode_protocol.run(load, f"llama-cpp-python {llama_cpp.__version__}")
