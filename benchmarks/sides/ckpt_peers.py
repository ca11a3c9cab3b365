"""The peers' side of the checkpoint benchmark: torch.save, safetensors and plain copying do the same work.

python ckpt_peers.py copy|torch|safetensors convert|save|load|load_verified|merge FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from ckpt_files import SAVED, SHARDS, SOURCE, files_of, forget, measured, on_disk
from safetensors.torch import load_file, save_file

CHUNK = 1 << 24


def main() -> None:
    side, work, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    saved = f"{SAVED}_{side}"
    sources = {"convert": SOURCE, "save": SOURCE, "load": saved, "load_verified": saved, "merge": SHARDS}
    source = folder / sources[work]
    output = folder / (saved if work == "save" else "output")
    weights = [file for file in files_of(source) if file.suffix == ".safetensors"]
    size = sum(file.stat().st_size for file in files_of(folder / SOURCE))
    save = {"torch": torch.save, "safetensors": save_file}.get(side)
    if work == "save":
        tensors = {} if side == "copy" else joined(weights)
        content = b"".join(file.read_bytes() for file in weights) if side == "copy" else b""
        output.unlink(missing_ok=True)
        with measured(size, folder):
            if side == "copy":
                output.write_bytes(content)
            else:
                save(tensors, output)
            on_disk(output)
        return
    forget(source)
    with measured(size, folder):
        if work.startswith("load"):
            load_whole(side, source)
        elif side == "copy":
            copy(weights, output)
        else:
            save(joined(weights) if work == "convert" else merged(weights, source), output)
            on_disk(output)
    output.unlink(missing_ok=True)


def load_whole(side: str, source: Path) -> object:
    if side == "copy":
        buffer = bytearray(source.stat().st_size)
        with source.open("rb", buffering=0) as file:
            view = memoryview(buffer)
            while view and (done := file.readinto(view)):
                view = view[done:]
        return buffer
    if side == "torch":
        return torch.load(source, weights_only=True)
    # load_file maps the file; a copy is what has its bytes in memory.
    return {name: tensor.clone() for name, tensor in load_file(source).items()}


def copy(sources: list[Path], output: Path) -> None:
    """One file after the other, through one small buffer."""
    with output.open("wb", buffering=0) as target:
        for path in sources:
            with path.open("rb", buffering=0) as file:
                while content := file.read(CHUNK):
                    target.write(content)
    on_disk(output)


def joined(weights: list[Path]) -> dict[str, torch.Tensor]:
    return {name: tensor for file in weights for name, tensor in load_file(file).items()}


def merged(weights: list[Path], source: Path) -> dict[str, torch.Tensor]:
    """Slices put together as the index says."""
    parts = {file.name: load_file(file) for file in weights}
    whole = {}
    for name, entry in json.loads((source / "index.json").read_text())["tensors"].items():
        slices = [parts[piece["file"]][name] for piece in entry["slices"]]
        axis = next((d for d, n in enumerate(entry["shape"]) if slices[0].shape[d] != n), 0)
        whole[name] = torch.cat(slices, axis) if len(slices) > 1 else slices[0]
    return whole


if __name__ == "__main__":
    main()
