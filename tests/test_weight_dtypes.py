"""Weights in float16 and int8, end to end: a real model's text and perplexity, and memory while loading."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import codellama_kernels
import numpy as np
import pytest
from codellama_app import CodeLlama, UserError
from codellama_app.weights import tree_of
from codellama_ckpt.names import to_hugging_face
from codellama_model import Generator, LlamaConfig, select
from safetensors.numpy import save_file

PERPLEXITY_GROWTH = 1.005  # of int8 over float32, at most
MEGABYTE = 1 << 20
SLACK = 40 * MEGABYTE  # what loading allocates beside weights: the chunk that is quantised, and the allocator's own


@pytest.fixture(scope="module")
def text(data: Path) -> list[int]:
    """Greedy text of the model, by transformers."""
    return json.loads((data / "stories260k" / "greedy.json").read_text())["greedy_ids"]


@pytest.fixture(scope="module", params=["fp16", "int8"])
def stories(request: pytest.FixtureRequest, data: Path) -> tuple[str, CodeLlama]:
    return request.param, CodeLlama.from_pretrained(data / "stories260k", weight_dtype=request.param)


def perplexity(logits: np.ndarray, ids: list[int]) -> float:
    scores = logits[:-1].astype(np.float64)
    log_sums = np.log(np.exp(scores - scores.max(-1, keepdims=True)).sum(-1)) + scores.max(-1)
    return float(np.exp((log_sums - scores[np.arange(len(ids) - 1), ids[1:]]).mean()))


def test_a_real_model_keeps_its_text_in_float16_and_its_perplexity_in_int8(stories, text, data):
    kind, lm = stories
    if kind == "fp16":
        assert lm.generate([text[:1]], len(text) - 1)[0] == text[1:]
    exact = CodeLlama.from_pretrained(data / "stories260k")
    ids = np.array([text], np.int32)
    growth = perplexity(lm.logits(ids)[0], text) / perplexity(exact.logits(ids)[0], text)
    assert 1 / PERPLEXITY_GROWTH < growth < PERPLEXITY_GROWTH


def test_kernels_and_composed_operations_choose_the_same_ids(stories, text):
    if not codellama_kernels.available():
        pytest.skip(codellama_kernels.reason())
    _, lm = stories
    prompts = [text[:1], text[:40], text[3:20]]
    fused = lm.generate(prompts, 24, stop_ids=())
    network = lm.network
    kept = network.operations
    network.operations = select("composed")
    try:
        assert Generator(network).generate(prompts, 24, stop_ids=()) == fused
    finally:
        network.operations = kept


def test_what_was_converted_is_not_saved(stories):
    with pytest.raises(UserError, match="only a network in float32 can be saved"):
        tree_of(stories[1].network)


def test_another_type_is_refused(data):
    with pytest.raises(ValueError, match="weight_dtype must be one of fp32, fp16, int8, found 'fp8'"):
        CodeLlama.from_pretrained(data / "stories260k", weight_dtype="fp8")


LOAD = """
import sys, mindspore
from codellama_app import CodeLlama
from codellama_app.command import start_mindspore
def memory(key):
    return 1024 * next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key))
start_mindspore()
CodeLlama.from_pretrained(sys.argv[2])
before = memory("VmRSS")
lm = CodeLlama.from_pretrained(sys.argv[1], weight_dtype=sys.argv[3])
print(memory("VmHWM") - before)
"""


@pytest.mark.parametrize(("kind", "bytes_per_weight"), [("fp32", 4), ("fp16", 2), ("int8", 1 + 2 / 64)])
def test_loading_never_holds_a_second_copy(tmp_path, kind, bytes_per_weight):
    """The most memory of the process is what it keeps, and once more its largest matrix."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    sizes = {"vocab_size": 20_000, "hidden_size": 640, "num_heads": 10, "intermediate_size": 1728}
    large = LlamaConfig(**sizes, num_layers=8, max_position_embedding=64)
    small = LlamaConfig(vocab_size=32, hidden_size=20, num_heads=1, num_layers=1, intermediate_size=8)
    for name, config in (("large", large), ("small", small)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config.to_hugging_face()))
        rng = np.random.default_rng(0)
        shapes = config.parameter_shapes()
        save_file(
            {to_hugging_face(n): rng.random(s, np.float32) for n, s in shapes.items()}, folder / "model.safetensors"
        )
    command = [sys.executable, "-c", LOAD, str(tmp_path / "large"), str(tmp_path / "small"), kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    kept = bytes_per_weight * large.num_parameters()
    matrix = bytes_per_weight * 20_000 * 640
    grown = int(done.stdout.split()[-1])
    assert kept - SLACK < grown < kept + matrix + SLACK
