"""Layers of the integer context network: exact on every machine.

Activations and weights are integers of at most 8 bits held in any tensor type that represents them: float32,
float64, int32, int64. Fan-in is at most 512, so every accumulator is below 2^24 and every order of summation
gives the same integer, in float32 as in int32. The requantization `floor((acc + 2^(s-1)) / 2^s)` is exact for
the same reason. No algorithm that transforms its input (Winograd, FFT) may stand behind these functions; hence
a matrix product and nine shifted products instead of library convolutions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def requantize(acc: Tensor, shift: int, low: int, high: int) -> Tensor:
    """clamp((acc + 2^(shift-1)) >> shift, low, high), exact for |acc| < 2^24."""
    if acc.is_floating_point():
        return ((acc + 2.0 ** (shift - 1)) * 2.0**-shift).floor().clamp(low, high)
    return ((acc + (1 << (shift - 1))) >> shift).clamp(low, high)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor, shift: int, low: int, high: int) -> Tensor:
    """1x1 layer.

    x: `[B, C, H, W]` integers, |x| <= 127; weight: `[O, C]` integers, |w| <= 127, C <= 512;
    bias: `[O]` integers in accumulator units, below 2^22. Returns `[B, O, H, W]` integers in low..high, the type
    of x. Bit-exact.
    """
    b, _, h, w = x.shape
    acc = torch.matmul(weight.to(x.dtype), x.flatten(2)) + bias.to(x.dtype)[:, None]
    return requantize(acc, shift, low, high).reshape(b, -1, h, w)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor, shift: int, low: int, high: int) -> Tensor:
    """Depthwise 3x3 layer with zero padding.

    x: `[B, C, H, W]` integers, |x| <= 127; weight: `[C, 3, 3]` integers, |w| <= 127; bias: `[C]`.
    Returns `[B, C, H, W]` integers in low..high, the type of x. Bit-exact.
    """
    h, w = x.shape[-2:]
    padded = F.pad(x, (1, 1, 1, 1))
    weight = weight.to(x.dtype)[:, :, :, None, None]
    acc = bias.to(x.dtype)[:, None, None].expand_as(x).clone()
    for i in range(3):
        for j in range(3):
            acc += weight[:, i, j] * padded[:, :, i : i + h, j : j + w]
    return requantize(acc, shift, low, high)
