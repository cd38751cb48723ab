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

from mcodec.kernels.backend import jit, launch, tl, upload, use_triton
from mcodec.kernels.mixture_frequencies import (
    MixtureTables,
    columns,
    row_starts,
    rows_of,
    skipped,
)

#: Lower end of a state, where every lane starts; the upper end is 2^48.
LOWEST = 1 << 32
#: Bytes of the rows that wait for a decoder, at most (one step's at least): enough for a thousand steps of 64 streams,
#: which take longer than the launch of their kernels.
ROW_BYTES = 1 << 28
#: Codewords of all lanes that a decoding step compares at once, in registers: whole rows for so many lanes at most, or
#: every 32nd codeword, and then the 32 from there on. Where these are too many it searches by halves.
SCANNED, WHOLE = 1 << 13, 8


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

    def part(self, streams: slice) -> RansStreams:
        """Some of the streams; they advance in these tensors."""
        of_all = self.words, self.limits, self.lanes, self.states, self.position
        return RansStreams(*(values[streams] for values in of_all))


def running(flags: Tensor) -> Tensor:
    """Inclusive sums along the rows of flags `[B, N]`, int64, in one scan: a GPU gives each of a few rows one block."""
    total = flags.flatten().cumsum(0).view(flags.shape)
    return total - (total[:, :1] - flags[:, :1].long())


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
    order.scatter_(1, torch.where(coded, running(coded) - 1, size), every)
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
    start, freq, inverse, counts, firsts, lanes, states, words, N, STAGES, MAX_LANES, LANES: tl.constexpr,
):
    stream = tl.program_id(1).to(tl.int64)
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    count_lanes = tl.load(lanes + stream).to(tl.int32)
    x = tl.full([LANES], 1 << 32, tl.int64)
    for back in range(STAGES):
        stage = STAGES - 1 - back
        first = stream * N + tl.load(firsts + stage)
        count = tl.load(counts + stream * STAGES + stage).to(tl.int32)
        i = ((count + count_lanes - 1) // count_lanes - 1) * count_lanes + lane
        active = (lane < count_lanes) & (i >= 0) & (i < count)
        f = tl.load(freq + first + i, mask=active, other=1).to(tl.int64)
        s = tl.load(start + first + i, mask=active, other=0).to(tl.int64)
        r = tl.load(inverse + first + i, mask=active, other=0).to(tl.uint64)
        for _ in range((count + count_lanes - 1) // count_lanes):
            # the next symbol, while this one is computed
            j = i - count_lanes
            follows = (lane < count_lanes) & (j >= 0)
            next_f = tl.load(freq + first + j, mask=follows, other=1).to(tl.int64)
            next_s = tl.load(start + first + j, mask=follows, other=0).to(tl.int64)
            next_r = tl.load(inverse + first + j, mask=follows, other=0).to(tl.uint64)
            put = active & (x >= (f << 32))
            tl.store(words + first + i, tl.where(put, (x & 0xFFFF).to(tl.int32), -1), mask=active)
            y = tl.where(put, x >> 16, x)
            quotient = tl.where(f == 1, y, tl.umulhi(y.to(tl.uint64), r).to(tl.int64))
            x = tl.where(active, y + quotient * (65536 - f) + s, x)  # the quotient << 16, the remainder, the start
            i, active, f, s, r = j, follows, next_f, next_s, next_r
    tl.store(states + stream * MAX_LANES + lane, x, mask=lane < MAX_LANES)


@jit
def _fetch(  # type: ignore[no-untyped-def]
    table, order, step, count_lanes, first, last, lane, P, STATIC: tl.constexpr, SEARCH: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """What a step reads that no state decides: (symbols, row addresses, active) `[L, 1]`, rows as tiles `[L, WIDTH]`.

    A tile gives a thread four codewords: the compiler then spreads lanes, and no more of a row than has to be, over
    the warps, and a search stays within a warp.

    SEARCH: 2, by whole rows; 1, by every 32nd codeword; 0, by halves.
    """
    WIDTH: tl.constexpr = COLUMNS // min(8, max(1, COLUMNS // 128))
    i = first + step * count_lanes + lane
    active = (lane < count_lanes) & (i < last)
    symbol = tl.load(order + i, mask=active, other=0)
    row = tl.minimum(i, last - 1)  # what is idle reads some row
    if STATIC:  # noqa: SIM108 - a branch at compile time
        row = row // P
    else:
        row = row - first
    row = table + row * COLUMNS
    entries = ()
    if SEARCH == 1:
        heads = tl.load(row + 32 * tl.arange(0, COLUMNS // 32)[None, :])
        entries = entries + (heads,)  # type: ignore[assignment]  # noqa: RUF005
    if SEARCH == 2:
        for tile in tl.static_range(COLUMNS // WIDTH):
            loaded = tl.load(row + tile * WIDTH + tl.arange(0, WIDTH)[None, :])
            entries = entries + (loaded,)  # type: ignore[assignment]  # noqa: RUF005 - Triton unpacks into no tuple
    return symbol, row, active, entries


@jit
def _step(  # type: ignore[no-untyped-def]
    fetched, x, read, lane, words, end, codes, K: tl.constexpr, SEARCH: tl.constexpr, LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Decodes one symbol of every lane: (states, words read) after it; x int64 `[L, 1]`."""
    symbol, row, active, entries = fetched
    if LANES == 1:
        at = read + tl.zeros_like(symbol)
        word = tl.load(words + at, mask=at < end, other=0)  # before it is known whether it is needed
    slot = (x & 0xFFFF).to(tl.uint32)
    beyond = (slot + 1) << 16  # entries below: starts of at most the slot; 0 for the last slot, where all are
    if SEARCH > 0:
        # less `beyond` in 32 bits, what is below wraps around to the top: the largest is the symbol's own entry, the
        # smallest the next one's, or that of codeword 0, whose start 0 then stands for 2^16
        largest = entries[0].to(tl.uint32) - beyond
        smallest = largest
        for tile in tl.static_range(1, len(entries)):
            wrapped = entries[tile].to(tl.uint32) - beyond
            largest = tl.maximum(largest, wrapped)
            smallest = tl.minimum(smallest, wrapped)
        here = tl.max(largest, 1)[:, None] + beyond
        least = tl.min(smallest, 1)[:, None]
        if SEARCH == 1:
            # the symbol's own entry is among the 32 from this one on; the next one's, too, or it is the next head
            k = (here & 0xFFFF).to(tl.int32)
            near = tl.load(row + k + tl.arange(0, 32)[None, :]).to(tl.uint32) - beyond
            here = tl.max(near, 1)[:, None] + beyond
            least = tl.minimum(least, tl.min(near, 1)[:, None])
        after = least + beyond
    else:
        k = tl.zeros_like(symbol)
        half = COLUMNS // 2
        while half > 0:
            start = tl.load(row + k + half, mask=k + half < K, other=-1).to(tl.uint32) >> 16
            # a start of 0 stands for 2^16: codeword 0 has a frequency, and is not asked for here
            k += tl.where((k + half < K) & (((start + 0xFFFF) & 0xFFFF) < slot), half, 0)
            half = half // 2
        here = tl.load(row + k).to(tl.uint32)
        after = tl.load(row + k + 1, mask=k + 1 < K, other=0).to(tl.uint32)
    begin = here >> 16
    f = (((after >> 16) + 0xFFFF) & 0xFFFF) + 1 - begin
    tl.store(codes + symbol, (here & 0xFFFF).to(tl.int32), mask=active)
    y = f.to(tl.uint64) * (x >> 16).to(tl.uint32).to(tl.uint64) + (slot - begin).to(tl.uint64)
    y = y.to(tl.int64)
    short = active & (y < (1 << 32))
    if LANES == 1:
        read += tl.sum(tl.sum(short.to(tl.int32), 1), 0)
    else:
        if LANES <= 8:
            # a prefix sum by one sum: four bits per lane, in which it and the lanes below it count
            shift = (4 * lane).to(tl.uint32)
            taken = tl.sum(tl.sum(tl.where(short, tl.full(short.shape, 0x11111111, tl.uint32) << shift, 0), 1), 0)
            total = taken >> 28
            at = read + ((taken >> shift) & 15).to(tl.int32) - 1
        else:
            flat = tl.reshape(short.to(tl.int32), (LANES,))
            at = read + tl.reshape(tl.cumsum(flat, 0), (LANES, 1)) - 1
            total = tl.sum(flat, 0)
        word = tl.load(words + at, mask=short & (at < end), other=0)
        read += total.to(tl.int32)
    y = tl.where(short, (y << 16) | word.to(tl.int64), y)
    return tl.where(active, y, x), read


@jit
def _decode_kernel(  # type: ignore[no-untyped-def]
    table, order, counts, words, limits, lanes, states, positions, codes, first, chunk, N, P, W, MAX_LANES,
    K: tl.constexpr, STATIC: tl.constexpr, SEARCH: tl.constexpr, LANES: tl.constexpr, COLUMNS: tl.constexpr,
):
    stream = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)[:, None]
    count_lanes = tl.load(lanes + stream).to(tl.int32)
    last = tl.minimum(tl.load(counts + stream).to(tl.int32), first + chunk)
    if first < last:
        if not STATIC:
            table += stream * chunk * COLUMNS
        order += stream * N
        codes += stream * N
        words += stream * W
        end = tl.load(limits + stream).to(tl.int32)
        read = tl.load(positions + stream).to(tl.int32)
        place = states + stream * MAX_LANES + lane
        x = tl.load(place)
        steps = (last - first + count_lanes - 1) // count_lanes
        # rows of four steps: each is asked for as soon as the registers of one before it are free
        a = _fetch(table, order, 0, count_lanes, first, last, lane, P, STATIC, SEARCH, COLUMNS)
        b = _fetch(table, order, 1, count_lanes, first, last, lane, P, STATIC, SEARCH, COLUMNS)
        c = _fetch(table, order, 2, count_lanes, first, last, lane, P, STATIC, SEARCH, COLUMNS)
        d = _fetch(table, order, 3, count_lanes, first, last, lane, P, STATIC, SEARCH, COLUMNS)
        for step in range(0, steps, 4):
            x, read = _step(a, x, read, lane, words, end, codes, K, SEARCH, LANES, COLUMNS)
            a = _fetch(table, order, step + 4, count_lanes, first, last, lane, P, STATIC, SEARCH, COLUMNS)
            x, read = _step(b, x, read, lane, words, end, codes, K, SEARCH, LANES, COLUMNS)
            b = _fetch(table, order, step + 5, count_lanes, first, last, lane, P, STATIC, SEARCH, COLUMNS)
            x, read = _step(c, x, read, lane, words, end, codes, K, SEARCH, LANES, COLUMNS)
            c = _fetch(table, order, step + 6, count_lanes, first, last, lane, P, STATIC, SEARCH, COLUMNS)
            x, read = _step(d, x, read, lane, words, end, codes, K, SEARCH, LANES, COLUMNS)
            d = _fetch(table, order, step + 7, count_lanes, first, last, lane, P, STATIC, SEARCH, COLUMNS)
        tl.store(place, x)
        tl.store(positions + stream, read.to(tl.int64))


# ---- dispatchers -------------------------------------------------------------------------------------------------


def _inverse(freq: Tensor) -> Tensor:
    """floor((2^64 - 1) / freq) + 1 mod 2^64 as int64: the high half of its product with x is x // freq.

    That product exceeds 2^64 x / freq by at most x, and x < 2^48 and freq < 2^16 make this too little to reach the
    next integer (docs/ENTROPY.md). 0 for freq = 1. What is not coded may be 0.
    """
    f = freq.clamp(min=1).long()
    half, rest = (2**63 - 1) // f, (2**63 - 1) % f
    return 2 * half + (2 * rest + 1) // f + 1  # wraps around for 1


def rans_encode(
    start: Tensor, freq: Tensor, counts: Tensor, firsts: Sequence[int], lanes: Tensor, max_lanes: int
) -> tuple[Tensor, Tensor]:
    """Intervals to states and words, without a stream's final order of words.

    start and freq int32 `[B, N]`: number i of stage s at firsts[s] + i, for i < counts[b, s]; freq from 1 to 65535,
    start + freq at most 65536. counts int64 `[B, S]`; lanes int64 `[B]`, powers of two of at most max_lanes.
    Returns (states int64 `[B, max_lanes]`, words int32 `[B, N]`): beside each symbol the word it puts, -1 for none,
    so that the words in order of address are the stream's. Bit-exact. 20 bytes per symbol; its time is that of the
    longest lane, not of the bytes.
    """
    if not use_triton(start.device):
        return rans_encode_reference(start, freq, counts, firsts, lanes, max_lanes)
    batch, size = start.shape
    states = torch.empty((batch, max_lanes), dtype=torch.int64, device=start.device)
    words = torch.full_like(start, -1)
    block = min(32, max_lanes)
    launch(
        _encode_kernel, (max_lanes // block, batch), start.contiguous(), freq.contiguous(), _inverse(freq),
        counts.contiguous(), upload(torch.tensor(firsts, dtype=torch.int64), start.device), lanes, states, words, size,
        len(firsts), max_lanes, LANES=block, num_warps=1,
    )
    return states, words


def rans_decode(
    tables: MixtureTables, offset: Tensor | None, scale: Tensor | None, shape: tuple[int, int, int],
    streams: RansStreams,
) -> Tensor:
    """Codes of the next stage of every stream, int32 `[B, M, P]`, 0 where skipped; `streams` advances.

    offset int16 and scale uint8 `[B, M, d, P]`, both None for a static prior; shape is (B, M, P). Total: whatever the
    words, codes are in 0..K-1 and no address leaves its array. Bit-exact. All of the GPU evaluates rows of the coded
    symbols in parallel and in coding order, 4 columns(K) bytes each, `ROW_BYTES` at a time; the serial part, a step
    per count / L of the longest stream, only finds intervals in them.
    """
    if not use_triton(streams.words.device):
        return rans_decode_reference(tables, offset, scale, shape, streams)
    batch, groups, positions = shape
    max_lanes, size, width = streams.states.shape[1], tables.shape[1], columns(tables.shape[1])
    static = offset is None or scale is None
    unit = max(16, max_lanes)  # whole steps; a multiple of 16 is one case for the compiler, others are another
    together = max(1, ROW_BYTES // (4 * width * unit))
    if offset is not None and scale is not None and batch > together:
        # many small streams: as many at once as have room for a step each
        found = []
        for first in range(0, batch, together):
            some = slice(first, first + together)
            part = streams.part(some)
            found.append(rans_decode(tables, offset[some], scale[some], (len(part.lanes), groups, positions), part))
        return torch.cat(found)
    order, count = coded_order(scale, shape, streams.words.device)
    codes = torch.zeros(shape, dtype=torch.int32, device=order.device)
    if codes.numel() == 0:
        return codes
    if static:
        chunk = order.shape[1]
        every = torch.arange(groups, dtype=torch.int32, device=order.device)[None]
        table = torch.empty((1, groups, width), dtype=torch.int32, device=order.device)
        row_starts(tables, None, None, every, torch.full_like(count[:1], groups), 1, 0, table)
    else:
        assert offset is not None and scale is not None
        offset, scale = offset.contiguous(), scale.contiguous()
        chunk = max(1, min(ROW_BYTES // (4 * width * batch * unit), -(-order.shape[1] // unit))) * unit
        table = torch.empty((batch, chunk, width), dtype=torch.int32, device=order.device)
    heads = width // 32
    search = 2 if max_lanes <= WHOLE and max_lanes * width <= SCANNED else int(max_lanes * heads <= SCANNED)
    # four codewords for a thread, but for many lanes
    warps = {0: max_lanes // 32, 1: min(32, max_lanes * heads // 128), 2: max_lanes * max(1, width // 1024)}[search]
    for first in range(0, order.shape[1], chunk):
        if not static:
            row_starts(tables, offset, scale, order, count, positions, first, table)
        launch(
            _decode_kernel, (batch,), table, order, count, streams.words, streams.limits, streams.lanes,
            streams.states, streams.position, codes, first, chunk, order.shape[1], positions, streams.words.shape[1],
            max_lanes, K=size, STATIC=static, SEARCH=search, LANES=max_lanes, COLUMNS=width, num_warps=max(1, warps),
        )
    return codes
