"""The Ascend entry of the table in `ops`: MindSpore's own fused operators.

Written against the documented signatures of MindSpore 2.10 (`ops.rms_norm`, `ops.flash_attention_score`); it has not
been run, no Ascend device having been at hand. Shapes as in `composed`.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, ops

# `flash_attention_score`: sparse_mode 2 is causal from the upper left corner and wants one compressed mask for all
# lengths; sparse_mode 0 takes the whole mask.
_CAUSAL_SPARSE_MODE, _WHOLE_MASK_SPARSE_MODE = 2, 0
_COMPRESSED_MASK_SIDE = 2048


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [T, H], weight [H] -> [T, H]."""
    return ops.rms_norm(x, weight, eps)[0]


def causal_mask(length: int) -> Tensor:
    """The compressed causal mask, bool [2048, 2048], True where a key must not be seen.

    One mask serves every length.
    """
    positions = ops.arange(_COMPRESSED_MASK_SIDE)
    return ops.expand_dims(positions, 1) < ops.expand_dims(positions, 0)


def document_mask(document_ids: Tensor) -> Tensor:
    """document_ids int32 [B, S] -> bool [B, 1, S, S], True where a key must not be seen."""
    positions = ops.arange(document_ids.shape[1])
    future = ops.expand_dims(positions, 1) < ops.expand_dims(positions, 0)
    other = ops.expand_dims(document_ids, 2) != ops.expand_dims(document_ids, 1)
    return ops.expand_dims(ops.logical_or(other, future), 1)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """query [B, S, N, D], key and value [B, S, K, D] -> [B * S, N * D].

    The operator takes float16 and bfloat16 only: float32 is rounded to bfloat16 going in and widened coming out.
    """
    batch, length, heads, width = query.shape
    narrow = ms.bfloat16 if query.dtype == ms.float32 else query.dtype
    mixed = ops.flash_attention_score(
        ops.cast(query, narrow),
        ops.cast(key, narrow),
        ops.cast(value, narrow),
        heads,
        attn_mask=mask,
        scalar_value=scale,
        input_layout="BSND",
        sparse_mode=_CAUSAL_SPARSE_MODE if mask.ndim == 2 else _WHOLE_MASK_SPARSE_MODE,
    )
    return ops.reshape(ops.cast(mixed, query.dtype), (batch * length, heads * width))
