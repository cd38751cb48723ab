"""Codeword gather: codes to a feature map."""

from __future__ import annotations

import torch
from torch import Tensor


def dequantize(codes: Tensor, codewords: Tensor) -> Tensor:
    """codes `[B, M, h, w]` integers, codewords `[M, K, d]` -> `[B, M * d, h, w]` of the codewords' type."""
    groups = torch.arange(codewords.shape[0], device=codes.device)[:, None, None]
    return codewords[groups, codes.long()].movedim(-1, 2).flatten(1, 2)
