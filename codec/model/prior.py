"""The unified mixture as prior of a stage's codes.

For every sub-codebook and position the context network gives an offset g and a scale index i per component; with
the codewords mu_k and their mixture weights pi_k

    p(k | g, i) = softmax_k( ln pi_k - sum_j a(i_j) (mu_kj - g_j)^2 )

(Zhu et al., CVPR 2022: the codewords are the means of one Gaussian mixture; DESIGN: evaluated at its own means).
Streams use the integer form of this law (docs/ENTROPY.md); training uses the float form below. While latents are
relaxed by uniform noise, the likelihood is the Gaussian integrated over one quantization step instead (Balle et
al., ICLR 2018), and a(i) is chosen so that both agree on the odds of a neighbouring step at g = 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mcodec.model.context import OFFSET_UNIT, SCALES

#: sigma_i = SIGMA_MIN * 2^(i / 16): 0.08 to about 20 steps.
SIGMA_MIN = 0.08
SCALE_STEPS_PER_OCTAVE = 16
#: log2 of the unit of the integer precision table; its entries are 1/64 bit * 2^-10 per (1/16 step)^2.
PRECISION_SHIFT = 10


def sigma(index: Tensor) -> Tensor:
    """Standard deviation, in quantization steps, of a scale index."""
    return SIGMA_MIN * torch.exp2(index / SCALE_STEPS_PER_OCTAVE)


def precision_table() -> Tensor:
    """Integer precisions a(i), int32 `[SCALES]`, for the coder; stored with the weights, never recomputed."""
    normal = torch.distributions.Normal(0.0, 1.0)
    s = sigma(torch.arange(SCALES, dtype=torch.float64))
    odds = (normal.cdf(-0.5 / s) - normal.cdf(-1.5 / s)) / (1 - 2 * normal.cdf(-0.5 / s))
    nats = -odds.log()
    unit = 64 / math.log(2) / OFFSET_UNIT**2 * 2**PRECISION_SHIFT
    return (nats * unit).round().clamp(1, 2**14).to(torch.int32)


def precision(index: Tensor, table: Tensor) -> Tensor:
    """a(i) in nats per squared step at a (real-valued) scale index, geometric between the table's entries."""
    nats = table.to(torch.float32).log() + math.log(
        math.log(2) / 64 * OFFSET_UNIT**2 / 2**PRECISION_SHIFT
    )
    low = index.detach().floor().clamp(0, SCALES - 2)
    at = low.long()
    fraction = index - low
    return torch.exp(nats[at] * (1 - fraction) + nats[at + 1] * fraction)


def noisy_bits(noisy: Tensor, offset: Tensor, scale: Tensor) -> Tensor:
    """Bits of latents with uniform noise under the Gaussian integrated over one step.

    All `[B, C, h, w]`; `noisy` in steps, `offset` in 1/16 steps, `scale` an index. Returns bits per element.
    """
    s = sigma(scale)
    distance = (noisy - offset / OFFSET_UNIT).abs()
    root = 1 / (s * math.sqrt(2))
    mass = 0.5 * (torch.erf((distance + 0.5) * root) - torch.erf((distance - 0.5) * root))
    # Far in the tail the difference of erf underflows; the bound keeps a gradient towards the offset.
    tail = -(((distance - 0.5).clamp(min=0) / s) ** 2) / 2 - 16.0
    log_mass = torch.where(mass > 1e-6, mass.clamp(min=1e-6).log(), tail)
    return log_mass / -math.log(2)


def mixture_logits(
    codewords: Tensor, log_weights: Tensor, offset: Tensor, scale: Tensor, table: Tensor
) -> Tensor:
    """ln p(k) up to a constant of every codeword.

    codewords `[M, K, d]`, log_weights `[M, K]` (nats), offset and scale `[B, M, d, P]`. Returns `[B, M, P, K]`.
    The square is expanded, so that the sum over components is one small matrix product.
    """
    g = offset / OFFSET_UNIT
    a = precision(scale, table)
    theta = torch.cat([2 * a * g, -a], dim=2)  # [B, M, 2d, P]
    phi = torch.cat([codewords, codewords**2], dim=2)  # [M, K, 2d]
    return torch.matmul(theta.transpose(2, 3), phi.transpose(1, 2)) + log_weights[:, None, :]
