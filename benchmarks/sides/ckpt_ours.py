"""The project's side of the checkpoint benchmark: does one piece of work and prints its figures as JSON.

python ckpt_ours.py make FOLDER GIGABYTES
python ckpt_ours.py convert|save|load|load_verified|merge FOLDER
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from ckpt_files import SAVED, SHARDS, SOURCE, forget, measured
from codellama_ckpt import (
    GlobalSlice,
    LazyTensor,
    TensorEntry,
    finalize,
    open_checkpoint,
    plan,
    save_sharded,
    to_hugging_face,
    write_full,
    write_safetensors,
)
from codellama_ckpt.configuration import expected_shapes

CONFIG = {
    "model_type": "llama",
    "vocab_size": 32016,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
RANKS = 4
COLUMNS = ("wo.weight", "w2.weight")  # tensor parallel splits them by columns, other matrices by rows
SHARD = 1 << 30  # bytes of the source's files


def main() -> None:
    work, folder = sys.argv[1], Path(sys.argv[2])
    if work == "make":
        make(folder, float(sys.argv[3]))
        return
    saved = f"{SAVED}_ours"
    sources = {"convert": SOURCE, "save": SOURCE, "load": saved, "load_verified": saved, "merge": SHARDS}
    source = folder / sources[work]
    output = folder / "output.safetensors"
    checkpoint = open_checkpoint(source, verify=work == "load_verified")
    size = sum(map(checkpoint.size, checkpoint))
    if work == "save":
        tree = {name: checkpoint.read(name, dtype="stored") for name in checkpoint}
        lazy = {n: LazyTensor(checkpoint.dtype(n), a.shape, lambda a=a: a) for n, a in tree.items()}
        shutil.rmtree(folder / saved, ignore_errors=True)
        with measured(size, folder):
            save_sharded(lazy, folder / saved)
        return
    forget(source)
    with measured(size, folder):
        if work.startswith("load"):
            arrays = [checkpoint.read(name, dtype="stored") for name in checkpoint]
            assert len(arrays) == len(checkpoint)
        else:
            write_full(plan(open_checkpoint(source)), output)
    output.unlink(missing_ok=True)


def make(folder: Path, gigabytes: float) -> None:
    """The model as a Hugging Face directory, and as a sharded checkpoint of four tensor-parallel ranks."""
    save_sharded({}, folder / "empty")
    empty = open_checkpoint(folder / "empty")
    layer = sum(2 * int(np.prod(shape)) for shape in shapes_of(empty, 1).values())
    layers = max(1, 1 + round((gigabytes * 1e9 - layer) / (layer - 2 * 2 * 32016 * 4096)))
    shapes = shapes_of(empty, layers)
    shutil.rmtree(folder / "empty")
    make_source(folder / SOURCE, shapes)
    (folder / SOURCE / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}))
    source = open_checkpoint(folder / SOURCE)
    for rank in range(RANKS):
        tree, slices = {}, {}
        for name, shape in shapes.items():
            if len(shape) == 1 and rank:
                continue
            axis = 1 if name.endswith(COLUMNS) else 0
            part = tuple(
                slice(rank * n // RANKS, (rank + 1) * n // RANKS) if len(shape) == 2 and d == axis else slice(0, n)
                for d, n in enumerate(shape)
            )
            held = tuple(s.stop - s.start for s in part)
            tree[name] = LazyTensor("bfloat16", held, lambda n=name, p=part: source.read(n, p, dtype="stored"))
            slices[name] = GlobalSlice(shape, part)
        save_sharded(tree, folder / SHARDS, slices=slices, writer=rank, writers=RANKS, token="bench")
    finalize(folder / SHARDS, RANKS, token="bench")
    sizes = [source.size(name) for name in source]
    print(json.dumps({"bytes": sum(sizes), "tensors": len(sizes), "largest": max(sizes)}))


def shapes_of(empty, layers):
    return expected_shapes(empty, {**CONFIG, "num_hidden_layers": layers})


def make_source(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    shards: list[list[str]] = [[]]
    held = 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        if held + size > SHARD and shards[-1]:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    placed = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        # Random bits, of sizes that weights have: from 2**-8 to 1.
        entries = [
            TensorEntry(
                to_hugging_face(name),
                "bfloat16",
                shapes[name],
                lambda s=shapes[name]: random.integers(0x3B80, 0x3F80, s, dtype=np.uint16),
            )
            for name in names
        ]
        write_safetensors(folder / file, entries)
        placed |= dict.fromkeys((entry.name for entry in entries), file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))


if __name__ == "__main__":
    main()
