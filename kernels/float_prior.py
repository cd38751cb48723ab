"""The prior in floats, with gradients: what training optimises (streams use the integer law of mixture_frequencies).

Two forms: the mixture over the codewords (Zhu et al., CVPR 2022), and the Gaussian integrated over one quantization
step for latents relaxed by uniform noise (Balle et al., ICLR 2018). No kernel stores a row of K values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mcodec.kernels.backend import jit, launch, symbol_tiles, tl, triton, use_triton

#: Probability below which the integrated Gaussian is replaced by a bound that keeps a gradient.
LEAST_MASS = 1e-6


def mixture_logits(codewords: Tensor, log_weights: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    """ln p(k) of every codeword, up to a constant of its symbol.

    codewords `[M, K, d]`, log_weights `[M, K]` (nats), mean (steps) and precision (nats per squared step)
    `[B, M, d, P]`. Returns `[B, M, P, K]`. The square is expanded: the sum over components is one small product.
    """
    theta = torch.cat([2 * precision * mean, -precision, torch.ones_like(mean[:, :, :1])], dim=2)  # [B, M, 2d + 1, P]
    phi = torch.cat([codewords, codewords**2, log_weights[:, :, None]], dim=2)  # [M, K, 2d + 1]
    with torch.autocast(mean.device.type, enabled=False):  # differences of large terms: bfloat16 leaves nothing of them
        return torch.matmul(theta.transpose(2, 3), phi.transpose(1, 2))


class _ReferenceNats(torch.autograd.Function):
    """One softmax forward, two small products backward: a gradient of all logits would take most of a training step."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, codes: Tensor, codewords: Tensor, log_weights: Tensor, mean: Tensor, precision: Tensor
    ) -> Tensor:
        logits, codes = mixture_logits(codewords, log_weights, mean, precision), codes.long()
        p = logits.softmax(3)
        ctx.save_for_backward(codes, codewords, mean, precision, p)
        total = logits.amax(3) - p.amax(3).log()  # several times as fast as logsumexp
        return total - logits.gather(3, codes[..., None])[..., 0]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        codes, codewords, mean, precision, p = ctx.saved_tensors
        group = torch.arange(len(codewords), device=codes.device)[:, None]
        phi = torch.cat([codewords, codewords**2], dim=2)
        with torch.autocast(mean.device.type, enabled=False):
            expected = torch.matmul(p, phi)  # [B, M, P, 2d]
            of_weights = torch.matmul(grad[:, :, None], p).sum((0, 2))
        first, second = (grad[..., None] * (expected - phi[group, codes])).transpose(2, 3).chunk(2, dim=2)
        flat = (group * p.shape[3] + codes).flatten()
        of_weights.view(-1).index_add_(0, flat, -grad.flatten())
        return None, None, of_weights, 2 * precision * first, 2 * mean * first - second


def mixture_nats_reference(
    codes: Tensor, codewords: Tensor, log_weights: Tensor, mean: Tensor, precision: Tensor
) -> Tensor:
    """`mixture_nats` in torch; holds all probabilities."""
    out: Tensor = _ReferenceNats.apply(codes, codewords, log_weights, mean, precision)  # type: ignore[no-untyped-call]
    return out


def likeliest_reference(codewords: Tensor, log_weights: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    """`likeliest` in torch; holds all logits."""
    return mixture_logits(codewords, log_weights, mean, precision).argmax(3)


def noisy_bits_reference(noisy: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """`noisy_bits` in torch."""
    distance = (noisy - mean).abs()
    root = 1 / (sigma * math.sqrt(2))
    mass = 0.5 * (torch.erf((distance + 0.5) * root) - torch.erf((distance - 0.5) * root))
    # Far in the tail the difference of erf underflows; the bound keeps a gradient towards the mean.
    tail = -(((distance - 0.5).clamp(min=0) / sigma) ** 2) / 2 - 16.0
    log_mass = torch.where(mass > LEAST_MASS, mass.clamp(min=LEAST_MASS).log(), tail)
    return log_mass / -math.log(2)


# ---- Triton ------------------------------------------------------------------------------------------------------


@jit
def _logits(  # type: ignore[no-untyped-def]
    points, log_weights, mean, precision, group, component, valid, k, P, K: tl.constexpr, D: tl.constexpr,
):
    """Logits `[R, N]` of codewords k `[N]`; codewords beyond the last get one below all others."""
    inside = k < K
    logit = tl.load(log_weights + group * K + k, mask=inside, other=-1e30)[None, :]
    for j in tl.static_range(D):
        g = tl.load(mean + component + j * P, mask=valid, other=0.0)
        a = tl.load(precision + component + j * P, mask=valid, other=0.0)
        difference = tl.load(points + (group * D + j) * K + k, mask=inside, other=0.0)[None, :] - g[:, None]
        logit = logit - a[:, None] * difference * difference
    return logit


@jit
def _likeliest_kernel(  # type: ignore[no-untyped-def]
    points, log_weights, mean, precision, codes, M, P, K: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    p = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1).to(tl.int64)
    cell = (tl.program_id(2).to(tl.int64) * M + group) * P + p
    component = (tl.program_id(2).to(tl.int64) * M + group) * D * P + p
    valid = p < P
    best = tl.full([ROWS], float("-inf"), tl.float32)
    winner = tl.zeros([ROWS], tl.int32)
    for first in range(0, K, COLUMNS):
        k = first + tl.arange(0, COLUMNS)
        logit = _logits(points, log_weights, mean, precision, group, component, valid, k, P, K, D)
        here = tl.max(logit, 1)
        index = tl.min(tl.where(logit == here[:, None], k[None, :], K), 1)
        better = here > best
        winner = tl.where(better, index, winner)
        best = tl.where(better, here, best)
    tl.store(codes + cell, winner.to(tl.int64), mask=valid)


@jit
def _nats_kernel(  # type: ignore[no-untyped-def]
    points, log_weights, mean, precision, codes, nats, totals, M, P, K: tl.constexpr, D: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):
    p = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1).to(tl.int64)
    cell = (tl.program_id(2).to(tl.int64) * M + group) * P + p
    component = (tl.program_id(2).to(tl.int64) * M + group) * D * P + p
    valid = p < P
    code = tl.load(codes + cell, mask=valid, other=0).to(tl.int32)
    largest = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    chosen = tl.zeros([ROWS], tl.float32)
    for first in range(0, K, COLUMNS):
        k = first + tl.arange(0, COLUMNS)
        logit = _logits(points, log_weights, mean, precision, group, component, valid, k, P, K, D)
        chosen += tl.sum(tl.where(k[None, :] == code[:, None], logit, 0.0), 1)
        above = tl.maximum(largest, tl.max(logit, 1))
        total = total * tl.exp(largest - above) + tl.sum(tl.exp(logit - above[:, None]), 1)
        largest = above
    total = largest + tl.log(total)
    tl.store(nats + cell, total - chosen, mask=valid)
    tl.store(totals + cell, total, mask=valid)


@jit
def _nats_backward_kernel(  # type: ignore[no-untyped-def]
    grad, points, log_weights, mean, precision, codes, totals, of_mean, of_precision, of_weights, M, P,
    K: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIDES: tl.constexpr,
):
    p = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1).to(tl.int64)
    cell = (tl.program_id(2).to(tl.int64) * M + group) * P + p
    component = (tl.program_id(2).to(tl.int64) * M + group) * D * P + p
    valid = p < P
    side = tl.arange(0, SIDES)
    code = tl.load(codes + cell, mask=valid, other=0).to(tl.int32)
    total = tl.load(totals + cell, mask=valid, other=0.0)
    g = tl.load(grad + cell, mask=valid, other=0.0)
    by_mean = tl.zeros([ROWS, SIDES], tl.float32)
    by_precision = tl.zeros([ROWS, SIDES], tl.float32)
    for first in range(0, K, COLUMNS):
        k = first + tl.arange(0, COLUMNS)
        inside = k < K
        logit = _logits(points, log_weights, mean, precision, group, component, valid, k, P, K, D)
        share = tl.exp(logit - total[:, None]) - tl.where(k[None, :] == code[:, None], 1.0, 0.0)
        share = tl.where(valid[:, None] & inside[None, :], g[:, None] * share, 0.0)
        tl.atomic_add(of_weights + group * K + k, tl.sum(share, 0), mask=inside)
        for j in tl.static_range(D):
            m = tl.load(mean + component + j * P, mask=valid, other=0.0)
            difference = tl.load(points + (group * D + j) * K + k, mask=inside, other=0.0)[None, :] - m[:, None]
            here = tl.where(side == j, 1.0, 0.0)[None, :]
            by_mean += here * tl.sum(share * difference, 1)[:, None]
            by_precision += here * tl.sum(share * difference * difference, 1)[:, None]
    at = component[:, None] + side[None, :] * P
    mask = valid[:, None] & (side < D)[None, :]
    a = tl.load(precision + at, mask=mask, other=0.0)
    tl.store(of_mean + at, 2 * a * by_mean, mask=mask)
    tl.store(of_precision + at, -by_precision, mask=mask)


@jit
def _noisy_bits_kernel(noisy, means, sigmas, bits, N, LEAST: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    s = tl.load(sigmas + n, mask=n < N, other=1.0)
    distance = tl.abs(tl.load(noisy + n, mask=n < N, other=0.0) - tl.load(means + n, mask=n < N, other=0.0))
    root = 0.7071067811865476 / s
    mass = 0.5 * (tl.erf((distance + 0.5) * root) - tl.erf((distance - 0.5) * root))
    t = tl.maximum(distance - 0.5, 0.0) / s
    log_mass = tl.where(mass > LEAST, tl.log(tl.maximum(mass, LEAST)), -0.5 * t * t - 16.0)
    tl.store(bits + n, log_mass * -1.4426950408889634, mask=n < N)


@jit
def _noisy_bits_backward_kernel(  # type: ignore[no-untyped-def]
    grad, noisy, means, sigmas, of_noisy, of_sigma, N, LEAST: tl.constexpr, BLOCK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(grad + n, mask=n < N, other=0.0) * -1.4426950408889634
    s = tl.load(sigmas + n, mask=n < N, other=1.0)
    signed = tl.load(noisy + n, mask=n < N, other=0.0) - tl.load(means + n, mask=n < N, other=0.0)
    distance = tl.abs(signed)
    root = 0.7071067811865476 / s
    upper = (distance + 0.5) * root
    lower = (distance - 0.5) * root
    mass = 0.5 * (tl.erf(upper) - tl.erf(lower))
    near = mass > LEAST
    upper_density = tl.exp(-upper * upper)
    lower_density = tl.exp(-lower * lower)
    scale = 0.5641895835477563 / tl.maximum(mass, LEAST)  # 1 / sqrt(pi)
    t = tl.maximum(distance - 0.5, 0.0) / s
    by_distance = tl.where(near, scale * root * (upper_density - lower_density), -t / s)
    by_sigma = tl.where(near, -scale / s * (upper * upper_density - lower * lower_density), t * t / s)
    sign = tl.where(signed > 0, 1.0, tl.where(signed < 0, -1.0, 0.0))
    tl.store(of_noisy + n, g * by_distance * sign, mask=n < N)
    tl.store(of_sigma + n, g * by_sigma, mask=n < N)


def _parts(codewords: Tensor, *values: Tensor) -> list[Tensor]:
    """Arguments as the kernels take them: codewords by component, everything float32."""
    points = codewords.detach().float().transpose(1, 2).contiguous()
    return [points, *(value.detach().float().contiguous() for value in values)]


class _MixtureNats(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, codes: Tensor, codewords: Tensor, log_weights: Tensor, mean: Tensor, precision: Tensor
    ) -> Tensor:
        batch, groups, dimension, positions = mean.shape
        parts, codes = _parts(codewords, log_weights, mean, precision), codes.contiguous()
        nats, totals = (torch.empty(codes.shape, dtype=torch.float32, device=mean.device) for _ in range(2))
        blocks, meta = symbol_tiles(positions, codewords.shape[1])
        launch(
            _nats_kernel, (blocks, groups, batch), *parts, codes, nats, totals, groups, positions,
            K=codewords.shape[1], D=dimension, **meta,
        )
        ctx.save_for_backward(codes, totals, *parts)
        return nats

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        codes, totals, points, log_weights, mean, precision = ctx.saved_tensors
        batch, groups, dimension, positions = mean.shape
        of_mean, of_precision = torch.empty_like(mean), torch.empty_like(precision)
        of_weights = torch.zeros_like(log_weights)
        blocks, meta = symbol_tiles(positions, log_weights.shape[1])
        launch(
            _nats_backward_kernel, (blocks, groups, batch), grad.float().contiguous(), points, log_weights, mean,
            precision, codes, totals, of_mean, of_precision, of_weights, groups, positions, K=log_weights.shape[1],
            D=dimension, SIDES=triton.next_power_of_2(dimension), **meta,
        )
        return None, None, of_weights, of_mean, of_precision


class _NoisyBits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, noisy: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        if not noisy.is_contiguous():
            noisy = noisy.contiguous(memory_format=torch.channels_last if noisy.dim() == 4 else torch.contiguous_format)
        mean, sigma = (torch.empty_like(noisy).copy_(v) if v.stride() != noisy.stride() else v for v in (mean, sigma))
        ctx.save_for_backward(noisy, mean, sigma)
        bits = torch.empty_like(noisy)
        launch(
            _noisy_bits_kernel, (-(-noisy.numel() // 1024),), noisy, mean, sigma, bits, noisy.numel(),
            LEAST=LEAST_MASS, BLOCK=1024, num_warps=4,
        )
        return bits

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[no-untyped-def]
        noisy, mean, sigma = ctx.saved_tensors
        if grad.stride() != noisy.stride():
            grad = torch.empty_like(noisy).copy_(grad)
        of_noisy, of_sigma = torch.empty_like(noisy), torch.empty_like(noisy)
        launch(
            _noisy_bits_backward_kernel, (-(-noisy.numel() // 1024),), grad, noisy, mean, sigma, of_noisy, of_sigma,
            noisy.numel(), LEAST=LEAST_MASS, BLOCK=1024, num_warps=4,
        )
        return of_noisy, -of_noisy, of_sigma


# ---- dispatchers -------------------------------------------------------------------------------------------------


def mixture_nats(codes: Tensor, codewords: Tensor, log_weights: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    """-ln p of codes `[B, M, P]`, float32 `[B, M, P]`; arguments as of `mixture_logits`.

    Gradients reach log_weights, mean and precision; codewords get none: it would push unused ones to infinity.
    Per symbol K (3 d + 4) float operations forward and twice that backward, and 16 d + 8 bytes.
    """
    codewords = codewords.detach()
    if not use_triton(mean.device):
        return mixture_nats_reference(codes, codewords, log_weights, mean, precision)
    out: Tensor = _MixtureNats.apply(codes, codewords, log_weights, mean, precision)  # type: ignore[no-untyped-call]
    return out


def likeliest(codewords: Tensor, log_weights: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    """The codeword of largest logit, int64 `[B, M, P]`; of equals the first, up to rounding.

    With precision + beta for the precision and the mean of latent and mean, weighted by beta and the precision, it is
    the argmin of beta * |v - mu|^2 - ln p.
    """
    if not use_triton(mean.device):
        return likeliest_reference(codewords, log_weights, mean, precision)
    batch, groups, dimension, positions = mean.shape
    codes = torch.empty((batch, groups, positions), dtype=torch.int64, device=mean.device)
    blocks, meta = symbol_tiles(positions, codewords.shape[1])
    launch(
        _likeliest_kernel, (blocks, groups, batch), *_parts(codewords, log_weights, mean, precision), codes, groups,
        positions, K=codewords.shape[1], D=dimension, **meta,
    )
    return codes


def noisy_bits(noisy: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """Bits of latents with uniform noise under the Gaussian integrated over one step.

    All of one shape, in steps. Returns bits per element; below a mass of LEAST_MASS a bound that keeps a gradient.
    """
    if not use_triton(noisy.device) or noisy.dtype != torch.float32:
        return noisy_bits_reference(noisy, mean, sigma)
    out: Tensor = _NoisyBits.apply(noisy, mean, sigma)  # type: ignore[no-untyped-call]
    return out
