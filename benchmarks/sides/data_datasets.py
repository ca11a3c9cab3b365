"""The peer's side of the data benchmark: Hugging Face datasets and tokenizers making the same rows, as `data_ours.py`.

python data_datasets.py wiki|qa|code SOURCE MODEL_FILE SEQ_LENGTH PROCESSES FOLDER

The tokenizer is transformers' Llama tokenizer, made from the same SentencePiece file. Its own threads are off, so that
N processes are N cores on both sides. Texts are encoded in batches, and rows are cut from the flat Arrow column without
a Python loop.
"""

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import hashlib
import json
import random
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import tokenizers
import transformers

BOS, EOS, UNKNOWN, PADDING, IGNORE = 1, 2, 0, 0, -100
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
FIM_RATE, SPM_RATE = 0.9, 0.5
Batch = dict[str, list[Any]]


class Encoder:
    """Texts to ids, in batches, with and without the implicit leading space."""

    def __init__(self, model_file: str) -> None:
        loaded = transformers.LlamaTokenizer.from_pretrained(str(Path(model_file).parent), local_files_only=True)
        self._tokenizer = loaded.backend_tokenizer
        # The leading space is put in front by hand: before a text that begins with one, Metaspace would put none.
        self._tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
        self.markers = [self._tokenizer.token_to_id(piece) for piece in ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")]

    def __call__(self, texts: list[str], behind: bool = False) -> list[list[int]]:
        """`behind` other text, the leading space is left out."""
        self._tokenizer.encode_special_tokens = True  # "</s>" in a text is text; pickling forgets this
        if not behind:
            texts = [text and " " + text for text in texts]
        return [one.ids for one in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def clean(text: str) -> str:
    """WikiText's spacing undone, as MindFormers does."""
    text = text.replace("s '", "s'")
    for mark in "-,.":
        text = text.replace(f" @{mark}@ ", mark)
    for mark in ":;.!?,":
        text = text.replace(f" {mark} ", f"{mark} ")
    for left, right in ("()", "[]", "{}", '""', "''"):
        inside = rf"{re.escape(left)}([^{re.escape(right)}]*){re.escape(right)}"
        text = re.sub(inside, lambda match: left + match[1].strip() + right, text)  # noqa: B023
    for old, new in (("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" ° ", "°")):
        text = text.replace(old, new)
    return text.replace(" \n", "\n").replace("\n ", "\n").replace(" N ", " 1 ").replace(" 's", "'s")


def encode_wiki(batch: Batch, encoder: Encoder) -> Batch:
    pieces = [text.split("<unk>") for text in batch["text"]]
    ids = iter(encoder([piece for parts in pieces for piece in parts]))
    found = []
    for parts in pieces:
        row = [BOS, *next(ids)]
        for _ in parts[1:]:
            row += [UNKNOWN, *next(ids)]
        found.append([*row, EOS])
    return {"ids": found}


def encode_code(batch: Batch, numbers: list[int], encoder: Encoder, name: str) -> Batch:
    pre, suf, mid, eot = encoder.markers
    first, behind, recipes = [], [], []
    for text, number in zip(batch["text"], numbers, strict=True):
        key = f"infilling\0{0}\0{name}:{number + 1}".encode()
        generator = random.Random(int.from_bytes(hashlib.sha256(key).digest()[:8], "little"))
        if generator.random() >= FIM_RATE:
            recipes.append("plain")
            first.append(text)
            continue
        spm = generator.random() < SPM_RATE
        start, stop = sorted((generator.randint(0, len(text)), generator.randint(0, len(text))))
        recipes.append("spm" if spm else "psm")
        first.append(text[:stop] if spm else text[:start])
        behind += [text[stop:]] if spm else [text[stop:], text[start:stop]]
    heads, tails = iter(encoder(first)), iter(encoder(behind, behind=True))
    found = []
    for recipe in recipes:
        if recipe == "plain":
            found.append([BOS, *next(heads), EOS])
        elif recipe == "spm":
            found.append([BOS, pre, suf, *next(tails), mid, *next(heads), eot, EOS])
        else:
            found.append([BOS, pre, *next(heads), suf, *next(tails), mid, *next(tails), eot, EOS])
    return {"ids": found, "digest": [hashlib.sha256(text.encode()).hexdigest() for text in batch["text"]]}


def encode_qa(batch: Batch, encoder: Encoder, length: int) -> Batch:
    prompts = [f"{SYSTEM} USER: {talk[0]['value']} ASSISTANT: " for talk in batch["conversations"]]
    answers = [talk[1]["value"] for talk in batch["conversations"]]
    wholes = encoder(
        [prompt + answer if answer else prompt[:-1] for prompt, answer in zip(prompts, answers, strict=True)]
    )
    masked = [len(ids) - 1 for ids in encoder(prompts)]
    rows = np.full((len(prompts), length), PADDING, np.int32)
    labels = np.full((len(prompts), length), IGNORE, np.int32)
    for row, label, ids, start, answer in zip(rows, labels, wholes, masked, answers, strict=True):
        sample = [BOS, *ids, EOS][:length]
        row[: len(sample)] = sample
        if answer:
            label[1 + start : len(sample)] = sample[1 + start :]
    used = [min(len(ids) + 2, length) for ids in wholes]
    return {"input_ids": rows, "labels": labels, "used": used}


def cut(ids: datasets.Dataset, length: int) -> datasets.Dataset:
    """Rows of equal length from all ids one after the other; the rest is dropped."""
    column = ids.with_format("arrow")[:]["ids"]
    values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    rows = len(values) // length
    return datasets.Dataset.from_dict(
        {"input_ids": values[: rows * length].reshape(rows, length)},
        features=datasets.Features({"input_ids": datasets.Sequence(datasets.Value("int32"))}),
    )


def main() -> None:
    kind, source, model_file, seq_length, processes, folder = sys.argv[1:]
    length, path = int(seq_length) + 1, Path(source)
    datasets.disable_progress_bars()
    datasets.disable_caching()
    datasets.logging.set_verbosity_error()
    versions = {one.__name__: one.__version__ for one in (datasets, tokenizers, transformers)}
    print(json.dumps({"ready": True, **versions}), flush=True)
    for _ in sys.stdin:
        work = tempfile.mkdtemp(dir=folder)
        start = time.perf_counter()
        encoder = Encoder(model_file)
        options: dict[str, Any] = {"batched": True, "num_proc": int(processes) if int(processes) > 1 else None}
        ids = datasets.Features({"ids": datasets.Sequence(datasets.Value("int32"))})
        if kind == "wiki":
            texts = [one for one in clean(path.read_text(encoding="utf-8")).split("\n\n") if one]
            texts = [one for one in texts if not one.strip().startswith("=")]
            made = datasets.Dataset.from_dict({"text": texts}).map(
                encode_wiki, fn_kwargs={"encoder": encoder}, remove_columns=["text"], features=ids, **options
            )
            made = cut(made, length)
        elif kind == "code":
            loaded = datasets.load_dataset("json", data_files=source, split="train", cache_dir=work)
            made = loaded.map(
                encode_code,
                with_indices=True,
                fn_kwargs={"encoder": encoder, "name": path.name},
                remove_columns=loaded.column_names,
                features=datasets.Features({**ids, "digest": datasets.Value("string")}),
                **options,
            )
            seen: set[str] = set()
            kept = [at for at, one in enumerate(made["digest"]) if not (one in seen or seen.add(one))]  # type: ignore[func-returns-value]
            made = cut((made if len(kept) == len(made) else made.select(kept)).select_columns(["ids"]), length)
        else:
            loaded = datasets.load_dataset("json", data_files=source, split="train", cache_dir=work)
            integers = datasets.Sequence(datasets.Value("int32"))
            made = loaded.map(
                encode_qa,
                fn_kwargs={"encoder": encoder, "length": length},
                remove_columns=loaded.column_names,
                features=datasets.Features(
                    {"input_ids": integers, "labels": integers, "used": datasets.Value("int32")}
                ),
                **options,
            )
        made.save_to_disk(f"{work}/rows")
        seconds = time.perf_counter() - start
        rows = datasets.load_from_disk(f"{work}/rows").with_format("numpy")
        digests = [hashlib.sha256(row.astype(np.int32).tobytes()).hexdigest() for row in rows["input_ids"]]
        if kind == "qa":
            digests += [hashlib.sha256(row.astype(np.int32).tobytes()).hexdigest() for row in rows["labels"]]
        tokens = int(np.sum(rows["used"])) if kind == "qa" else len(rows) * length
        shutil.rmtree(work)
        print(json.dumps({"tokens": tokens, "seconds": seconds, "digests": digests}), flush=True)


if __name__ == "__main__":
    main()
