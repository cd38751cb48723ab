"""The integer law of the prior: context parameters to logits, to frequencies of sum 2^16 (docs/ENTROPY.md).

A symbol is one of K codewords under an offset and a scale index per component. Everything is integer arithmetic that
fits 32 bits, but for one 64-bit division per symbol, and equals `mcodec.entropy` bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mcodec.kernels.backend import jit, launch, tile_rows, tl, triton, use_triton, warps

#: log2 of the sum of a row.
TOTAL_BITS = 16
TOTAL = 1 << TOTAL_BITS
#: A cutoff that no codeword is beyond: logits differ by less.
EVERY = 1 << 23


@dataclass(frozen=True, eq=False)
class MixtureTables:
    """Integer tables of one stage on one device; ranges as in `mcodec.entropy.PriorTables`.

    codewords int32 `[M, d, K]`, 1/16 step; log_weights int32 `[M, K]`, 1/64 bit; precision int32 `[256]`; limit int32
    `[256]`, where squares are clipped so that no sum overflows. All 256 scale indices have an entry: kernels do not
    check them. Codewords of a logit `cutoff` or more below the largest have no frequency, but for the first two.
    """

    codewords: Tensor
    log_weights: Tensor
    precision: Tensor
    limit: Tensor
    cutoff: int = EVERY

    @staticmethod
    def build(codewords: Tensor, log_weights: Tensor, precision: Tensor, cutoff: int = EVERY) -> MixtureTables:
        """From codewords `[M, K, d]`, log_weights `[M, K]` and precision `[S]`, of any integer type."""
        precision = F.pad(precision.to(torch.int64), (0, 256 - len(precision)), value=1)
        return MixtureTables(
            codewords.to(torch.int32).transpose(1, 2).contiguous(),
            log_weights.to(torch.int32).contiguous(),
            precision.to(torch.int32),
            ((2**31 - 1) // (codewords.shape[2] * precision)).to(torch.int32),
            cutoff,
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(M, K, d)."""
        groups, dimension, size = self.codewords.shape
        return groups, size, dimension


def skipped(scale: Tensor) -> Tensor:
    """Symbols that are not coded, `[B, M, P]`: those whose scale indices `[B, M, d, P]` are all 0."""
    return ~scale.bool().any(2)


def logits_of(tables: MixtureTables, group: Tensor, offset: Tensor | None, scale: Tensor | None) -> Tensor:
    """Integer logits of every codeword for symbols of any shape `[...]` -> int64 `[..., K]`, 1/64 bit.

    group int64 `[...]`; offset and scale `[..., d]`, or None for a static prior.
    """
    logit = tables.log_weights.long()[group]
    if offset is None or scale is None:
        return logit
    cost = torch.full((), 512, device=group.device)
    for j in range(tables.shape[2]):
        index = scale[..., j].long()
        difference = tables.codewords[:, j].long()[group] - offset[..., j, None].long()
        clipped = torch.minimum(difference.square(), tables.limit.long()[index][..., None])
        cost = cost + tables.precision.long()[index][..., None] * clipped
    return logit - (cost >> 10)


def rows_of(tables: MixtureTables, group: Tensor, offset: Tensor | None, scale: Tensor | None) -> Tensor:
    """Frequency rows of sum 2^16, int64 `[..., K]`; arguments as in `logits_of`."""
    size = tables.shape[1]
    logit = logits_of(tables, group, offset, scale)
    f = logit.amax(-1, keepdim=True) - logit
    t = f & 63
    p = 32768 - ((21997 * t) >> 6) + ((5613 * t * t) >> 12)
    weight = p >> (f >> 6).clamp(max=31)
    k = torch.arange(size, device=logit.device)
    near = (f < tables.cutoff) | (k < 2)
    inverse = ((TOTAL - near.sum(-1, keepdim=True)) << 31) // weight.sum(-1, keepdim=True)
    freq = near + ((weight * inverse) >> 31)
    top = torch.where(f == 0, k, size).amin(-1, keepdim=True)
    return freq + torch.where(k == top, TOTAL - freq.sum(-1, keepdim=True), 0)


def components_last(context: Tensor | None) -> Tensor | None:
    """offset or scale `[B, M, d, P]` -> `[B, M, P, d]`."""
    return None if context is None else context.movedim(2, 3)


def mixture_rows_reference(tables: MixtureTables, offset: Tensor | None, scale: Tensor | None) -> Tensor:
    """`mixture_rows` in torch."""
    group = torch.arange(tables.shape[0], device=tables.codewords.device)[None, :, None]
    return rows_of(tables, group, components_last(offset), components_last(scale)).to(torch.int32)


def mixture_frequencies_reference(
    tables: MixtureTables, offset: Tensor | None, scale: Tensor | None, codes: Tensor
) -> tuple[Tensor, Tensor]:
    """`mixture_frequencies` in torch; rows are held for all symbols at once."""
    start, freq = _intervals(mixture_rows_reference(tables, offset, scale), codes)
    if scale is not None:
        coded = ~skipped(scale)
        start, freq = start * coded, freq * coded
    return start, freq


def _intervals(rows: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """(start, freq) of codes `[B, M, P]` from rows that expand to `[B, M, P, K]`."""
    ends = rows.cumsum(3, dtype=torch.int32).expand(*codes.shape, -1)
    at = codes.long()[..., None]
    freq = rows.expand(*codes.shape, -1).gather(3, at)[..., 0]
    return ends.gather(3, at)[..., 0] - freq, freq


# ---- Triton ------------------------------------------------------------------------------------------------------


@jit
def tile_logits(  # type: ignore[no-untyped-def]
    codewords, log_weights, precision, limit, offset, scale, symbol, group, valid, k, P, K: tl.constexpr,
    D: tl.constexpr, STATIC: tl.constexpr,
):
    """Logits `[R, N]` of codewords k and whether any scale index is not 0, `[R]`.

    symbol `[R]`: int64 address of component 0 in offset and scale, whose components are P apart; group int64 and
    k int32: scalar and `[1, N]`, or `[R, 1]` and `[R, N]`. Codewords beyond K - 1 get a logit below all others.
    """
    inside = k < K
    cost = tl.zeros_like(symbol[:, None].to(tl.int32) + k)
    coded = symbol < 0
    if STATIC:
        coded = symbol >= 0
    else:
        for j in range(D):
            g = tl.load(offset + symbol + j * P, mask=valid, other=0).to(tl.int32)
            index = tl.load(scale + symbol + j * P, mask=valid, other=0).to(tl.int32)
            a = tl.load(precision + index)
            clip = tl.load(limit + index)
            coded = coded | (index != 0)
            mu = tl.load(codewords + (group * D + j) * K + k, mask=inside, other=0)
            difference = mu - g[:, None]
            cost += a[:, None] * tl.minimum(difference * difference, clip[:, None])
    base = tl.load(log_weights + group * K + k, mask=inside, other=-(1 << 28))
    # (cost + 512) >> 10, in a form that stays in int32
    return base - (((cost >> 9) + 1) >> 1), coded


@jit
def tile_weights(f):  # type: ignore[no-untyped-def]
    """2^(15 - f / 64) by the quadratic of docs/ENTROPY.md; 0 where f is large."""
    t = f & 63
    p = 32768 - ((21997 * t) >> 6) + ((5613 * t * t) >> 12)
    return p >> tl.minimum(f >> 6, 31)


@jit
def tile_scaled(weight, inverse_high, inverse_low):  # type: ignore[no-untyped-def]
    """(weight * inverse) >> 31 in 32-bit products."""
    return ((weight * inverse_high + ((weight * inverse_low) >> 16)) >> 15)


@jit
def tile_frequencies(  # type: ignore[no-untyped-def]
    logit, k, cutoff, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):
    """Frequencies `[ROWS, COLUMNS]` of sum 2^16 from whole rows of logits, 0 beyond K - 1; k int32 `[1, COLUMNS]`."""
    f = tl.max(logit, 1)[:, None] - logit
    weight = tile_weights(f)
    near = ((f < cutoff) | (k < 2)).to(tl.int32)
    inverse = ((65536 - tl.sum(near, 1)).to(tl.int64) << 31) // tl.sum(weight, 1).to(tl.int64)
    high = (inverse >> 16).to(tl.int32)
    low = (inverse & 0xFFFF).to(tl.int32)
    freq = near + tile_scaled(weight, high[:, None], low[:, None])
    rest = 65536 - tl.sum(freq, 1).to(tl.int32)
    top = tl.min(tl.where(f == 0, k, COLUMNS), 1)
    return freq + tl.where(k == top[:, None], rest[:, None], 0)


@jit
def _tile_rows(  # type: ignore[no-untyped-def]
    codewords, log_weights, precision, limit, cutoff, offset, scale, M, P, K: tl.constexpr, D: tl.constexpr,
    STATIC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):
    """Frequencies `[ROWS, COLUMNS]` of one program's symbols: neighbours of one group."""
    position = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1).to(tl.int64)
    stream = tl.program_id(2).to(tl.int64)
    valid = position < P
    cell = (stream * M + group) * P + position  # [ROWS], of [B, M, P]
    symbol = (stream * M + group) * D * P + position
    k = tl.arange(0, COLUMNS)
    logit, coded = tile_logits(
        codewords, log_weights, precision, limit, offset, scale, symbol, group, valid, k[None, :], P, K, D, STATIC
    )
    return cell, valid, coded, tile_frequencies(logit, k[None, :], cutoff, ROWS, COLUMNS), k


@jit
def any_coded(scale, M, P, D: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Above 0 where one of a program's symbols, neighbours of one group, is coded. Most tiles have none."""
    position = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    symbol = (tl.program_id(2).to(tl.int64) * M + tl.program_id(1).to(tl.int64)) * D * P + position
    index = tl.zeros([ROWS], tl.int32)
    for j in range(D):
        index = index | tl.load(scale + symbol + j * P, mask=position < P, other=0).to(tl.int32)
    return tl.max(index, 0)


@jit
def _frequencies_kernel(  # type: ignore[no-untyped-def]
    codewords, log_weights, precision, limit, cutoff, offset, scale, codes, start, freq, M, P, K: tl.constexpr,
    D: tl.constexpr, STATIC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):
    if any_coded(scale, M, P, D, ROWS) > 0:
        cell, valid, coded, row, k = _tile_rows(
            codewords, log_weights, precision, limit, cutoff, offset, scale, M, P, K, D, STATIC, ROWS, COLUMNS
        )
        code = tl.load(codes + cell, mask=valid, other=0).to(tl.int32)
        below = tl.sum(tl.where(k[None, :] < code[:, None], row, 0), 1)
        here = tl.sum(tl.where(k[None, :] == code[:, None], row, 0), 1)
        tl.store(start + cell, tl.where(coded, below, 0).to(tl.int32), mask=valid)
        tl.store(freq + cell, tl.where(coded, here, 0).to(tl.int32), mask=valid)


@jit
def _rows_kernel(  # type: ignore[no-untyped-def]
    codewords, log_weights, precision, limit, cutoff, offset, scale, rows, M, P, K: tl.constexpr, D: tl.constexpr,
    STATIC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):
    cell, valid, _, row, k = _tile_rows(
        codewords, log_weights, precision, limit, cutoff, offset, scale, M, P, K, D, STATIC, ROWS, COLUMNS
    )
    tl.store(rows + cell[:, None] * K + k[None, :], row, mask=valid[:, None] & (k[None, :] < K))


@jit
def _starts_kernel(  # type: ignore[no-untyped-def]
    codewords, log_weights, precision, limit, cutoff, offset, scale, order, counts, out, first, chunk, N, P,
    K: tl.constexpr, D: tl.constexpr, STATIC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):
    stream = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = (i < chunk) & (first + i < tl.load(counts + stream))
    if tl.program_id(0) * ROWS + first < tl.load(counts + stream):
        symbol = tl.load(order + stream * N + first + i, mask=valid, other=0)
        group = (symbol // P).to(tl.int64)
        k = tl.arange(0, COLUMNS)[None, :]
        component = (stream * N + group * P) * D + symbol % P
        logit, _ = tile_logits(
            codewords, log_weights, precision, limit, offset, scale, component, group[:, None], valid,
            tl.broadcast_to(k, (ROWS, COLUMNS)), P, K, D, STATIC,
        )
        freq = tile_frequencies(logit, k, cutoff, ROWS, COLUMNS)
        begin = tl.cumsum(freq, 1) - freq
        entry = tl.where((k < K) & (begin < 65536), (begin << 16) | k, 0)
        tl.store(out + (stream * chunk + i)[:, None] * COLUMNS + k, entry, mask=valid[:, None])


def _launch(
    kernel: object, tables: MixtureTables, offset: Tensor | None, scale: Tensor | None, grid: torch.Size,
    out: tuple[Tensor, ...],
) -> None:
    """A kernel over all symbols of `grid` `[B, M, P]`, `ROWS` of them per program, each with its whole row."""
    batch, groups, positions = grid
    _, size, dimension = tables.shape
    width = columns(size)
    rows = min(tile_rows(width), triton.next_power_of_2(max(positions, 1)))
    unused = tables.precision  # a static prior reads neither
    context = (unused, unused) if offset is None or scale is None else (offset.contiguous(), scale.contiguous())
    launch(
        kernel, (-(-positions // rows), groups, batch), tables.codewords, tables.log_weights, tables.precision,
        tables.limit, tables.cutoff, *context, *out, groups, positions, K=size, D=dimension, STATIC=offset is None,
        ROWS=rows, COLUMNS=width, num_warps=warps(rows * width),
    )


def row_starts(
    tables: MixtureTables, offset: Tensor | None, scale: Tensor | None, order: Tensor, count: Tensor, positions: int,
    first: int, out: Tensor,
) -> None:
    """What a decoder's search reads, for the symbols of numbers `first` on in coding order; Triton only.

    order int32 `[B, N]` and count int64 `[B]` as `mcodec.kernels.rans.coded_order` gives them, of stages `[B, M, P]`;
    P is `positions`. out int32 `[B, C, columns(K)]` takes those of C symbols of every stream: of codeword k the start
    of its interval, times 2^16, plus k; 0 beyond K - 1, and where an interval would start at 2^16, being empty. Rows
    beyond the count stay as they are.
    """
    _, size, dimension = tables.shape
    batch, chunk, width = out.shape
    rows = min(tile_rows(width), triton.next_power_of_2(chunk))
    unused = tables.precision  # a static prior reads neither
    context = (unused, unused) if offset is None or scale is None else (offset, scale)
    launch(
        _starts_kernel, (-(-chunk // rows), batch), tables.codewords, tables.log_weights, tables.precision,
        tables.limit, tables.cutoff, *context, order, count, out, first, chunk, order.shape[1], positions, K=size,
        D=dimension, STATIC=offset is None, ROWS=rows, COLUMNS=width, num_warps=warps(rows * width),
    )


def columns(size: int) -> int:
    """Width of a tile that holds rows of so many codewords: a power of two."""
    return max(64, int(triton.next_power_of_2(size)))


# ---- dispatchers -------------------------------------------------------------------------------------------------


def mixture_rows(tables: MixtureTables, offset: Tensor | None, scale: Tensor | None) -> Tensor:
    """Full frequency rows, int32 `[B, M, P, K]`, each of sum 2^16; `[1, M, 1, K]` of a static prior.

    offset int16 `[B, M, d, P]`, 1/16 step; scale uint8 `[B, M, d, P]`; both None for a static prior. Skipped symbols
    have a row too. For tests and tables: coders never store rows. Bit-exact.
    """
    if not use_triton(tables.codewords.device):
        return mixture_rows_reference(tables, offset, scale)
    groups, size, _ = tables.shape
    grid = torch.Size((1, groups, 1)) if offset is None else torch.Size((len(offset), groups, offset.shape[3]))
    rows = torch.empty((*grid, size), dtype=torch.int32, device=tables.codewords.device)
    _launch(_rows_kernel, tables, offset, scale, grid, (rows,))
    return rows


def mixture_frequencies(
    tables: MixtureTables, offset: Tensor | None, scale: Tensor | None, codes: Tensor
) -> tuple[Tensor, Tensor]:
    """Intervals of the coded symbols: (start, freq), int32 `[B, M, P]`; 0 and 0 where a symbol is skipped.

    offset and scale as in `mixture_rows`; codes `[B, M, P]` integers in 0..K-1. Bit-exact. Reads 3 d + 4 bytes and
    writes 8 per symbol; the work is K (6 d + 25) operations on 32-bit integers.
    """
    if not use_triton(tables.codewords.device):
        return mixture_frequencies_reference(tables, offset, scale, codes)
    if offset is None or scale is None:
        return _intervals(mixture_rows(tables, None, None), codes)  # one row for all positions
    # what the kernel leaves out is skipped
    start, freq = (torch.zeros(codes.shape, dtype=torch.int32, device=codes.device) for _ in range(2))
    _launch(_frequencies_kernel, tables, offset, scale, codes.shape, (codes.contiguous(), start, freq))
    return start, freq
