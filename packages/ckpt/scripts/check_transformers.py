"""Check converted and reversed checkpoints against transformers itself: bit-exact weights, identical logits.

    pip install ./packages/ckpt torch transformers && python packages/ckpt/scripts/check_transformers.py [META_DIR]

Random models with grouped-query attention (of two key/value heads to six), one with tied embeddings, in three types and
with one file or several shards, go from transformers' `save_pretrained` through `codellama-ckpt convert` (to
.safetensors and to .ckpt) and `--reversed` back into transformers. A directory in Meta's format, such as
tests/golden/meta, goes the same way, and is compared with what lies beside it in meta_as_hf. Exits 1 on any difference.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from codellama_ckpt.cli import main as codellama_ckpt
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

IDS = torch.arange(14).reshape(2, 7)


def main(meta: Path) -> int:
    """Run all checks; the number of those that failed."""
    failures = 0
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for tied in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                failures += not check_round_trip(Path(folder), dtype, tied)
    with tempfile.TemporaryDirectory() as folder:
        failures += not check_meta(Path(folder), meta)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}: {failures} failures")
    return failures


def check_round_trip(folder: Path, dtype: torch.dtype, tied: bool) -> bool:
    """Transformers -> ours -> transformers, by both kinds of full file."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder / "hf", max_shard_size="30KB")
    original = AutoModelForCausalLM.from_pretrained(folder / "hf")  # not the above: `to` rounded its rotary table too
    good = True
    for suffix, size in (("safetensors", "5GB"), ("ckpt", "20KB")):
        full, back = folder / f"full.{suffix}", folder / f"back_{suffix}"
        run("convert", "--input_path", folder / "hf", "--output_path", full)
        run("convert", "--reversed", "--input_path", full, "--output_path", back, "--max_shard_size", size)
        loaded = AutoModelForCausalLM.from_pretrained(back)
        good &= report(
            f"{dtype}, tied {tied}, .{suffix}, {len(list(back.glob('*.safetensors')))} files", original, loaded
        )
    return good


def check_meta(folder: Path, meta: Path) -> bool:
    """Meta's format -> ours -> transformers, compared with transformers' own conversion and its logits of long ago."""
    run("convert", "--input_path", meta, "--output_path", folder / "full.safetensors")
    run("convert", "--reversed", "--input_path", folder / "full.safetensors", "--output_path", folder / "back")
    original = AutoModelForCausalLM.from_pretrained(meta.parent / "meta_as_hf", dtype=torch.bfloat16)
    loaded = AutoModelForCausalLM.from_pretrained(folder / "back")
    good = report("Meta's format", original, loaded)
    ids = torch.from_numpy(np.load(meta.parent / "meta_as_hf/ids.npy")).long()
    logits = np.load(meta.parent / "meta_as_hf/logits.npy")
    with torch.no_grad():
        found = loaded.float()(ids).logits.numpy()
    difference = float(np.abs(found - logits).max())
    print(f"Meta's format, logits against those of the release that made the golden files: {difference:.1e} apart")
    return good and difference < 1e-5  # float32, two releases of PyTorch: they need not round alike


def report(what: str, a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Print and return whether two models have the same weights, bit by bit, and give identical logits."""
    ours, theirs = dict(a.named_parameters()), dict(b.named_parameters())
    weights = ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours
    )
    with torch.no_grad():
        logits = torch.equal(a.eval()(IDS).logits, b.eval()(IDS).logits)
    print(f"{what}: weights {'equal' if weights else 'DIFFER'}, logits {'identical' if logits else 'DIFFER'}")
    return weights and logits


def run(*arguments: object) -> None:
    """One command of codellama-ckpt."""
    if code := codellama_ckpt([str(argument) for argument in arguments]):
        sys.exit(code)


if __name__ == "__main__":
    default = Path(__file__).parent.parent / "tests/golden/meta"
    sys.exit(min(1, main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)))
