"""The filter behind the synthesis (docs/FORMAT.md, step 4): one pass on a GPU, some hundred torch operations else."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from mcodec.kernels.backend import jit, launch, tl, upload, use_triton

#: One of two opposite neighbours (rows, columns); the first two make the ring of the nearest.
PAIRS = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0), (0, 3), (3, 0))
#: Two of the four neighbours of a ring, none the other's opposite.
RINGS = (((0, 1), (1, 0)), ((1, 1), (1, -1)), ((0, 2), (2, 0)), ((2, 2), (2, -2)), ((0, 3), (3, 0)))
#: How many pixels away the filter looks.
REACH = 3
#: Of each channel the two others.
_OTHERS = ((1, 2), (0, 2), (0, 1))
#: Rows of a picture that are worked on at once: what a cache holds, or few launches on a GPU.
_ROWS, _GPU_ROWS = 64, 4096


def strips(picture: Tensor, top: int, bottom: int, left: int, right: int) -> Iterator[tuple[slice, Tensor]]:
    """(rows, the picture there with a margin of REACH) of a part of a picture `[3, H, W]`; edges are repeated."""
    padded = F.pad(picture[None], (REACH,) * 4, mode="replicate")[0, :, :, left : right + 2 * REACH]
    step = _ROWS if picture.device.type == "cpu" else _GPU_ROWS
    for first in range(top, bottom, step):
        last = min(first + step, bottom)
        yield slice(first, last), padded[:, first : last + 2 * REACH]


def neighbours(around: Tensor, row: int, column: int) -> Tensor:
    """The neighbours at (row, column) of all samples of a strip."""
    height, width = around.shape[1] - 2 * REACH, around.shape[2] - 2 * REACH
    return around[:, REACH + row : REACH + row + height, REACH + column : REACH + column + width]


def pair_mean(around: Tensor, pair: tuple[int, int]) -> Tensor:
    """The mean of two opposite neighbours, less the sample: `[3, h, w]`."""
    row, column = pair
    mean = (neighbours(around, row, column) + neighbours(around, -row, -column)).mul_(0.5)
    return mean.sub_(neighbours(around, 0, 0))


def ring_sum(around: Tensor, half: tuple[tuple[int, int], ...], limit: float) -> Tensor:
    """The sum of clipped differences to neighbours and their opposites, `[3, h, w]`."""
    total = torch.zeros_like(neighbours(around, 0, 0))
    for row, column in half:
        # from each sample to the neighbour behind it: what the neighbour sees is the negative
        height, width = around.shape[1] - row, around.shape[2] - abs(column)
        left = max(0, -column)
        here, there = around[:, :height, left : left + width], around[:, row:, left + column : left + column + width]
        difference = (there - here).clamp_(-limit, limit)
        rows, columns = total.shape[1:]
        at = REACH - left
        total += difference[:, REACH : REACH + rows, at : at + columns]
        total -= difference[:, REACH - row : REACH - row + rows, at - column : at - column + columns]
    return total


def pixel_filter_reference(picture: Tensor, own: Tensor, others: Tensor, limit: float) -> Tensor:
    """`pixel_filter` in torch."""
    crossed = bool(others.any())  # before they leave the host
    own, others = (upload(part.contiguous(), picture.device)[:, :, None, None] for part in (own, others))
    out = picture.clone()
    for rows, around in strips(picture, 0, picture.shape[1], 0, picture.shape[2]):
        result, nearest = out[:, rows], torch.zeros_like(neighbours(around, 0, 0))
        for place, pair in enumerate(PAIRS):
            mean = pair_mean(around, pair)
            if place < 2 and crossed:
                nearest += mean
            result += mean.mul_(own[:, place])
        for place, ring in enumerate(RINGS, len(PAIRS)):
            result += ring_sum(around, ring, limit).mul_(own[:, place] / 4)
        if crossed:
            for place in (0, 1):
                other = torch.stack([nearest[others_of[place]] for others_of in _OTHERS])  # no index to upload
                result += other.mul_(others[:, place] / 2)
    return out


@jit
def _sample(plane, row, column, H, W):  # type: ignore[no-untyped-def]
    """Samples at rows `[R, 1]` and columns `[1, N]` of a plane; beyond it its edges are repeated."""
    r = tl.minimum(tl.maximum(row, 0), H - 1)
    c = tl.minimum(tl.maximum(column, 0), W - 1)
    return tl.load(plane + r * W + c)


@jit
def _pair(plane, row, column, here, H, W, DOWN: tl.constexpr, RIGHT: tl.constexpr):  # type: ignore[no-untyped-def]
    """The mean of two opposite neighbours, less the sample."""
    one = _sample(plane, row + DOWN, column + RIGHT, H, W)
    return 0.5 * (one + _sample(plane, row - DOWN, column - RIGHT, H, W)) - here


@jit
def _clipped(plane, row, column, here, limit, H, W, DOWN: tl.constexpr, RIGHT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Clipped differences to two opposite neighbours, added."""
    one = _sample(plane, row + DOWN, column + RIGHT, H, W) - here
    other = _sample(plane, row - DOWN, column - RIGHT, H, W) - here
    return tl.minimum(tl.maximum(one, -limit), limit) + tl.minimum(tl.maximum(other, -limit), limit)


@jit
def _channel(picture, weights, limit, row, column, H, W, CHANNEL: tl.constexpr):  # type: ignore[no-untyped-def]
    """A channel with what its own neighbours add, and the sum of its two means of the nearest."""
    plane = picture + CHANNEL * H.to(tl.int64) * W
    w = weights + CHANNEL * 15
    here = _sample(plane, row, column, H, W)
    p0 = _pair(plane, row, column, here, H, W, 0, 1)
    p1 = _pair(plane, row, column, here, H, W, 1, 0)
    out = here + tl.load(w) * p0 + tl.load(w + 1) * p1
    out += tl.load(w + 2) * _pair(plane, row, column, here, H, W, 1, 1)
    out += tl.load(w + 3) * _pair(plane, row, column, here, H, W, 1, -1)
    out += tl.load(w + 4) * _pair(plane, row, column, here, H, W, 0, 2)
    out += tl.load(w + 5) * _pair(plane, row, column, here, H, W, 2, 0)
    out += tl.load(w + 6) * _pair(plane, row, column, here, H, W, 0, 3)
    out += tl.load(w + 7) * _pair(plane, row, column, here, H, W, 3, 0)
    r = _clipped(plane, row, column, here, limit, H, W, 0, 1) + _clipped(plane, row, column, here, limit, H, W, 1, 0)
    out += 0.25 * tl.load(w + 8) * r
    r = _clipped(plane, row, column, here, limit, H, W, 1, 1) + _clipped(plane, row, column, here, limit, H, W, 1, -1)
    out += 0.25 * tl.load(w + 9) * r
    r = _clipped(plane, row, column, here, limit, H, W, 0, 2) + _clipped(plane, row, column, here, limit, H, W, 2, 0)
    out += 0.25 * tl.load(w + 10) * r
    r = _clipped(plane, row, column, here, limit, H, W, 2, 2) + _clipped(plane, row, column, here, limit, H, W, 2, -2)
    out += 0.25 * tl.load(w + 11) * r
    r = _clipped(plane, row, column, here, limit, H, W, 0, 3) + _clipped(plane, row, column, here, limit, H, W, 3, 0)
    out += 0.25 * tl.load(w + 12) * r
    return out, p0 + p1


@jit
def _filter_kernel(  # type: ignore[no-untyped-def]
    picture, weights, out, limit, H, W, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    column = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    H = H + 0 * tl.program_id(0)  # a tensor even where it is 1
    a, na = _channel(picture, weights, limit, row, column, H, W, 0)
    b, nb = _channel(picture, weights, limit, row, column, H, W, 1)
    c, nc = _channel(picture, weights, limit, row, column, H, W, 2)
    # half of the sum of two means of two is the mean of four
    a += 0.5 * (tl.load(weights + 13) * nb + tl.load(weights + 14) * nc)
    b += 0.5 * (tl.load(weights + 28) * na + tl.load(weights + 29) * nc)
    c += 0.5 * (tl.load(weights + 43) * na + tl.load(weights + 44) * nb)
    mask = (row < H) & (column < W)
    plane = H.to(tl.int64) * W
    at = out + row * W + column
    tl.store(at, a, mask=mask)
    tl.store(at + plane, b, mask=mask)
    tl.store(at + 2 * plane, c, mask=mask)


def pixel_filter(picture: Tensor, own: Tensor, others: Tensor, limit: float) -> Tensor:
    """The filtered picture, float `[3, H, W]` of fewer than 2^31 samples, its edges repeated beyond it.

    Weights are on the host: own `[3, 13]` of each channel's means, others `[3, 2]` of the nearest in its two other
    channels, the lower first. Differences of a ring are clipped at `limit`. Floats: the order of sums differs between
    the two forms (1e-6 of the samples' range). The kernel reads and writes 12 bytes per pixel but for the cache.
    """
    if not use_triton(picture.device) or not picture.numel():
        return pixel_filter_reference(picture, own, others, limit)
    picture, weights = picture.float().contiguous(), upload(torch.cat([own, others], 1), picture.device)
    out = torch.empty_like(picture)
    _, height, width = picture.shape
    launch(
        _filter_kernel, (-(-width // 128), -(-height // 4)), picture, weights, out, float(limit), height, width, ROWS=4,
        COLUMNS=128, num_warps=4,
    )
    return out
