"""The filter behind the synthesis (docs/FORMAT.md, step 4) in one pass; as torch operations it is some hundred."""

from __future__ import annotations

import torch
from torch import Tensor

from mcodec.kernels.backend import jit, launch, tl


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


def filtered(picture: Tensor, weights: Tensor, limit: float) -> Tensor:
    """The filtered picture, float32 `[3, H, W]` of fewer than 2^31 samples; Triton only.

    weights: float32 `[3, 15]` on its device, of each channel those of its 13 means and of the two other channels, the
    lower first. Reads and writes 12 bytes per pixel but for the cache.
    """
    picture, weights = picture.contiguous(), weights.contiguous()
    out = torch.empty_like(picture)
    _, height, width = picture.shape
    launch(
        _filter_kernel, (-(-width // 128), -(-height // 4)), picture, weights, out, float(limit), height, width, ROWS=4,
        COLUMNS=128, num_warps=4,
    )
    return out
