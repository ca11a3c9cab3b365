"""Reading Meta's original format: `params.json` and one `consolidated.NN.pth` for each model-parallel part.

Source: meta-llama/codellama, `llama/model.py`: which layer is split along which axis. Its rotary embedding turns
neighbouring pairs (2i, 2i + 1) of a head, MindFormers' and Hugging Face's the halves (i, i + D/2), so the rows of `wq`
and `wk` are put in that order, head by head (grouped-query models have fewer heads in `wk`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from codellama_ckpt import json_text
from codellama_ckpt.boxes import Box, Shape, whole
from codellama_ckpt.checkpoint import Checkpoint, Piece, StoredTensor, TensorSource
from codellama_ckpt.configuration import CONFIG, EMBEDDING, config_of_meta
from codellama_ckpt.dtypes import Array, DType
from codellama_ckpt.errors import CheckpointError
from codellama_ckpt.torch_file import TorchFile

PARAMS = "params.json"
PARTS = "consolidated.*.pth"
_PART = re.compile(r"consolidated\.([0-9]{2})\.pth")
_EXTRA = "rope.freqs"  # the rotary frequencies: they follow from the configuration
_REPLICATED = -1

# Meta's name -> MindFormers', and the axis along which the parts are concatenated.
_TOP = {
    "tok_embeddings.weight": (EMBEDDING, 1),
    "norm.weight": ("model.norm_out.weight", _REPLICATED),
    "output.weight": ("lm_head.weight", 0),
}
# What follows "layers.N."; it is the same in MindFormers' names.
_LAYER = {
    "attention.wq.weight": 0,
    "attention.wk.weight": 0,
    "attention.wv.weight": 0,
    "attention.wo.weight": 1,
    "feed_forward.w1.weight": 0,
    "feed_forward.w2.weight": 1,
    "feed_forward.w3.weight": 0,
    "attention_norm.weight": _REPLICATED,
    "ffn_norm.weight": _REPLICATED,
}
_IN_LAYER = re.compile(r"layers\.(?:0|[1-9][0-9]*)\.(.+)")
_ROTATED = ("attention.wq.weight", "attention.wk.weight")


def read_meta(directory: Path) -> Checkpoint:
    """Open a directory of Meta's; CheckpointError for parts that are missing or do not fit together."""
    params = json_text.read(directory / PARAMS)
    if "model" in params:  # some releases have it one level down
        params = json_text.as_object(params["model"], f"{directory / PARAMS}: model")
    files = [TorchFile(path) for path in _parts(directory)]
    _require_same_names(files)
    tensors: dict[str, StoredTensor] = {}
    for name in files[0].tensors:
        if name != _EXTRA:
            translated, axis = _translate(name)
            tensors[translated] = _concatenated(name, axis, files)
    if EMBEDDING not in tensors or "model.layers.0.feed_forward.w1.weight" not in tensors:
        raise CheckpointError(f"{files[0].path} holds no embedding or no first layer; is it a Llama model?")
    config = config_of_meta(params, {name: tensor.shape for name, tensor in tensors.items()}, str(directory / PARAMS))
    for name, tensor in tensors.items():
        if name.endswith(_ROTATED) and len(tensor.shape) == 2:
            tensors[name] = _half_split(name, tensor, config, directory)
    dropped = (_EXTRA,) if _EXTRA in files[0].tensors else ()
    return Checkpoint("meta", directory, tensors, {CONFIG: json.dumps(config)}, dropped)


def _parts(directory: Path) -> list[Path]:
    paths = sorted(directory.glob(PARTS))
    numbers = [int(match[1]) if (match := _PART.fullmatch(path.name)) else -1 for path in paths]
    if numbers != list(range(len(paths))):
        names = ", ".join(path.name for path in paths)
        raise CheckpointError(f"{directory}: expected consolidated.00.pth and so on without a gap, found {names}")
    return paths


def _require_same_names(files: Sequence[TorchFile]) -> None:
    for file in files[1:]:
        if differing := sorted(file.tensors.keys() ^ files[0].tensors.keys()):
            raise CheckpointError(
                f"{file.path} and {files[0].path.name} hold different tensors: {', '.join(differing)} is in one only"
            )


def _translate(name: str) -> tuple[str, int]:
    if name in _TOP:
        return _TOP[name]
    match = _IN_LAYER.fullmatch(name)
    # A name that is no parameter's stays as it is: the check against the configuration lists it.
    return (f"model.{name}", _LAYER[match[1]]) if match and match[1] in _LAYER else (name, _REPLICATED)


def _concatenated(name: str, axis: int, files: Sequence[TorchFile]) -> StoredTensor:
    dtype, shape = files[0].tensors[name]
    if axis == _REPLICATED:
        _require_equal(name, dtype, shape, files)
        return StoredTensor(dtype, shape, (Piece(whole(shape), files[0], name, files[0].path.name),))
    pieces = []
    end = 0
    for file in files:
        held, part = file.tensors[name]
        if len(part) != 2 or held != dtype or part[1 - axis] != shape[1 - axis]:
            raise CheckpointError(
                f"{file.path}: tensor {name!r} is {held.name} {list(part)}, "
                f"which does not continue {dtype.name} {list(shape)} of {files[0].path.name}"
            )
        start, end = end, end + part[axis]
        box: Box = ((start, end), (0, part[1])) if axis == 0 else ((0, part[0]), (start, end))
        pieces.append(Piece(box, file, name, file.path.name))
    total = (end, shape[1]) if axis == 0 else (shape[0], end)
    return StoredTensor(dtype, total, tuple(pieces))


def _require_equal(name: str, dtype: DType, shape: Shape, files: Sequence[TorchFile]) -> None:
    """Every part has its own copy of a norm's weight: they must be one."""
    first = None
    for file in files if len(files) > 1 and len(shape) == 1 else ():
        if file.tensors[name] != (dtype, shape):
            raise CheckpointError(
                f"{file.path}: tensor {name!r} is not {dtype.name} {list(shape)} as in the first part"
            )
        copy: Array = np.empty(shape, dtype.storage)
        file.read_into(name, whole(shape), copy, (0,))
        if first is not None and copy.tobytes() != first:
            raise CheckpointError(f"{file.path}: tensor {name!r} differs from that of {files[0].path.name}")
        first = copy.tobytes()


def _half_split(name: str, tensor: StoredTensor, config: Mapping[str, object], directory: Path) -> StoredTensor:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    assert isinstance(hidden, int) and isinstance(heads, int)
    head = hidden // heads
    if (
        head < 2
        or head % 2
        or any((stop - start) % head for (start, stop), _ in (piece.box for piece in tensor.pieces))
    ):
        raise CheckpointError(
            f"{directory}: tensor {name!r} {list(tensor.shape)} in {len(tensor.pieces)} parts "
            f"does not consist of heads of {head} rows"
        )
    pieces = (
        Piece(piece.box, _HalfSplit(piece.source, tensor.dtype, head), piece.key, piece.file) for piece in tensor.pieces
    )
    return StoredTensor(tensor.dtype, tensor.shape, tuple(pieces))


class _HalfSplit:
    """A source whose rows are those of another one, in half-split order within each head."""

    def __init__(self, source: TensorSource, dtype: DType, head: int) -> None:
        self._source, self._dtype, self._head = source, dtype, head

    def read_into(self, key: str, box: Box, out: Array, at: Sequence[int]) -> None:
        (start, stop), (left, right) = box
        first, last = start // self._head * self._head, -(-stop // self._head) * self._head  # whole heads
        rows: Array = np.empty((last - first, right - left), self._dtype.storage)
        self._source.read_into(key, ((first, last), (left, right)), rows, (0, 0))
        paired = rows.reshape(-1, self._head // 2, 2, right - left)
        halved = paired.swapaxes(1, 2).reshape(rows.shape)
        out[at[0] : at[0] + stop - start, at[1] : at[1] + right - left] = halved[start - first : stop - first]
