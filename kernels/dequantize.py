"""Codeword gather: codes to a feature map."""

from __future__ import annotations

import torch
from torch import Tensor

from mcodec.kernels.backend import jit, launch, tile_rows, tl, triton, use_triton


def dequantize_reference(codes: Tensor, codewords: Tensor) -> Tensor:
    """`dequantize` in torch; the one that passes gradients to the codewords."""
    groups = torch.arange(codewords.shape[0], device=codes.device)[:, None, None]
    return codewords[groups, codes.long()].movedim(-1, 2).flatten(1, 2)


@jit
def _dequantize_kernel(  # type: ignore[no-untyped-def]
    codes, codewords, out, M, P, K: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    group = tl.program_id(1).to(tl.int64)
    symbol = tl.program_id(2).to(tl.int64) * M + group
    j = tl.arange(0, COLUMNS)
    mask = (p < P)[None, :] & (j < D)[:, None]
    code = tl.load(codes + symbol * P + p, mask=p < P, other=0).to(tl.int64)
    value = tl.load(codewords + ((group * K + code) * D)[None, :] + j[:, None], mask=mask, other=0)
    tl.store(out + (symbol * D + j[:, None]) * P + p[None, :], value, mask=mask)


def dequantize(codes: Tensor, codewords: Tensor) -> Tensor:
    """codes `[B, M, h, w]` integers in 0..K-1, codewords `[M, K, d]` -> `[B, M * d, h, w]` of the codewords' type.

    Bit-exact: a copy. Reads the codes and writes d values for each; the codewords stay in the cache.
    """
    # a kernel has no backward: training keeps the reference
    if not use_triton(codes.device) or (torch.is_grad_enabled() and codewords.requires_grad):
        return dequantize_reference(codes, codewords)
    batch, groups, height, width = codes.shape
    _, size, dimension = codewords.shape
    out = codewords.new_empty((batch, groups * dimension, height, width))
    columns = triton.next_power_of_2(dimension)
    block = tile_rows(columns)
    launch(
        _dequantize_kernel, (-(-height * width // block), groups, batch), codes.contiguous(), codewords.contiguous(),
        out, groups, height * width, K=size, D=dimension, COLUMNS=columns, BLOCK=block, num_warps=4,
    )
    return out
