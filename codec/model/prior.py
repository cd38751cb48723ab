"""The unified mixture as prior of a stage's codes.

For every sub-codebook and position the context network gives an offset g and a scale index i per component; with
the codewords mu_k and their mixture weights pi_k

    p(k | g, i) = softmax_k( ln pi_k - sum_j a(i_j) (mu_kj - g_j)^2 )

(Zhu et al., CVPR 2022: the codewords are the means of one Gaussian mixture; here it is evaluated at its own means).
Streams use the integer form of this law (docs/ENTROPY.md); training uses the float form below. While latents are
relaxed by uniform noise, the likelihood is the Gaussian integrated over one quantization step instead (Balle et
al., ICLR 2018), and a(i) is chosen so that both agree on the odds of a neighbouring step at g = 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mcodec.kernels import float_prior
from mcodec.model.context import OFFSET_UNIT, SCALES

SCALE_STEPS_PER_OCTAVE = 16
#: log2 of the unit of the integer precision table; its entries are 1/64 bit * 2^-10 per (1/16 step)^2.
PRECISION_SHIFT = 10


def sigma(index: Tensor, least: float) -> Tensor:
    """Standard deviation, in quantization steps, of a scale index: least * 2^(i / 16)."""
    return least * torch.exp2(index / SCALE_STEPS_PER_OCTAVE)


def precision_table(least: float) -> Tensor:
    """Integer precisions a(i), int32 `[SCALES]`, for the coder; stored with the weights, never recomputed."""
    normal = torch.distributions.Normal(0.0, 1.0)
    s = sigma(torch.arange(SCALES, dtype=torch.float64), least)
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


def noisy_bits(noisy: Tensor, offset: Tensor, scale: Tensor, least: float) -> Tensor:
    """Bits of latents with uniform noise under the Gaussian integrated over one step.

    All `[B, C, h, w]`; `noisy` in steps, `offset` in 1/16 steps, `scale` an index; `least` the sigma of index 0.
    Returns bits per element.
    """
    return float_prior.noisy_bits(noisy, offset / OFFSET_UNIT, sigma(scale, least))


def gaussian(offset: Tensor, scale: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (steps) and precision (nats per squared step) of what the context network says, of any shape."""
    return offset / OFFSET_UNIT, precision(scale, table)
