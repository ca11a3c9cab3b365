"""Files that `torch.save` wrote (`.pth`, `.bin`), read with PyTorch in its restricted way: tensors, never code.

A pickle can run any code when it is loaded. `weights_only` makes PyTorch build nothing but tensors and containers and
refuse the rest. The file is mapped, not read: only what is asked for comes into memory, and the mapping is dropped now
and then, since pages that were read count as this process's memory until it is.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from codellama_ckpt.boxes import Box, Shape, extent
from codellama_ckpt.dtypes import BY_NAME, Array, DType
from codellama_ckpt.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_MAPPED = 1 << 28  # bytes read after which the mapping is renewed


class TensorType(NamedTuple):
    """Element type and shape of a tensor."""

    dtype: DType
    shape: Shape


class TorchFile:
    """The tensors of one file of `torch.save`.

    Attributes:
        path: of the file.
        metadata: empty; such files carry no text fields.
        tensors: element type and shape, by name.

    Raises:
        CheckpointError: PyTorch is not installed, the file is damaged, holds anything but tensors, or is of the format
            before PyTorch 1.6.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mapped: Mapping[str, torch.Tensor] | None = None
        self._read = 0
        self.metadata: Mapping[str, str] = {}
        self.tensors: Mapping[str, TensorType] = {
            name: self._type(name, tensor) for name, tensor in self._mapping().items()
        }
        self._mapped = None

    def read_into(self, key: str, box: Box, out: Array, at: Sequence[int]) -> None:
        """Read the bits of a box (not empty) of tensor `key` into the C-contiguous `out`, from index `at` on."""
        import torch  # noqa: PLC0415

        tensor = self._mapping()[key]
        if self._type(key, tensor) != self.tensors[key]:
            raise CheckpointError(f"{self.path} changed while it was being read; open the checkpoint again")
        # NumPy has no bfloat16; the other types it shares with PyTorch.
        bits = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
        part = bits[tuple(slice(start, stop) for start, stop in box)].numpy()
        sizes = extent(box)
        target = tuple(slice(first, first + size) for first, size in zip(at, sizes, strict=True))
        out[target] = part.view(out.dtype)
        self._read += part.nbytes
        if self._read > _MAPPED:
            self._mapped, self._read = None, 0

    def _mapping(self) -> Mapping[str, torch.Tensor]:
        if self._mapped is None:
            self._mapped = self._load()
        return self._mapped

    def _load(self) -> Mapping[str, torch.Tensor]:
        try:
            import torch  # noqa: PLC0415
        except ImportError:
            raise CheckpointError(
                f"{self.path} was written by PyTorch, which is needed to read it: pip install 'codellama-ckpt[torch]'"
            ) from None
        if not self.path.is_file():
            raise CheckpointError(f"{self.path} does not exist")
        if not zipfile.is_zipfile(self.path):
            raise CheckpointError(
                f"{self.path} is truncated, or no file of PyTorch 1.6 or later; copy it again, or save it again "
                "with a newer PyTorch"
            )
        try:
            loaded = torch.load(self.path, map_location="cpu", mmap=True, weights_only=True)
        except Exception as error:  # whatever a hostile file makes of it
            first = str(error).strip().split("\n", maxsplit=1)[0]
            raise CheckpointError(
                f"{self.path} is damaged, or holds more than tensors, which is refused as it could run code: "
                f"{type(error).__name__}: {first:.200}"
            ) from None
        if not isinstance(loaded, dict) or not loaded:
            raise CheckpointError(f"{self.path} holds no tensors by name, found {type(loaded).__name__}")
        for name, tensor in loaded.items():
            if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
                raise CheckpointError(f"{self.path}: {name!r:.80} is {type(tensor).__name__}, expected a tensor")
        return loaded

    def _type(self, name: str, tensor: torch.Tensor) -> TensorType:
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in BY_NAME or str(tensor.layout) != "torch.strided" or tensor.device.type != "cpu":
            raise CheckpointError(f"{self.path}: tensor {name!r}: {tensor.dtype}, {tensor.layout} is not read here")
        return TensorType(BY_NAME[dtype], tuple(tensor.shape))
