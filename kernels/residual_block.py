"""Float operations of residual blocks, with gradients: what is bound by memory passes over it once.

Tensors are `[B, C, H, W]` in channels_last layout; parameters and their gradients float32. On a GPU each function is
one kernel forward and one backward (and a small sum); elsewhere it is the torch operations that it stands for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mcodec.kernels.backend import jit, launch, tl, triton, use_triton

#: Rows that a program of the depthwise kernels walks down, with three rows of its tile in registers.
ROWS = 8


def affine_depthwise_reference(
    x: Tensor, weight: Tensor, bias: Tensor, factor: Tensor | None = None, shift: Tensor | None = None
) -> Tensor:
    """`affine_depthwise` in torch."""
    if factor is not None:
        x = x * factor if shift is None else torch.addcmul(shift, x, factor)
    return F.conv2d(x, weight, bias, padding=1, groups=x.shape[1])


def scaled_add_reference(x: Tensor, added: Tensor, factor: Tensor) -> Tensor:
    """`scaled_add` in torch."""
    return torch.addcmul(x, factor, added)


# ---- Triton ------------------------------------------------------------------------------------------------------


@jit
def _row(  # type: ignore[no-untyped-def]
    source, plane, row, column, c, known, H, W, C, SHIFT: tl.constexpr,
):
    """Values `[COLUMNS, CHANNELS]` of a row of the tile, moved by SHIFT columns; and where there is a picture."""
    at = column + SHIFT
    inside = (row >= 0) & (row < H) & (at >= 0) & (at < W)
    mask = inside[:, None] & known[None, :]
    value = tl.load(source + plane + (row.to(tl.int64) * W + at)[:, None] * C + c[None, :], mask=mask, other=0.0)
    return value.to(tl.float32), mask


@jit
def _affine_row(  # type: ignore[no-untyped-def]
    source, plane, row, column, c, known, factor, shift, H, W, C, SHIFT: tl.constexpr, AFFINE: tl.constexpr,
):
    """As `_row`, of x * factor + shift; 0 outside the picture."""
    value, mask = _row(source, plane, row, column, c, known, H, W, C, SHIFT)
    if AFFINE:
        value = tl.where(mask, value * factor[None, :] + shift[None, :], 0.0)
    return value


@jit
def _tile(  # type: ignore[no-untyped-def]
    factors, shifts, W, C, AFFINE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):
    """A program's tile: first row and columns `[COLUMNS]`, channels and which exist, item, their factor and shift."""
    strips = tl.cdiv(W, COLUMNS)
    column = (tl.program_id(0) % strips) * COLUMNS + tl.arange(0, COLUMNS)
    first = (tl.program_id(0) // strips) * ROWS + tl.zeros([COLUMNS], tl.int32)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = c < C
    item = tl.program_id(2).to(tl.int64)
    f = tl.zeros([CHANNELS], tl.float32) + 1.0
    s = tl.zeros([CHANNELS], tl.float32)
    if AFFINE:
        f = tl.load(factors + item * C + c, mask=known, other=0.0)
        s = tl.load(shifts + item * C + c, mask=known, other=0.0)
    return first, column, c, known, item, f, s


@jit
def _taps(weight, c, known):  # type: ignore[no-untyped-def]
    """The nine weights of channels c, `[1, CHANNELS]` each, row by row."""
    w00 = tl.load(weight + c * 9, mask=known, other=0.0)[None, :]
    w01 = tl.load(weight + c * 9 + 1, mask=known, other=0.0)[None, :]
    w02 = tl.load(weight + c * 9 + 2, mask=known, other=0.0)[None, :]
    w10 = tl.load(weight + c * 9 + 3, mask=known, other=0.0)[None, :]
    w11 = tl.load(weight + c * 9 + 4, mask=known, other=0.0)[None, :]
    w12 = tl.load(weight + c * 9 + 5, mask=known, other=0.0)[None, :]
    w20 = tl.load(weight + c * 9 + 6, mask=known, other=0.0)[None, :]
    w21 = tl.load(weight + c * 9 + 7, mask=known, other=0.0)[None, :]
    w22 = tl.load(weight + c * 9 + 8, mask=known, other=0.0)[None, :]
    return w00, w01, w02, w10, w11, w12, w20, w21, w22


@jit
def _depthwise_kernel(  # type: ignore[no-untyped-def]
    x, weight, bias, factors, shifts, out, H, W, C, AFFINE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    first, column, c, known, item, f, s = _tile(factors, shifts, W, C, AFFINE, ROWS, COLUMNS, CHANNELS)
    plane = item * C * H * W
    w00, w01, w02, w10, w11, w12, w20, w21, w22 = _taps(weight, c, known)
    b = tl.load(bias + c, mask=known, other=0.0)[None, :]
    a0 = _affine_row(x, plane, first - 1, column, c, known, f, s, H, W, C, -1, AFFINE)
    a1 = _affine_row(x, plane, first - 1, column, c, known, f, s, H, W, C, 0, AFFINE)
    a2 = _affine_row(x, plane, first - 1, column, c, known, f, s, H, W, C, 1, AFFINE)
    b0 = _affine_row(x, plane, first, column, c, known, f, s, H, W, C, -1, AFFINE)
    b1 = _affine_row(x, plane, first, column, c, known, f, s, H, W, C, 0, AFFINE)
    b2 = _affine_row(x, plane, first, column, c, known, f, s, H, W, C, 1, AFFINE)
    for step in range(ROWS):
        row = first + step
        c0 = _affine_row(x, plane, row + 1, column, c, known, f, s, H, W, C, -1, AFFINE)
        c1 = _affine_row(x, plane, row + 1, column, c, known, f, s, H, W, C, 0, AFFINE)
        c2 = _affine_row(x, plane, row + 1, column, c, known, f, s, H, W, C, 1, AFFINE)
        value = b + w00 * a0 + w01 * a1 + w02 * a2 + w10 * b0 + w11 * b1 + w12 * b2 + w20 * c0 + w21 * c1 + w22 * c2
        mask = ((row < H) & (column < W))[:, None] & known[None, :]
        at = plane + (row.to(tl.int64) * W + column)[:, None] * C + c[None, :]
        tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)
        a0 = b0
        a1 = b1
        a2 = b2
        b0 = c0
        b1 = c1
        b2 = c2


@jit
def _depthwise_backward_kernel(  # type: ignore[no-untyped-def]
    grad, x, weight, factors, shifts, back, sums, H, W, C, AFFINE: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):
    first, column, c, known, item, f, s = _tile(factors, shifts, W, C, AFFINE, ROWS, COLUMNS, CHANNELS)
    plane = item * C * H * W
    w00, w01, w02, w10, w11, w12, w20, w21, w22 = _taps(weight, c, known)
    a0, _ = _row(grad, plane, first - 1, column, c, known, H, W, C, -1)
    a1, _ = _row(grad, plane, first - 1, column, c, known, H, W, C, 0)
    a2, _ = _row(grad, plane, first - 1, column, c, known, H, W, C, 1)
    b0, _ = _row(grad, plane, first, column, c, known, H, W, C, -1)
    b1, _ = _row(grad, plane, first, column, c, known, H, W, C, 0)
    b2, _ = _row(grad, plane, first, column, c, known, H, W, C, 1)
    # sums over rows: of the nine weights, the bias, the factor and the shift
    g00 = tl.zeros([COLUMNS, CHANNELS], tl.float32)
    g01 = tl.zeros([COLUMNS, CHANNELS], tl.float32)
    g02 = tl.zeros([COLUMNS, CHANNELS], tl.float32)
    g10 = tl.zeros([COLUMNS, CHANNELS], tl.float32)
    g11 = tl.zeros([COLUMNS, CHANNELS], tl.float32)
    g12 = tl.zeros([COLUMNS, CHANNELS], tl.float32)
    g20 = tl.zeros([COLUMNS, CHANNELS], tl.float32)
    g21 = tl.zeros([COLUMNS, CHANNELS], tl.float32)
    g22 = tl.zeros([COLUMNS, CHANNELS], tl.float32)
    gb = tl.zeros([COLUMNS, CHANNELS], tl.float32)
    gf = tl.zeros([COLUMNS, CHANNELS], tl.float32)
    gs = tl.zeros([COLUMNS, CHANNELS], tl.float32)
    for step in range(ROWS):
        row = first + step
        c0, _ = _row(grad, plane, row + 1, column, c, known, H, W, C, -1)
        c1, _ = _row(grad, plane, row + 1, column, c, known, H, W, C, 0)
        c2, _ = _row(grad, plane, row + 1, column, c, known, H, W, C, 1)
        u, mask = _row(x, plane, row, column, c, known, H, W, C, 0)
        y = u
        if AFFINE:
            y = tl.where(mask, u * f[None, :] + s[None, :], 0.0)
        # the output at an offset of (i, j) read this place with the weight of (-i, -j)
        total = w22 * a0 + w21 * a1 + w20 * a2 + w12 * b0 + w11 * b1 + w10 * b2 + w02 * c0 + w01 * c1 + w00 * c2
        g22 += a0 * y
        g21 += a1 * y
        g20 += a2 * y
        g12 += b0 * y
        g11 += b1 * y
        g10 += b2 * y
        g02 += c0 * y
        g01 += c1 * y
        g00 += c2 * y
        total = tl.where(mask, total, 0.0)
        # a tile may be higher than the picture: its last rows see the picture from below
        gb += tl.where(mask, b1, 0.0)
        gf += total * u
        gs += total
        at = plane + (row.to(tl.int64) * W + column)[:, None] * C + c[None, :]
        tl.store(back + at, (total * f[None, :]).to(back.dtype.element_ty), mask=mask)
        a0 = b0
        a1 = b1
        a2 = b2
        b0 = c0
        b1 = c1
        b2 = c2
    to = sums + ((item * tl.num_programs(0) + tl.program_id(0)) * 12) * C + c
    tl.store(to, tl.sum(g00, 0), mask=known)
    tl.store(to + C, tl.sum(g01, 0), mask=known)
    tl.store(to + 2 * C, tl.sum(g02, 0), mask=known)
    tl.store(to + 3 * C, tl.sum(g10, 0), mask=known)
    tl.store(to + 4 * C, tl.sum(g11, 0), mask=known)
    tl.store(to + 5 * C, tl.sum(g12, 0), mask=known)
    tl.store(to + 6 * C, tl.sum(g20, 0), mask=known)
    tl.store(to + 7 * C, tl.sum(g21, 0), mask=known)
    tl.store(to + 8 * C, tl.sum(g22, 0), mask=known)
    tl.store(to + 9 * C, tl.sum(gb, 0), mask=known)
    tl.store(to + 10 * C, tl.sum(gf, 0), mask=known)
    tl.store(to + 11 * C, tl.sum(gs, 0), mask=known)


@jit
def _scaled_add_kernel(x, added, factors, out, N, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    item = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    factor = tl.load(factors + item)
    value = tl.load(x + item * N + n, mask=n < N, other=0.0).to(tl.float32)
    value += factor * tl.load(added + item * N + n, mask=n < N, other=0.0).to(tl.float32)
    tl.store(out + item * N + n, value.to(out.dtype.element_ty), mask=n < N)


@jit
def _scaled_add_backward_kernel(  # type: ignore[no-untyped-def]
    grad, added, factors, back, sums, N, BLOCK: tl.constexpr,
):
    item = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    factor = tl.load(factors + item)
    g = tl.load(grad + item * N + n, mask=n < N, other=0.0).to(tl.float32)
    value = tl.load(added + item * N + n, mask=n < N, other=0.0).to(tl.float32)
    tl.store(back + item * N + n, (g * factor).to(back.dtype.element_ty), mask=n < N)
    tl.store(sums + item * tl.num_programs(0) + tl.program_id(0), tl.sum(g * value, 0))


@jit
def _column_sums_kernel(x, sums, R, C, ROWS: tl.constexpr, STEPS: tl.constexpr, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros([ROWS, CHANNELS], tl.float32)
    for step in range(STEPS):
        r = (tl.program_id(0).to(tl.int64) * STEPS + step) * ROWS + tl.arange(0, ROWS)
        mask = (r < R)[:, None] & (c < C)[None, :]
        total += tl.load(x + r[:, None] * C + c[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(sums + tl.program_id(0) * C + c, tl.sum(total, 0), mask=c < C)


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _tiles(x: Tensor) -> tuple[tuple[int, int, int], dict[str, int]]:
    """Grid of programs over a tensor, and their tile: 512 values, 4 for each thread."""
    b, channels, h, w = x.shape
    wide = channels & -channels  # without a remainder if that leaves whole memory transactions
    wide = min(64, wide if wide >= 32 else max(16, triton.next_power_of_2(channels)))
    columns = min(triton.next_power_of_2(max(w, 1)), 512 // wide)
    rows = min(ROWS, triton.next_power_of_2(max(h, 1)))
    grid = (-(-w // columns) * -(-h // rows), -(-channels // wide), b)
    return grid, {"ROWS": rows, "COLUMNS": columns, "CHANNELS": wide, "num_warps": 4}


class _AffineDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, x: Tensor, weight: Tensor, bias: Tensor, factor: Tensor | None, shift: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        x = _last(x)
        ctx.shapes = weight.shape, None if factor is None else factor.shape, None if shift is None else shift.shape
        b, channels, h, w = x.shape
        weight = weight.float().contiguous()
        affine = factor is not None
        if factor is not None:
            factor = factor.float().expand(b, channels, 1, 1).contiguous()
            shift = torch.zeros_like(factor) if shift is None else shift.float().expand_as(factor).contiguous()
        ctx.save_for_backward(x, weight, factor, shift)
        out = torch.empty_like(x, dtype=dtype, memory_format=torch.channels_last)
        unused = weight  # not read
        grid, meta = _tiles(x)
        launch(
            _depthwise_kernel, grid, x, weight, bias.float().contiguous(), unused if factor is None else factor,
            unused if shift is None else shift, out, h, w, channels, AFFINE=affine, **meta,
        )
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> Any:  # type: ignore[no-untyped-def]
        x, weight, factor, shift = ctx.saved_tensors
        b, channels, h, w = x.shape
        grad, back = _last(grad), torch.empty_like(x, memory_format=torch.channels_last)
        grid, meta = _tiles(x)
        sums = torch.empty((b, grid[0], 12, channels), dtype=torch.float32, device=x.device)
        launch(
            _depthwise_backward_kernel, grid, grad, x, weight, weight if factor is None else factor,
            weight if shift is None else shift, back, sums, h, w, channels, AFFINE=factor is not None, **meta,
        )
        sums = sums.sum(1)
        whole = sums[:, :10].sum(0)
        weight_shape, factor_shape, shift_shape = ctx.shapes
        return (
            back,
            whole[:9].t().reshape(weight_shape),
            whole[9],
            None if factor_shape is None else sums[:, 10, :, None, None].sum_to_size(factor_shape),
            None if shift_shape is None else sums[:, 11, :, None, None].sum_to_size(shift_shape),
            None,
        )


class _ScaledAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, added: Tensor, factor: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        x, added = _last(x), _last(added)
        ctx.shape = factor.shape
        factor = factor.float().expand(len(x), 1, 1, 1).contiguous()
        ctx.save_for_backward(added, factor)
        out = torch.empty_like(x, memory_format=torch.channels_last)
        block, n = 4096, x[0].numel()
        launch(_scaled_add_kernel, (-(-n // block), len(x)), x, added, factor, out, n, BLOCK=block, num_warps=4)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[no-untyped-def]
        added, factor = ctx.saved_tensors
        grad, back = _last(grad), torch.empty_like(added, memory_format=torch.channels_last)
        block, n = 4096, added[0].numel()
        blocks = -(-n // block)
        sums = torch.empty((len(added), blocks), dtype=torch.float32, device=added.device)
        launch(
            _scaled_add_backward_kernel, (blocks, len(added)), grad, added, factor, back, sums, n, BLOCK=block,
            num_warps=4,
        )
        return grad, back, sums.sum(1).reshape(factor.shape).sum_to_size(ctx.shape)


class _Pointwise(torch.autograd.Function):
    """A matrix product per position; the bias's gradient by a kernel that reads rows as they lie."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.kinds = x.dtype, weight.dtype, bias.dtype
        x, weight = x.to(dtype), weight.to(dtype)
        ctx.save_for_backward(x, weight)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, weight, bias.to(dtype))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, len(weight)).contiguous()
        return (
            (rows @ weight).view(x.shape).to(ctx.kinds[0]) if ctx.needs_input_grad[0] else None,
            (rows.t() @ x.reshape(len(rows), -1)).to(ctx.kinds[1]),
            column_sums(rows).to(ctx.kinds[2]),
            None,
        )


def column_sums(x: Tensor) -> Tensor:
    """x `[R, C]` -> float32 `[C]`; Triton only. One pass over x, and a small one over its partial sums."""
    rows, columns = x.shape
    wide = min(64, max(16, triton.next_power_of_2(columns)))
    tall = 1024 // wide
    steps = min(16, triton.next_power_of_2(max(1, rows // (tall * 256))))
    parts = max(1, -(-rows // (tall * steps)))
    sums = torch.empty((parts, columns), dtype=torch.float32, device=x.device)
    launch(
        _column_sums_kernel, (parts, -(-columns // wide)), x.contiguous(), sums, rows, columns, ROWS=tall, STEPS=steps,
        CHANNELS=wide, num_warps=4,
    )
    return sums.sum(0)


# ---- dispatchers -------------------------------------------------------------------------------------------------


def affine_depthwise(
    x: Tensor, weight: Tensor, bias: Tensor, factor: Tensor | None = None, shift: Tensor | None = None
) -> Tensor:
    """Depthwise 3x3 convolution, with zero padding, of x * factor + shift.

    x `[B, C, H, W]`, weight `[C, 1, 3, 3]`, bias `[C]`; factor and shift broadcast to `[B, C, 1, 1]`, a shift only
    beside a factor. Returns `[B, C, H, W]`, under autocast in its type; sums are float32, so that integers below 2^24
    are exact. Reads each value once but for the cache and writes it once; backward reads both tensors and writes one.
    """
    if not use_triton(x.device):
        return affine_depthwise_reference(x, weight, bias, factor, shift)
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    out: Tensor = _AffineDepthwise.apply(x, weight, bias, factor, shift, dtype)  # type: ignore[no-untyped-call]
    return out


def scaled_add(x: Tensor, added: Tensor, factor: Tensor) -> Tensor:
    """x + factor * added, `[B, C, H, W]` of x's type; factor `[B, 1, 1, 1]`, or `[1, 1, 1, 1]` for all.

    Reads both and writes one; backward reads both and writes the gradient of what was added.
    """
    if not use_triton(x.device) or x.numel() == 0:
        return scaled_add_reference(x, added, factor)
    out: Tensor = _ScaledAdd.apply(x, added, factor)  # type: ignore[no-untyped-call]
    return out


def pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """1x1 layer: x `[B, I, H, W]`, weight `[O, I]`, bias `[O]` -> `[B, O, H, W]`, under autocast in its type.

    For channels_last x a plain matrix product.
    """
    rows = x.movedim(1, -1)
    if not use_triton(x.device) or x.numel() == 0 or not torch.is_grad_enabled():
        return F.linear(rows, weight, bias).movedim(-1, 1)
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    out: Tensor = _Pointwise.apply(rows, weight, bias, dtype)  # type: ignore[no-untyped-call]
    return out.movedim(-1, 1)
