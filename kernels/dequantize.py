"""Codeword gather: codes to a feature map."""

from __future__ import annotations

import torch
from torch import Tensor

from mcodec.kernels.backend import jit, launch, tile_rows, tl, triton, use_triton


def dequantize_reference(codes: Tensor, codewords: Tensor) -> Tensor:
    """`dequantize` in torch."""
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


class _Trained(torch.autograd.Function):
    """Gradients of equal codes are added where they meet: no sorting of codes, as indexing does on a GPU."""

    @staticmethod
    def forward(ctx, codes: Tensor, codewords: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(codes)
        ctx.shape = codewords.shape
        return _launch(codes, codewords)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor]:  # type: ignore[no-untyped-def]
        (codes,) = ctx.saved_tensors
        groups, size, dimension = ctx.shape
        at = codes.long() + size * torch.arange(groups, device=codes.device)[:, None, None]
        rows = grad.unflatten(1, (groups, dimension)).movedim(2, -1).reshape(-1, dimension)
        return None, grad.new_zeros(groups * size, dimension).index_add_(0, at.flatten(), rows).reshape(ctx.shape)


def _launch(codes: Tensor, codewords: Tensor) -> Tensor:
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


def dequantize(codes: Tensor, codewords: Tensor) -> Tensor:
    """codes `[B, M, h, w]` integers in 0..K-1, codewords `[M, K, d]` -> `[B, M * d, h, w]` of the codewords' type.

    Bit-exact: a copy. Reads the codes and writes d values for each; the codewords stay in the cache.
    """
    if not use_triton(codes.device):
        return dequantize_reference(codes, codewords)
    if torch.is_grad_enabled() and codewords.requires_grad:
        out: Tensor = _Trained.apply(codes, codewords)  # type: ignore[no-untyped-call]
        return out
    return _launch(codes, codewords)
