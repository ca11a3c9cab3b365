"""The project's side of the decode benchmark: answers each line on stdin with one timed generation as JSON.

python decode_ours.py CHECKPOINT PROMPT_TOKENS NEW_TOKENS          then lines on stdin
python decode_ours.py CHECKPOINT PROMPT_TOKENS NEW_TOKENS --cold   one generation in a fresh process, then exit
"""

import json
import sys
import time

STARTED = time.perf_counter()


def main() -> None:
    checkpoint, prompt_tokens, new_tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    from codellama_app import CodeLlama  # noqa: PLC0415  (part of what a cold start costs)

    lm = CodeLlama.from_pretrained(checkpoint)
    prompt = list(range(5, 5 + prompt_tokens))
    if "--cold" in sys.argv:
        next(lm.stream(prompt, new_tokens, stop_ids=()))
        print(json.dumps({"first_token_seconds": time.perf_counter() - STARTED}), flush=True)
        return
    lm.generate([prompt], 4, stop_ids=())  # compiles
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        times, ids = [], []
        start = time.perf_counter()
        for token_id in lm.stream(prompt, new_tokens, stop_ids=()):
            times.append(time.perf_counter())
            ids.append(token_id)
        decode = (len(times) - 1) / (times[-1] - times[0])
        print(json.dumps({"decode": decode, "prefill": prompt_tokens / (times[0] - start), "ids": ids}), flush=True)


if __name__ == "__main__":
    main()
