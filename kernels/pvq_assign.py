"""Rate-aware assignment of latents to codewords."""

from __future__ import annotations

import torch
from torch import Tensor


def pvq_assign(
    latents: Tensor, codewords: Tensor, beta: float, logits: Tensor | None = None, chunk: int = 1 << 24
) -> Tensor:
    """argmin_k beta * |v - mu_k|^2 - logits_k for every sub-vector.

    latents `[B, M, d, P]`, codewords `[M, K, d]`, beta in nats per squared step, logits `[B, M, P, K]` in nats
    (None: nearest codeword). Returns codes `[B, M, P]`, int64; ties go to the lowest k. At most about `chunk`
    distances are held at a time.
    """
    b, m, _, p = latents.shape
    k = codewords.shape[1]
    square = codewords.square().sum(2)[:, None, :]  # [M, 1, K]
    step = max(1, chunk // (b * m * k))
    parts = []
    for start in range(0, p, step):
        v = latents[..., start : start + step].transpose(2, 3)  # [B, M, p, d]
        cost = beta * (square - 2 * torch.matmul(v, codewords.transpose(1, 2)))
        if logits is not None:
            cost = cost - logits[:, :, start : start + step]
        parts.append(cost.argmin(3))
    return torch.cat(parts, 2) if parts else latents.new_zeros((b, m, 0), dtype=torch.int64)
