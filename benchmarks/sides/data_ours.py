"""The project's side of the data benchmark: answers each line on stdin with one timed `preprocess` as JSON.

python data_ours.py wiki|qa|code SOURCE MODEL_FILE SEQ_LENGTH PROCESSES FOLDER
"""

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from codellama_data import QaOptions, find_corpus, open_rows, preprocess_code, preprocess_qa, preprocess_wiki
from codellama_tokenizer import CodeLlamaTokenizer


def main() -> None:
    kind, source, model_file, seq_length, processes, folder = sys.argv[1:]
    output = Path(folder) / f"ours-{kind}-{processes}.mindrecord"
    options: dict[str, Any] = {"num_workers": int(processes), "overwrite": True, "progress": False}
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        tokenizer = CodeLlamaTokenizer(model_file)
        if kind == "wiki":
            summary = preprocess_wiki(source, tokenizer, output, seq_length=int(seq_length), **options)
        elif kind == "qa":
            summary = preprocess_qa(source, tokenizer, output, QaOptions(int(seq_length)), **options)
        else:
            corpus = find_corpus(source)
            summary = preprocess_code(corpus, tokenizer, output, seq_length=int(seq_length), **options)
        seconds = time.perf_counter() - start
        rows = open_rows(output)
        columns = rows.read(range(len(rows)))
        digests = [hashlib.sha256(row.tobytes()).hexdigest() for row in columns["input_ids"]]
        if "labels" in columns:
            digests += [hashlib.sha256(row.tobytes()).hexdigest() for row in columns["labels"]]
        tokens = summary.tokens - summary.padding_tokens
        print(json.dumps({"tokens": tokens, "seconds": seconds, "digests": digests}), flush=True)


if __name__ == "__main__":
    main()
