"""Make `tests/golden`: small models with random weights, written by Meta's way of saving and by transformers.

    pip install torch 'transformers==4.46.3' && python scripts/make_golden.py tests/golden

Writes:
    meta/           Meta's original format in two model-parallel parts, bfloat16, grouped-query attention
    meta_as_hf/     what transformers' own converter makes of it, with the logits of transformers for fixed ids
    bin/            the same network as pytorch_model-*.bin shards, with the rotary tables of old releases in them
    versions.json   of what made these files

transformers 4.46 is the last to carry the converter of Meta's format in a wheel.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import LlamaForCausalLM
from transformers.models.llama.convert_llama_weights_to_hf import write_model

DIM, LAYERS, HEADS, KV_HEADS, VOCABULARY, INNER, PARTS = 16, 2, 4, 2, 24, 48, 2
HEAD = DIM // HEADS
PARAMS = {
    "dim": DIM,
    "n_layers": LAYERS,
    "n_heads": HEADS,
    "n_kv_heads": KV_HEADS,
    "multiple_of": 8,
    "ffn_dim_multiplier": 1.0,
    "norm_eps": 1e-5,
    "rope_theta": 1000000,
}


def main(golden: Path) -> None:
    """Make everything below `golden`, which is replaced."""
    shutil.rmtree(golden, ignore_errors=True)
    golden.mkdir(parents=True)
    write_meta(golden / "meta")
    converted = golden / "meta_as_hf"
    write_model(str(converted), str(golden / "meta"), llama_version="2", vocab_size=VOCABULARY, num_shards=PARTS)
    model = LlamaForCausalLM.from_pretrained(converted, torch_dtype=torch.float32)
    ids = torch.randint(0, VOCABULARY, (2, 7))
    with torch.no_grad():
        logits = model(ids).logits
    np.save(converted / "ids.npy", ids.numpy().astype(np.int32))
    np.save(converted / "logits.npy", logits.numpy())
    write_bin(golden / "bin", converted)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    (golden / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


def write_meta(folder: Path) -> None:
    """Model-parallel parts as meta-llama/codellama's `llama/model.py` splits them."""
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(PARAMS, indent=2) + "\n")

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float32).mul(0.3).to(torch.bfloat16)

    norms = {"norm.weight": 1 + random(DIM)}
    for layer in range(LAYERS):
        for name in ("attention_norm", "ffn_norm"):
            norms[f"layers.{layer}.{name}.weight"] = 1 + random(DIM)
    for part in range(PARTS):
        tensors = {"tok_embeddings.weight": random(VOCABULARY, DIM // PARTS)}
        for layer in range(LAYERS):
            start = f"layers.{layer}."
            tensors[start + "attention.wq.weight"] = random(HEADS * HEAD // PARTS, DIM)
            tensors[start + "attention.wk.weight"] = random(KV_HEADS * HEAD // PARTS, DIM)
            tensors[start + "attention.wv.weight"] = random(KV_HEADS * HEAD // PARTS, DIM)
            tensors[start + "attention.wo.weight"] = random(DIM, HEADS * HEAD // PARTS)
            tensors[start + "feed_forward.w1.weight"] = random(INNER // PARTS, DIM)
            tensors[start + "feed_forward.w2.weight"] = random(DIM, INNER // PARTS)
            tensors[start + "feed_forward.w3.weight"] = random(INNER // PARTS, DIM)
        tensors["output.weight"] = random(VOCABULARY // PARTS, DIM)
        tensors["rope.freqs"] = torch.arange(HEAD // 2, dtype=torch.bfloat16)
        torch.save({**tensors, **norms}, folder / f"consolidated.{part:02d}.pth")


def write_bin(folder: Path, source: Path) -> None:
    """The model at `source` as pickles in shards, each of the first shard's layers with its rotary table."""
    model = LlamaForCausalLM.from_pretrained(source, torch_dtype=torch.bfloat16)
    model.config.name_or_path = ""  # a path of this machine
    model.save_pretrained(folder, safe_serialization=False, max_shard_size="8KB")
    index_path = folder / "pytorch_model.bin.index.json"
    index = json.loads(index_path.read_text())
    for layer in range(LAYERS):
        shard = index["weight_map"][f"model.layers.{layer}.self_attn.q_proj.weight"]
        name = f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
        tensors = torch.load(folder / shard, weights_only=True)
        torch.save({**tensors, name: torch.ones(HEAD // 2)}, folder / shard)
        index["weight_map"][name] = shard
    index_path.write_text(json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    torch.manual_seed(0)
    main(Path(sys.argv[1]))
