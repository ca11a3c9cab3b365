"""A measurement of this project and its peers in turns: models, environments, idle gates, the table, the JSON line.

Every side is a program of this folder that follows `decode_protocol`, in an interpreter of its own.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sides.hardware import hardware
from sides.idle import wait_until_idle
from sides.workers import Worker, environment_python, existing_environment_python

HERE = Path(__file__).parent
PATIENCE = 60.0  # seconds; then the measurement is made all the same, and counted


@dataclass(frozen=True)
class Peer:
    """Another program: its environment and its program here, the type of its weights, and its form of the model."""

    environment: str
    program: str
    weights: str
    model: str
    costly: bool = False  # to install: the environment is used where it exists and not made


PEERS = {
    "llama.cpp F16": Peer("bench-llama-cpp", "decode_llama_cpp.py", "fp16", "gguf", costly=True),
    "llama.cpp Q8_0": Peer("bench-llama-cpp", "decode_llama_cpp.py", "int8", "gguf", costly=True),
    "CTranslate2 float32": Peer("bench-transformers", "decode_ctranslate2.py", "fp32", "ctranslate2"),
    "OpenVINO F16": Peer("bench-openvino", "decode_openvino.py", "fp16", "openvino"),
    "OpenVINO F16, float32 arithmetic": Peer("bench-openvino", "decode_openvino.py", "fp32", "openvino"),
    "transformers float32": Peer("bench-transformers", "decode_transformers.py", "fp32", "hugging_face"),
}


def arguments(description: str, weights: str, rounds: int = 7) -> argparse.ArgumentParser:
    """What all these benchmarks can be told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--weights", choices=["fp32", "fp16", "int8"], default=weights, help="ours")
    parser.add_argument(
        "--compute_dtype", choices=["float32", "bfloat16"], default="float32", help="ours: of the products of prompts"
    )
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), help="default: those that fit --weights")
    parser.add_argument("--models", type=Path, help="keep the converted models here; default: make them anew")
    parser.add_argument(
        "--python", nargs="*", default=[], metavar="ENVIRONMENT=PYTHON", help="interpreters in place of hatch's"
    )
    return parser


def peers_for(flags: argparse.Namespace) -> list[str]:
    if flags.peers is not None:
        return flags.peers
    if flags.weights == "int8":
        return ["llama.cpp Q8_0"]
    return [name for name, peer in PEERS.items() if peer.weights != "int8"]


def contest(flags: argparse.Namespace, work: str, kind: str, sizes: list[str]) -> None:
    """Measures `kind` ("decode" or "prefill", tokens/s) and prints the table and, last, one JSON object."""
    sizes = [*sizes, "--batch", str(flags.batch), "--threads", str(flags.threads)]
    with models_folder(flags.models) as models, contextlib.ExitStack() as stack:
        programs, missing = commands(flags, models, sizes)
        workers = {}
        for name, command in programs.items():
            try:
                workers[name] = Worker(command, environment(flags))
            except SystemExit as error:
                if name == "ours":
                    raise
                missing[name] = f"its process ended before it was ready ({error})"
                continue
            stack.callback(workers[name].close)
        print(f"{hardware()}\n{work}", flush=True)
        seen: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
        busy = 0
        for number in range(flags.rounds):
            for name, worker in workers.items():
                busy += wait_until_idle(PATIENCE) > 0
                seen[name].append(worker.measure())
            print(f"round {number + 1}: " + ", ".join(f"{n} {m[-1][kind]:.1f}" for n, m in seen.items()), flush=True)
    report(work, {n: [m[kind] for m in all_] for n, all_ in seen.items()}, missing, True, busy)
    for name, all_ in seen.items():
        same = _parted(seen["ours"][-1]["ids"], all_[-1]["ids"])
        text = "greedy text equal" if same is None else f"greedy text parts at token {same}"
        print(f"{name}: {max(m['memory'] for m in all_) / 2**20:.0f} MB at most; {text}", file=sys.stderr)


def _parted(first: list[int], second: list[int]) -> int | None:
    """Where two texts part."""
    return next((place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)


def cold(flags: argparse.Namespace, work: str, sizes: list[str]) -> None:
    """Seconds from the start of a process to its first token."""
    with models_folder(flags.models) as models:
        programs, missing = commands(flags, models, [*sizes, "--threads", str(flags.threads), "--cold"])
        print(f"{hardware()}\n{work}", flush=True)
        seen: dict[str, list[float]] = {name: [] for name in programs}
        busy = 0
        for _ in range(flags.rounds):
            for name, command in programs.items():
                busy += wait_until_idle(PATIENCE) > 0
                start = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True, env=environment(flags))
                seen[name].append(time.perf_counter() - start)
    report(work, seen, missing, False, busy)


def report(work: str, seen: dict[str, list[float]], missing: dict[str, str], more_is_better: bool, busy: int) -> None:
    """The table, and the line for machines."""
    medians = {name: statistics.median(values) for name, values in seen.items()}
    ratio = {}
    for name, values in seen.items():
        pairs = zip(seen["ours"], values, strict=True)
        ratio[name] = statistics.median(a / b if more_is_better else b / a for a, b in pairs)
        print(f"{name:36} {medians[name]:10.2f}   ours is {ratio[name]:.2f} times as fast")
    for name, reason in missing.items():
        print(f"{name:36}    missing: {reason}")
    if busy:
        print(f"{busy} measurements were made though the machine was not idle")
    ours = medians.pop("ours")
    del ratio["ours"]
    line = {"work": work, "ours": ours, "peers": medians, "ratio": ratio, "missing": missing, "hardware": hardware()}
    print(json.dumps({**line, "rounds": len(seen["ours"]), "not_idle": busy}), flush=True)


@contextlib.contextmanager
def models_folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def environment(flags: argparse.Namespace) -> dict[str, str]:
    count = str(flags.threads)
    return {**os.environ, "CODELLAMA_NUM_THREADS": count, "OMP_NUM_THREADS": count}


def commands(flags: argparse.Namespace, models: Path, sizes: list[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The command of each side that is installed, ours first, and why the others are missing."""
    source = checkpoint(flags, models)
    torch = interpreter(flags, "bench-transformers")
    ours = [sys.executable, str(HERE / "decode_ours.py"), str(source), "--weights", flags.weights, *sizes]
    programs = {"ours": [*ours, "--compute_dtype", flags.compute_dtype]}
    missing = {}
    for name in peers_for(flags):
        peer = PEERS[name]
        python, folder = interpreter(flags, peer.environment, peer.costly), models / peer.model
        if python is None:
            missing[name] = f"the environment {peer.environment} is not installed"
            continue
        if peer.model == "gguf":
            _make(folder, [str(torch), "decode_gguf.py", str(source), str(folder)])
        elif peer.model != "hugging_face":
            _make(folder, [python, peer.program, "--make", str(source), str(folder)])
        programs[name] = [python, str(HERE / peer.program), str(folder), "--weights", peer.weights, *sizes]
    return programs, missing


def checkpoint(flags: argparse.Namespace, models: Path) -> Path:
    """The Hugging Face directory that all sides load, made where it is missing."""
    source = models / "hugging_face"
    if not source.exists():
        _make(source, [str(interpreter(flags, "bench-transformers")), "decode_transformers.py", "--make", str(source)])
    return source


def interpreter(flags: argparse.Namespace, name: str, costly: bool = False) -> str | None:
    """The interpreter of an environment: as `--python` says, or hatch's; None where a costly one was not made."""
    given = dict(one.split("=", 1) for one in flags.python)
    return given.get(name) or (existing_environment_python(name) if costly else environment_python(name))


def _make(folder: Path, command: list[str]) -> None:
    if folder.exists():
        return
    beside = folder.with_name(f".{folder.name}")
    beside.mkdir(parents=True, exist_ok=True)
    python, program, *rest = command
    done = subprocess.run(
        [python, str(HERE / program), *rest[:-1], str(beside)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{program} failed:\n{done.stderr}")
    beside.rename(folder)
