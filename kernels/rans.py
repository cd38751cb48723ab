"""Interleaved rANS on tensors: the streams of docs/ENTROPY.md, byte for byte, for a batch of tiles at once.

Symbols are taken without the skipped ones: number i of a stage belongs to lane i mod L. L may differ from stream to
stream and need not be known on the host. The encoder's lanes are independent of one another: each leaves a word or
none beside its symbol, and a sum over the symbols says where in the stream a word belongs. The decoder's lanes share
the words, so one program holds all lanes of a stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mcodec.kernels.backend import jit, launch, tl, upload, use_triton, warps
from mcodec.kernels.mixture_frequencies import (
    BLOCK,
    MixtureTables,
    row_blocks,
    rows_of,
    skipped,
    tile_logits,
    tile_scaled,
    tile_weights,
)

#: Lower end of a state, where every lane starts; the upper end is 2^48.
LOWEST = 1 << 32


@dataclass(frozen=True, eq=False)
class RansStreams:
    """A batch of streams that a decoder reads; `states` and `position` advance in place.

    words int32 `[B, W]`, 16-bit values; limits int64 `[B]`: words of each stream; lanes int64 `[B]`, a power of two
    of at most Lmax; states int64 `[B, Lmax]`; position int64 `[B]`, words read. A stream that ended early reads zeros
    and counts on: position > limits.
    """

    words: Tensor
    limits: Tensor
    lanes: Tensor
    states: Tensor
    position: Tensor


def coded_order(scale: Tensor | None, shape: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Coding order of a stage `[B, M, P]`: (order int32 `[B, M * P]`, count int64 `[B]`).

    order[b, i] is the flat index m * P + p of symbol number i for i < count[b]; what follows is 0.
    """
    batch, size = shape[0], shape[1] * shape[2]
    every = torch.arange(size, dtype=torch.int32, device=device).expand(batch, -1)
    if scale is None:
        return every.contiguous(), torch.full((batch,), size, device=device)
    coded = ~skipped(scale).flatten(1)
    order = torch.zeros((batch, size + 1), dtype=torch.int32, device=device)  # the last column takes the rest
    order.scatter_(1, torch.where(coded, coded.cumsum(1) - 1, size), every)
    return order[:, :size].contiguous(), coded.sum(1)


def rans_encode_reference(
    start: Tensor, freq: Tensor, counts: Tensor, firsts: Sequence[int], lanes: Tensor, max_lanes: int
) -> tuple[Tensor, Tensor]:
    """`rans_encode` in torch: a step takes one symbol of every lane."""
    batch, size = start.shape
    start, freq = F.pad(start, (0, 1)).long(), F.pad(freq, (0, 1)).long()  # the last column takes what is idle
    words = torch.full((batch, size + 1), -1, dtype=torch.int32, device=start.device)
    lane, states = torch.arange(max_lanes, device=start.device), lanes.new_full((batch, max_lanes), LOWEST)
    for first, count in reversed(list(zip(firsts, counts.unbind(1), strict=True))):
        for step in reversed(range(_rounds(count, lanes))):
            i = step * lanes[:, None] + lane
            active = (lane < lanes[:, None]) & (i < count[:, None])
            at = torch.where(active, first + i, size)
            f = torch.where(active, freq.gather(1, at), 1)
            put = active & (states >= f << 32)
            words.scatter_(1, at, torch.where(put, states & 0xFFFF, -1).int())
            x = torch.where(put, states >> 16, states)
            states = torch.where(active, ((x // f) << 16) + x % f + start.gather(1, at), states)
    return states, words[:, :-1]


def _rounds(count: Tensor, lanes: Tensor) -> int:
    """Steps until every lane of every stream has had its symbols."""
    return int(((count + lanes - 1) // lanes).max()) if len(count) else 0


def rans_decode_reference(
    tables: MixtureTables, offset: Tensor | None, scale: Tensor | None, shape: tuple[int, int, int],
    streams: RansStreams,
) -> Tensor:
    """`rans_decode` in torch: a step takes one symbol of every lane."""
    batch, groups, positions = shape
    size = groups * positions
    order, count = coded_order(scale, shape, streams.words.device)
    codes, order = F.pad(torch.zeros_like(order), (0, 1)), F.pad(order, (0, 1)).long()
    words = F.pad(streams.words, (0, 1)).long()  # the last column is the zero behind the end
    lanes, states = streams.lanes[:, None], streams.states
    lane = torch.arange(states.shape[1], device=states.device)
    context = [c if c is None else c.movedim(2, 3).flatten(1, 2) for c in (offset, scale)]  # [B, M * P, d]
    item = torch.arange(batch, device=states.device)[:, None]
    for step in range(_rounds(count, streams.lanes)):
        i = step * lanes + lane
        active = (lane < lanes) & (i < count[:, None])
        symbol = order.gather(1, i.clamp(max=size))
        g, index = (c if c is None else c[item, symbol] for c in context)
        ends = F.pad(rows_of(tables, symbol // positions, g, index).cumsum(2), (1, 0))
        slot = states & 0xFFFF
        code = (ends <= slot[..., None]).sum(2, keepdim=True) - 1
        lower, upper = (ends.gather(2, code + side)[..., 0] for side in (0, 1))
        x = (upper - lower) * (states >> 16) + slot - lower
        short = active & (x < LOWEST)
        at = streams.position[:, None] + short.cumsum(1) - 1
        word = words.gather(1, torch.where(short & (at < streams.limits[:, None]), at, words.shape[1] - 1))
        states.copy_(torch.where(active, torch.where(short, x << 16 | word, x), states))
        streams.position.add_(short.sum(1))
        codes.scatter_(1, torch.where(active, symbol, size), code[..., 0].int())
    return codes[:, :-1].reshape(shape)


# ---- Triton ------------------------------------------------------------------------------------------------------


@jit
def _encode_kernel(  # type: ignore[no-untyped-def]
    start, freq, counts, firsts, lanes, states, words, N, STAGES, MAX_LANES, LANES: tl.constexpr,
):
    stream = tl.program_id(1).to(tl.int64)
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    count_lanes = tl.load(lanes + stream).to(tl.int32)
    x = tl.full([LANES], 1 << 32, tl.int64)
    for back in range(STAGES):
        stage = STAGES - 1 - back
        first = stream * N + tl.load(firsts + stage)
        count = tl.load(counts + stream * STAGES + stage).to(tl.int32)
        rounds = (count + count_lanes - 1) // count_lanes
        for done in range(rounds):
            i = (rounds - 1 - done) * count_lanes + lane
            active = (lane < count_lanes) & (i < count)
            f = tl.load(freq + first + i, mask=active, other=1).to(tl.int64)
            s = tl.load(start + first + i, mask=active, other=0).to(tl.int64)
            put = active & (x >= (f << 32))
            tl.store(words + first + i, tl.where(put, (x & 0xFFFF).to(tl.int32), -1), mask=active)
            y = tl.where(put, x >> 16, x)
            # y // f by long division in 32 bits: the high part is below f << 16 (docs/ENTROPY.md)
            d = f.to(tl.uint32)
            high = (y >> 16).to(tl.uint32)
            low = ((high % d) << 16) | (y & 0xFFFF).to(tl.uint32)
            quotient = ((high // d).to(tl.int64) << 16) + (low // d).to(tl.int64)
            y = (quotient << 16) + (low % d).to(tl.int64) + s
            x = tl.where(active, y, x)
    tl.store(states + stream * MAX_LANES + lane, x, mask=lane < MAX_LANES)


@jit
def _decode_kernel(  # type: ignore[no-untyped-def]
    codewords, log_weights, precision, limit, offset, scale, heads, starts, order, counts, words, limits, lanes,
    states, positions, codes, N, P, W, MAX_LANES, K: tl.constexpr, D: tl.constexpr, STATIC: tl.constexpr,
    LANES: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):
    stream = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    block = tl.arange(0, BLOCKS)
    within = tl.arange(0, BLOCK)
    count_lanes = tl.load(lanes + stream).to(tl.int32)
    count = tl.load(counts + stream).to(tl.int32)
    words += stream * W
    end = tl.load(limits + stream)
    read = tl.load(positions + stream)
    x = tl.load(states + stream * MAX_LANES + lane, mask=lane < MAX_LANES, other=1 << 32)
    for step in range((count + count_lanes - 1) // count_lanes):
        i = step * count_lanes + lane
        active = (lane < count_lanes) & (i < count)
        symbol = tl.load(order + stream * N + i, mask=active, other=0)
        group = symbol // P
        if STATIC:  # noqa: SIM108 - a branch at compile time
            row = group.to(tl.int64)
        else:
            row = stream * N + symbol
        slot = (x & 0xFFFF).to(tl.int32)

        # the block of 64 codewords, from its start
        begin = tl.load(starts + row[:, None] * BLOCKS + block[None, :])
        passed = begin <= slot[:, None]
        first = (tl.sum(passed.to(tl.int32), 1) - 1) * BLOCK
        begin = tl.max(tl.where(passed, begin, 0), 1)

        # the row, evaluated again within the block
        k = first[:, None] + within[None, :]
        component = (stream * N + group.to(tl.int64) * P) * D + symbol % P
        logit, _ = tile_logits(
            codewords, log_weights, precision, limit, offset, scale, component, group.to(tl.int64)[:, None], active, k,
            P, K, D, STATIC,
        )
        largest = tl.load(heads + row * 5)
        high = tl.load(heads + row * 5 + 1)
        low = tl.load(heads + row * 5 + 2)
        top = tl.load(heads + row * 5 + 3)
        rest = tl.load(heads + row * 5 + 4)
        freq = tile_scaled(tile_weights(largest[:, None] - logit), high[:, None], low[:, None])
        freq = tl.where(k < K, freq, 0) + tl.where(k == top[:, None], rest[:, None], 0)
        ends = begin[:, None] + tl.cumsum(freq, 1)
        passed = ends <= slot[:, None]
        here = tl.sum(passed.to(tl.int32), 1)
        begin = tl.max(tl.where(passed, ends, begin[:, None]), 1)
        f = tl.sum(tl.where(within[None, :] == here[:, None], freq, 0), 1)
        tl.store(codes + stream * N + symbol, first + here, mask=active)

        y = f.to(tl.int64) * (x >> 16) + (slot - begin)
        short = active & (y < (1 << 32))
        taken = tl.cumsum(short.to(tl.int32), 0)
        at = read + taken - 1
        word = tl.load(words + at, mask=short & (at < end), other=0).to(tl.int64)
        y = tl.where(short, (y << 16) | word, y)
        x = tl.where(active, y, x)
        read += tl.sum(short.to(tl.int32), 0)
    tl.store(states + stream * MAX_LANES + lane, x, mask=lane < MAX_LANES)
    tl.store(positions + stream, read)


# ---- dispatchers -------------------------------------------------------------------------------------------------


def rans_encode(
    start: Tensor, freq: Tensor, counts: Tensor, firsts: Sequence[int], lanes: Tensor, max_lanes: int
) -> tuple[Tensor, Tensor]:
    """Intervals to states and words, without a stream's final order of words.

    start and freq int32 `[B, N]`: number i of stage s at firsts[s] + i, for i < counts[b, s]; freq from 1 to 65535,
    start + freq at most 65536. counts int64 `[B, S]`; lanes int64 `[B]`, powers of two of at most max_lanes.
    Returns (states int64 `[B, max_lanes]`, words int32 `[B, N]`): beside each symbol the word it puts, -1 for none,
    so that the words in order of address are the stream's. Bit-exact. 12 bytes per symbol; its time is that of the
    longest lane, not of the bytes: with few lanes and one stream a CPU is faster.
    """
    if not use_triton(start.device):
        return rans_encode_reference(start, freq, counts, firsts, lanes, max_lanes)
    batch, size = start.shape
    states = torch.empty((batch, max_lanes), dtype=torch.int64, device=start.device)
    words = torch.full_like(start, -1)
    block = min(32, max_lanes)
    launch(
        _encode_kernel, (max_lanes // block, batch), start.contiguous(), freq.contiguous(), counts.contiguous(),
        upload(torch.tensor(firsts, dtype=torch.int64), start.device), lanes, states, words, size, len(firsts),
        max_lanes, LANES=block, num_warps=1,
    )
    return states, words


def rans_decode(
    tables: MixtureTables, offset: Tensor | None, scale: Tensor | None, shape: tuple[int, int, int],
    streams: RansStreams,
) -> Tensor:
    """Codes of the next stage of every stream, int32 `[B, M, P]`, 0 where skipped; `streams` advances.

    offset int16 and scale uint8 `[B, M, d, P]`, both None for a static prior; shape is (B, M, P). Total: whatever the
    words, codes are in 0..K-1 and no address leaves its array. Bit-exact. The row is evaluated twice, by all of the
    GPU for its scale and the starts of its blocks of 64 codewords, and within one block where the symbol is decoded;
    the second part takes the time of the longest stream's count / L steps.
    """
    if not use_triton(streams.words.device):
        return rans_decode_reference(tables, offset, scale, shape, streams)
    batch, groups, positions = shape
    order, count = coded_order(scale, shape, streams.words.device)
    codes = torch.zeros(shape, dtype=torch.int32, device=order.device)
    if codes.numel() == 0:
        return codes
    heads, starts = row_blocks(tables, offset, scale)
    unused = tables.precision  # a static prior reads neither
    context = (unused, unused) if offset is None or scale is None else (offset.contiguous(), scale.contiguous())
    max_lanes = streams.states.shape[1]
    _, size, dimension = tables.shape
    launch(
        _decode_kernel, (batch,), tables.codewords, tables.log_weights, tables.precision, tables.limit, *context, heads,
        starts, order, count, streams.words, streams.limits, streams.lanes, streams.states, streams.position, codes,
        groups * positions, positions, streams.words.shape[1], max_lanes, K=size, D=dimension, STATIC=offset is None,
        LANES=max_lanes, BLOCKS=starts.shape[3], BLOCK=BLOCK, num_warps=warps(max_lanes * BLOCK),
    )
    return codes
