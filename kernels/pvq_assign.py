"""Rate-aware assignment of latents to codewords (entropy-constrained vector quantization)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mcodec.kernels.backend import jit, launch, symbol_tiles, tl, use_triton
from mcodec.kernels.mixture_frequencies import (
    MixtureTables,
    any_coded,
    components_last,
    logits_of,
    skipped,
    tile_logits,
)

#: Nats per unit of the integer logits.
NATS = math.log(2) / 64


@dataclass(frozen=True, eq=False)
class Prior:
    """The integer prior of a stage: tables, and offset int16 and scale uint8 `[B, M, d, P]`."""

    tables: MixtureTables
    offset: Tensor
    scale: Tensor


def pvq_assign_reference(
    latents: Tensor, codewords: Tensor, beta: float, prior: Prior | None = None, chunk: int = 1 << 24
) -> Tensor:
    """`pvq_assign` in torch. At most about `chunk` distances are held at a time."""
    b, m, _, p = latents.shape
    k = codewords.shape[1]
    square = codewords.square().sum(2)[:, None, :]  # [M, 1, K]
    group = torch.arange(m, device=latents.device)[None, :, None]
    step = max(1, chunk // max(1, b * m * k))
    parts = []
    for start in range(0, p, step):
        here = slice(start, start + step)
        v = latents[..., here].transpose(2, 3)  # [B, M, p, d]
        with torch.autocast(v.device.type, enabled=False):  # distances in bfloat16 would choose at random
            cost = beta * (square - 2 * torch.matmul(v.float(), codewords.float().transpose(1, 2)))
        if prior is not None:
            context = components_last(prior.offset[..., here]), components_last(prior.scale[..., here])
            logit = logits_of(prior.tables, group, *context)
            far = logit.amax(3, keepdim=True) - logit >= prior.tables.cutoff
            far[..., :2] = False
            cost = (cost - NATS * logit.to(cost.dtype)).masked_fill(far, math.inf)
        parts.append(cost.argmin(3))
    codes = torch.cat(parts, 2) if parts else latents.new_zeros((b, m, 0), dtype=torch.int64)
    return codes if prior is None else codes.masked_fill(skipped(prior.scale), 0)


@jit
def _costs(  # type: ignore[no-untyped-def]
    latents, points, beta, nats, codewords, log_weights, precision, limit, offset, scale, component, group, valid, k, P,
    K: tl.constexpr, D: tl.constexpr, PRIOR: tl.constexpr,
):
    """Of codewords k `[1, N]` for symbols `[R]`: costs `[R, N]`, the prior's logits, and which are coded `[R]`."""
    inside = k < K
    distance = tl.zeros_like((component[:, None] + k).to(tl.float32))
    for j in range(D):
        v = tl.load(latents + component + j * P, mask=valid, other=0.0)
        mu = tl.load(points + (group * D + j) * K + k, mask=inside, other=0.0)
        difference = v[:, None] - mu
        distance += difference * difference
    value = beta * distance
    logit = k
    coded = valid
    if PRIOR:
        logit, coded = tile_logits(
            codewords, log_weights, precision, limit, offset, scale, component, group, valid, k, P, K, D, False
        )
        value -= nats * logit.to(tl.float32)
    return tl.where(inside, value, float("inf")), logit, coded


@jit
def _least(value, k, least, winner, K: tl.constexpr):  # type: ignore[no-untyped-def]
    """(least, winner) with a tile of costs: of equals the lowest k, in it by the minimum, between tiles strictly."""
    here = tl.min(value, 1)
    index = tl.min(tl.where(value == here[:, None], k, K), 1)
    return tl.minimum(here, least), tl.where(here < least, index, winner)


@jit
def _assign_kernel(  # type: ignore[no-untyped-def]
    latents, points, beta, nats, codewords, log_weights, precision, limit, cutoff, offset, scale, codes, M, P,
    K: tl.constexpr, D: tl.constexpr, PRIOR: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):
    p = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1).to(tl.int64)
    stream = tl.program_id(2).to(tl.int64)
    valid = p < P
    cell = (stream * M + group) * P + p
    component = (stream * M + group) * D * P + p
    last = K
    if PRIOR:  # where nothing is coded no codeword is looked at: the winner stays 0
        last = tl.where(any_coded(scale, M, P, D, ROWS) > 0, K, 0)
    least = tl.full([ROWS], float("inf"), tl.float32)
    winner = tl.zeros([ROWS], tl.int32)
    coded = valid
    largest = tl.full([ROWS], -(1 << 29), tl.int32)  # of the prior's logits
    chosen = tl.full([ROWS], -(1 << 29), tl.int32)  # the winner's logit
    for first in range(0, last, COLUMNS):
        k = first + tl.arange(0, COLUMNS)[None, :]
        value, logit, coded = _costs(
            latents, points, beta, nats, codewords, log_weights, precision, limit, offset, scale, component, group,
            valid, k, P, K, D, PRIOR,
        )
        before = winner
        least, winner = _least(value, k, least, winner, K)
        if PRIOR:
            largest = tl.maximum(largest, tl.max(logit, 1))
            own = tl.sum(tl.where(k == winner[:, None], logit, 0), 1)
            chosen = tl.where(winner == before, chosen, own)
    if PRIOR:  # noqa: SIM102 - the outer one is decided at compile time
        if tl.max(((largest - chosen >= cutoff) & (winner > 1)).to(tl.int32), 0) > 0:
            # rare: once more without what has no frequency
            least = tl.full([ROWS], float("inf"), tl.float32)
            for first in range(0, K, COLUMNS):
                k = first + tl.arange(0, COLUMNS)[None, :]
                value, logit, coded = _costs(
                    latents, points, beta, nats, codewords, log_weights, precision, limit, offset, scale, component,
                    group, valid, k, P, K, D, PRIOR,
                )
                far = (largest[:, None] - logit >= cutoff) & (k > 1)
                least, winner = _least(tl.where(far, float("inf"), value), k, least, winner, K)
    tl.store(codes + cell, tl.where(coded, winner, 0).to(tl.int64), mask=valid)


def pvq_assign(latents: Tensor, codewords: Tensor, beta: float, prior: Prior | None = None) -> Tensor:
    """argmin_k beta * |v - mu_k|^2 - ln p_k for every sub-vector.

    latents `[B, M, d, P]`, codewords `[M, K, d]`, beta in nats per squared step. ln p_k is up to a constant that of the
    integer logits of `prior`, evaluated where they are used: a skipped symbol's code is 0, and codewords without a
    frequency are not chosen. Without a prior the nearest codeword is taken.

    Returns codes `[B, M, P]`, int64. Exact ties go to the lowest k; implementations may part where two costs are equal
    but for the rounding of float32. The kernel holds a tile of distances, the reference some millions. Per symbol:
    4 d + 8 bytes and K (3 d + 3) float operations, with a prior K (6 d + 5) integer ones more.
    """
    if not use_triton(latents.device):
        return pvq_assign_reference(latents, codewords, beta, prior)
    batch, groups, dimension, positions = latents.shape
    size = codewords.shape[1]
    codes = torch.empty((batch, groups, positions), dtype=torch.int64, device=latents.device)
    points = codewords.detach().float().transpose(1, 2).contiguous()
    unused = codes  # arguments that no branch reads
    blocks, meta = symbol_tiles(positions, size)
    integers = (
        (*(unused,) * 4, 0, unused, unused)
        if prior is None
        else (
            prior.tables.codewords, prior.tables.log_weights, prior.tables.precision, prior.tables.limit,
            prior.tables.cutoff, prior.offset.contiguous(), prior.scale.contiguous(),
        )
    )
    launch(
        _assign_kernel, (blocks, groups, batch), latents.detach().float().contiguous(), points, float(beta), NATS,
        *integers, codes, groups, positions, K=size, D=dimension, PRIOR=prior is not None, **meta,
    )
    return codes
