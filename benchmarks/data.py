"""`preprocess` against Hugging Face datasets + tokenizers making the same rows, and reading against plain file reading.

    hatch run bench:data [--rounds 5] [--megabytes 8] [--vocab_size 8000] [--data FOLDER] [--kinds wiki qa code reading]

Each side runs in an interpreter of its own; the two take turns. Prints every round and how many rows are equal; the
last line is one JSON object. Text: the running Python's standard library, and WikiText-2 and Code Alpaca where FOLDER
(default: $CODELLAMA_TEST_DATA) holds them, repeated up to the size; nothing is downloaded.

Times are from text files to finished files, with the start of worker processes. One process is one core on both sides.
Reading compares passes over one file of rows of 4097 ids, in tokens/s, with plain sequential reading of its bytes, and
of a file of nothing but the ids as int32.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from codellama_data import convert_alpaca, standard_library
from codellama_data.spool import Spool, integer_type
from codellama_data.writing import write_partitions
from codellama_tokenizer import train_tokenizer
from sides.hardware import hardware
from sides.workers import Worker, environment_python

SIDES = Path(__file__).parent / "sides"
PEER_ENVIRONMENT = "bench-datasets"
PROCESSES = (1, 2)
SEQ_LENGTH = 1024
READING_BATCH, READING_LENGTH, READING_VOCAB = 8, 4097, 32016
MEBIBYTE = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=8, help="text of each kind")
    parser.add_argument("--read_megabytes", type=int, default=400, help="size of the file for reading")
    parser.add_argument("--vocab_size", type=int, default=8000)
    parser.add_argument("--data", type=Path, default=os.environ.get("CODELLAMA_TEST_DATA"))
    parser.add_argument("--kinds", nargs="+", default=["wiki", "qa", "code", "reading"])
    parser.add_argument(
        "--peer_python", help=f"an interpreter with datasets and transformers; default: {PEER_ENVIRONMENT}'s"
    )
    flags = parser.parse_args()
    print(hardware())
    ours: dict[str, float] = {}
    names = ("datasets", "plain bytes", "plain array")
    peers: dict[str, dict[str, float]] = {name: {} for name in names}
    ratios: dict[str, dict[str, float]] = {name: {} for name in names}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = [document.text for document in standard_library().documents()]
        model_file = folder / "model" / "tokenizer.model"
        model_file.parent.mkdir()
        train_tokenizer(texts, model_file, flags.vocab_size)
        for kind in (one for one in flags.kinds if one != "reading"):
            source = make_input(kind, folder, texts, flags.megabytes * MEBIBYTE, flags.data)
            theirs = flags.peer_python or environment_python(PEER_ENVIRONMENT)
            for processes in PROCESSES:
                arguments = [kind, *map(str, (source, model_file, SEQ_LENGTH, processes, folder))]
                commands = {
                    "ours": [sys.executable, str(SIDES / "data_ours.py"), *arguments],
                    "datasets": [theirs, str(SIDES / "data_datasets.py"), *arguments],
                }
                label = f"{kind}, {processes} process{'es' * (processes > 1)}"
                rates = alternate(label, commands, flags.rounds)
                ours[label] = statistics.median(rates["ours"])
                peers["datasets"][label] = statistics.median(rates["datasets"])
                ratios["datasets"][label] = ratio(rates["ours"], rates["datasets"])
        if "reading" in flags.kinds:
            path = make_rows(folder / "rows.mindrecord", flags.read_megabytes * MEBIBYTE)
            for cache in ("cold", "warm"):
                modes = ("shuffled", "in_order", "bytes", "array")
                program = [sys.executable, str(SIDES / "data_reading.py"), str(path)]
                commands = {mode: [*program, mode, str(READING_BATCH), cache] for mode in modes}
                rates = alternate(f"reading, {cache} cache", commands, flags.rounds)
                for mode in modes[:2]:
                    label = f"reading {mode}, {cache} cache"
                    ours[label] = statistics.median(rates[mode])
                    for plain in modes[2:]:
                        peers[f"plain {plain}"][label] = statistics.median(rates[plain])
                        ratios[f"plain {plain}"][label] = ratio(rates[mode], rates[plain])
    print(
        json.dumps(
            {
                "work": f"preprocess {flags.megabytes} MiB of text to rows of {SEQ_LENGTH + 1} ids, vocabulary of "
                f"{flags.vocab_size}; reading {flags.read_megabytes} MiB in batches of {READING_BATCH}; tokens/s",
                "ours": ours,
                "peers": peers,
                "ratio": ratios,
                "hardware": hardware(),
            }
        )
    )


def alternate(label: str, commands: dict[str, list[str]], rounds: int) -> dict[str, list[float]]:
    """Tokens/s of every side in every round, the sides taking turns."""
    workers = {name: Worker(command) for name, command in commands.items()}
    rates: dict[str, list[float]] = {name: [] for name in commands}
    last: dict[str, dict[str, Any]] = {}
    for number in range(rounds):
        shown = []
        for name, worker in workers.items():
            last[name] = worker.measure()
            rates[name].append(last[name]["tokens"] / last[name]["seconds"])
            shown.append(f"{name} {rates[name][-1]:,.0f}")
        print(f"{label}, round {number + 1}, tokens/s: {', '.join(shown)}", flush=True)
    for worker in workers.values():
        worker.close()
    if all("digests" in one for one in last.values()):
        first, second = (Counter(one["digests"]) for one in last.values())
        print(f"{label}: {(first & second).total()} of {max(first.total(), second.total())} vectors equal", flush=True)
    return rates


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median of the ratios of pairs."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def make_input(kind: str, folder: Path, texts: list[str], size: int, data: Path | None) -> Path:
    """One text file of about `size` bytes."""
    path = folder / f"{kind}.{'txt' if kind == 'wiki' else 'jsonl'}"
    with path.open("w", encoding="utf-8") as stream:
        written = 0
        for text in pieces(kind, folder, texts, data):
            written += stream.write(text)
            if written >= size:
                break
    print(f"{kind}: {path.stat().st_size / MEBIBYTE:.1f} MiB")
    return path


def pieces(kind: str, folder: Path, texts: list[str], data: Path | None) -> Iterator[str]:
    """Endless text for one kind; for code, once through, since repeated documents are left out."""
    if kind == "code":
        yield from (json.dumps({"text": text}) + "\n" for text in texts)
        return
    wikitext = sorted(data.glob("wikitext2/wiki.*.tokens")) if data else []
    alpaca = sorted(data.glob("codealpaca/*.json")) if data else []
    generator = random.Random(0)
    talks = []
    if kind == "qa" and alpaca:
        convert_alpaca(alpaca[0], folder / "talks.json")
        talks = json.loads((folder / "talks.json").read_text(encoding="utf-8"))
    found = {"wiki": wikitext, "qa": talks}[kind]
    print(f"{kind}: text of {'the test data' if found else 'the standard library'}")
    while True:
        if kind == "wiki":
            for path in wikitext:
                yield from (f"{line}\n" for line in path.read_text(encoding="utf-8").split("\n"))
            if not wikitext:
                yield from (f" {' '.join(line.split())} \n \n" for text in texts for line in text.split("\n\n"))
        elif talks:
            yield from (json.dumps(talk) + "\n" for talk in talks)
        else:
            for text in texts:
                start = generator.randrange(len(text))
                asked, answer = text[max(0, start - 300) : start] or "?", text[start : start + 1500]
                talk = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
                yield json.dumps({"conversations": talk}) + "\n"


def make_rows(path: Path, size: int) -> Path:
    """A MindRecord file of random ids, about `size` bytes, and the same ids as a plain file of int32."""
    generator = np.random.default_rng(0)
    dtype = integer_type(READING_VOCAB)
    with (
        Spool(path.with_name("spool"), ("input_ids",), READING_LENGTH, dtype) as spool,
        path.with_name(path.name + ".int32").open("wb") as array,
    ):
        for _ in range(size // (MEBIBYTE * np.dtype(dtype).itemsize)):
            ids = generator.integers(0, READING_VOCAB, MEBIBYTE, np.int32)
            spool.append(ids)
            array.write(ids.tobytes())
        write_partitions(spool, path.parent, path, 1)
    path.with_name("spool").unlink()
    return path


if __name__ == "__main__":
    main()
