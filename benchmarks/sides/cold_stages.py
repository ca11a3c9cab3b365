"""What a cold start consists of: seconds of each stage of this fresh process, as one JSON object.

python cold_stages.py CHECKPOINT --weights fp16
"""

import argparse
import json
import time


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("--weights", default="fp16")
    flags = parser.parse_args()
    seconds = {}
    last = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[name], last = now - last, now

    import mindspore  # noqa: F401, PLC0415

    lap("importing MindSpore")
    from codellama_app import CodeLlama  # noqa: PLC0415

    lap("importing the project")
    lm = CodeLlama.from_pretrained(flags.checkpoint, weight_dtype=flags.weights)
    lap("loading")
    stream = lm.stream([1, 5, 9, 11, 20, 21, 22, 23], 3, stop_ids=())
    next(stream)
    lap("compiling for the prompt, and the first token")
    next(stream)
    lap("compiling for decoding, and the second")
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
