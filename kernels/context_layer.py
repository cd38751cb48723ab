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

from mcodec.kernels.backend import interpreted, jit, launch, tile_rows, tl, triton, use_triton, warps


def requantize(acc: Tensor, shift: int, low: int, high: int) -> Tensor:
    """clamp((acc + 2^(shift-1)) >> shift, low, high), exact for |acc| < 2^24."""
    if acc.is_floating_point():
        return ((acc + 2.0 ** (shift - 1)) * 2.0**-shift).floor().clamp(low, high)
    return ((acc + (1 << (shift - 1))) >> shift).clamp(low, high)


def pointwise_reference(x: Tensor, weight: Tensor, bias: Tensor, shift: int, low: int, high: int) -> Tensor:
    """`pointwise` in torch, as a matrix product."""
    b, _, h, w = x.shape
    acc = torch.matmul(weight.to(x.dtype), x.flatten(2)) + bias.to(x.dtype)[:, None]
    return requantize(acc, shift, low, high).reshape(b, len(weight), h, w)


def depthwise_reference(x: Tensor, weight: Tensor, bias: Tensor, shift: int, low: int, high: int) -> Tensor:
    """`depthwise` in torch, as nine shifted products."""
    h, w = x.shape[-2:]
    padded = F.pad(x, (1, 1, 1, 1))
    weight = weight.to(x.dtype)[:, :, :, None, None]
    acc = bias.to(x.dtype)[:, None, None].expand_as(x).clone()
    for i in range(3):
        for j in range(3):
            acc += weight[:, i, j] * padded[:, :, i : i + h, j : j + w]
    return requantize(acc, shift, low, high)


# ---- Triton ------------------------------------------------------------------------------------------------------


@jit
def _requantize(acc, SHIFT: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.minimum(tl.maximum((acc + (1 << (SHIFT - 1))) >> SHIFT, LOW), HIGH)


@jit
def _pointwise_kernel(  # type: ignore[no-untyped-def]
    x, weight, bias, out, C, OUTPUTS, P, SHIFT: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, OUT: tl.constexpr,
    IN: tl.constexpr, BLOCK: tl.constexpr,
):
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    o = tl.program_id(1) * OUT + tl.arange(0, OUT)
    item = tl.program_id(2).to(tl.int64)
    acc = tl.zeros([OUT, BLOCK], tl.int32)
    for first in range(0, C, IN):
        c = first + tl.arange(0, IN)
        w = tl.load(weight + o[:, None] * C + c[None, :], mask=(o < OUTPUTS)[:, None] & (c < C)[None, :], other=0)
        at = (item * C + c[:, None]) * P + p[None, :]
        u = tl.load(x + at, mask=(c < C)[:, None] & (p < P)[None, :], other=0)
        acc = tl.dot(w, u.to(tl.int8), acc, out_dtype=tl.int32)
    acc += tl.load(bias + o, mask=o < OUTPUTS, other=0)[:, None]
    value = _requantize(acc, SHIFT, LOW, HIGH)
    at = (item * OUTPUTS + o[:, None]) * P + p[None, :]
    tl.store(out + at, value.to(out.dtype.element_ty), mask=(o < OUTPUTS)[:, None] & (p < P)[None, :])


@jit
def _depthwise_kernel(  # type: ignore[no-untyped-def]
    x, weight, bias, out, C, H, W, SHIFT: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    known = channel < C
    plane = (tl.program_id(2).to(tl.int64) * C + channel) * H * W
    row = (p // W)[None, :]
    column = (p % W)[None, :]
    inside = (p < H * W)[None, :] & known
    acc = tl.zeros([ROWS, BLOCK], tl.int32) + tl.load(bias + channel, mask=known, other=0)
    for i in tl.static_range(3):
        for j in tl.static_range(3):
            r = row + (i - 1)
            c = column + (j - 1)
            mask = inside & (r >= 0) & (r < H) & (c >= 0) & (c < W)
            u = tl.load(x + plane + r * W + c, mask=mask, other=0).to(tl.int32)
            acc += u * tl.load(weight + channel * 9 + (i * 3 + j), mask=known, other=0).to(tl.int32)
    value = _requantize(acc, SHIFT, LOW, HIGH)
    tl.store(out + plane + p[None, :], value.to(out.dtype.element_ty), mask=inside)


@jit
def _requantize_kernel(  # type: ignore[no-untyped-def]
    acc, out, outside, N, SHIFT: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, BLOCK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(acc + n, mask=n < N, other=0.0)
    half: tl.constexpr = 1 << (SHIFT - 1)
    scale: tl.constexpr = 1.0 / (1 << SHIFT)
    real = value * scale
    tl.store(out + n, tl.minimum(tl.maximum(tl.floor((value + half) * scale), LOW), HIGH), mask=n < N)
    tl.store(outside + n, (real > HIGH).to(tl.int8) - (real < LOW).to(tl.int8), mask=n < N)


@jit
def _requantize_backward_kernel(  # type: ignore[no-untyped-def]
    grad, outside, back, N, SHIFT: tl.constexpr, BLOCK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(grad + n, mask=n < N, other=0.0)
    side = tl.load(outside + n, mask=n < N, other=0).to(tl.float32)
    scale: tl.constexpr = 1.0 / (1 << SHIFT)
    tl.store(back + n, tl.where(side * value < 0, 0.0, value * scale), mask=n < N)


# ---- dispatchers -------------------------------------------------------------------------------------------------


def pointwise(x: Tensor, weight: Tensor, bias: Tensor, shift: int, low: int, high: int) -> Tensor:
    """1x1 layer.

    x: `[B, C, H, W]` integers, |x| <= 127; weight: `[O, C]` integers, |w| <= 127, C <= 512;
    bias: `[O]` integers in accumulator units, below 2^22. Returns `[B, O, H, W]` integers in low..high, the type
    of x. Bit-exact. The kernel multiplies in int8 with int32 sums: 2 C O operations per position, and reads C and
    writes O values of x's type.
    """
    if not use_triton(x.device):
        return pointwise_reference(x, weight, bias, shift, low, high)
    b, channels, h, w = x.shape
    outputs = len(weight)
    out = x.new_empty((b, outputs, h, w))
    rows = min(64, max(16, triton.next_power_of_2(outputs)))
    block = 1024 if interpreted() else 64
    launch(
        _pointwise_kernel, (-(-h * w // block), -(-outputs // rows), b), x.contiguous(),
        weight.to(torch.int8).contiguous(), bias.to(torch.int32).contiguous(), out, channels, outputs, h * w,
        SHIFT=shift, LOW=low, HIGH=high, OUT=rows, IN=32, BLOCK=block, num_warps=4,
    )
    return out


def depthwise(x: Tensor, weight: Tensor, bias: Tensor, shift: int, low: int, high: int) -> Tensor:
    """Depthwise 3x3 layer with zero padding.

    x: `[B, C, H, W]` integers, |x| <= 127; weight: `[C, 3, 3]` integers, |w| <= 127; bias: `[C]`, below 2^22.
    Returns `[B, C, H, W]` integers in low..high, the type of x. Bit-exact. Reads and writes each value once but for
    the cache: 18 operations for each, so that memory is the floor.
    """
    if not use_triton(x.device):
        return depthwise_reference(x, weight, bias, shift, low, high)
    b, channels, h, w = x.shape
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    block = min(1024, triton.next_power_of_2(max(h * w, 1)))
    rows = min(tile_rows(block), triton.next_power_of_2(max(channels, 1)))
    launch(
        _depthwise_kernel, (-(-h * w // block), -(-channels // rows), b), x.contiguous(),
        weight.to(torch.int8).contiguous(), bias.to(torch.int32).contiguous(), out, channels, h, w, SHIFT=shift,
        LOW=low, HIGH=high, ROWS=rows, BLOCK=block, num_warps=warps(rows * block),
    )
    return out


class Requantize(torch.autograd.Function):
    """`requantize` of float accumulators for training; backward as a division and a clamp that traps no unit outside.

    Arguments as there. A gradient step goes against the gradient: outside the range it keeps only what leads back into
    it. One pass over memory each way on a GPU.
    """

    @staticmethod
    def forward(ctx, acc: Tensor, shift: int, low: int, high: int) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.shift = shift
        if use_triton(acc.device):
            out, outside = torch.empty_like(acc), torch.empty_like(acc, dtype=torch.int8)
            launch(
                _requantize_kernel, (-(-acc.numel() // 2048),), acc, out, outside, acc.numel(), SHIFT=shift, LOW=low,
                HIGH=high, BLOCK=2048, num_warps=4,
            )
        else:
            out, real = requantize(acc, shift, low, high), acc * 2.0**-shift
            outside = (real > high).to(torch.int8) - (real < low).to(torch.int8)
        ctx.save_for_backward(outside)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[no-untyped-def]
        (outside,) = ctx.saved_tensors
        if not use_triton(grad.device):
            return torch.where(outside * grad < 0, 0.0, grad * 2.0**-ctx.shift), None, None, None
        if grad.stride() != outside.stride():
            grad = torch.empty_like(outside, dtype=grad.dtype).copy_(grad)
        back = torch.empty_like(grad)
        launch(
            _requantize_backward_kernel, (-(-grad.numel() // 2048),), grad, outside, back, grad.numel(),
            SHIFT=ctx.shift, BLOCK=2048, num_warps=4,
        )
        return back, None, None, None
