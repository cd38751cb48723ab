"""Entropy coding in numpy: the reference for every other backend, and the fallback where `_rans` is missing.

The functions take arrays that `mcodec.entropy.coder` has checked: C-contiguous, with the types, shapes and
ranges that its docstrings give. `offset` and `scale` are both None for a static prior.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Int16 = NDArray[np.int16]
Int32 = NDArray[np.int32]
UInt8 = NDArray[np.uint8]
UInt16 = NDArray[np.uint16]
UInt32 = NDArray[np.uint32]
UInt64 = NDArray[np.uint64]
Float32 = NDArray[np.float32]

#: Sum of a frequency row.
TOTAL = 1 << 16
#: Lower end of a coder's state, where every lane starts; the upper end is 2^48.
LOWEST = 1 << 32
#: Bytes of a state in a stream.
STATE_BYTES = 6

# Entries of a row that are held at once: a few arrays of 1 MiB each stay in the cache.
_CHUNK = 1 << 18


def coded_symbols(scale: UInt8 | None, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which symbols of a stage are coded, `[M, P]`: those with a scale index that is not 0."""
    if scale is None:
        return np.ones(shape, np.bool_)
    return np.asarray(scale.any(1), np.bool_)


def logits(
    codewords: Int16,
    log_weights: Int16,
    precision: Int32,
    offset: Int16 | None,
    scale: UInt8 | None,
    group: int,
    positions: NDArray[np.intp],
) -> Int32:
    """Logits of one sub-codebook at `positions` `[n]` -> int32 `[n, K]`, 1/64 bit."""
    base = log_weights[group].astype(np.int32)
    if offset is None or scale is None:
        return np.broadcast_to(base, (len(positions), len(base)))
    cost = np.zeros((len(positions), len(base)), np.int32)
    dimension = codewords.shape[2]
    for j in range(dimension):
        a = precision[scale[group, j, positions]][:, None]
        limit = (2**31 - 1) // (dimension * a)
        difference = codewords[group, :, j].astype(np.int32) - offset[group, j, positions, None]
        cost += a * np.minimum(difference * difference, limit)
    # (cost + 512) >> 10, in a form that cannot overflow: cost may be 2^31 - 1
    logit: Int32 = base - (((cost >> 9) + 1) >> 1)
    return logit


def rows(logit: Int32, cutoff: int) -> UInt32:
    """Frequencies of logits `[n, K]` -> uint32 `[n, K]`: each row's sum is 2^16.

    0 for codewords whose logit is `cutoff` or more below the largest, but for the first two; at least 1 for the others.
    """
    f = logit.max(1, keepdims=True) - logit
    near = f < cutoff
    near[:, :2] = True
    t = f & 63
    p = 32768 - ((21997 * t) >> 6) + ((5613 * t * t) >> 12)  # 2^(-t/64) within 0.3 %
    w = (p >> np.minimum(f >> 6, 16)).astype(np.uint64)
    inverse = (TOTAL - near.sum(1, keepdims=True, dtype=np.uint64) << np.uint64(31)) // w.sum(1, keepdims=True)
    freq: UInt32 = (near + ((w * inverse) >> np.uint64(31))).astype(np.uint32)
    # argmin: the lowest k with f = 0
    freq[np.arange(len(freq)), f.argmin(1)] += (TOTAL - freq.sum(1)).astype(np.uint32)
    return freq


def _chunks(coded: NDArray[np.bool_], size: int) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """(group, positions) of the coded symbols in coding order, at most `_CHUNK` row entries at a time."""
    step = max(1, _CHUNK // size)
    for group, row in enumerate(coded):
        positions = np.flatnonzero(row)
        for first in range(0, len(positions), step):
            yield group, positions[first : first + step]


def intervals(
    codewords: Int16,
    log_weights: Int16,
    precision: Int32,
    cutoff: int,
    offset: Int16 | None,
    scale: UInt8 | None,
    codes: Int32,
    start: UInt16,
    freq: UInt16,
) -> None:
    """Writes the interval of each coded symbol to `start` and `freq` `[N]`, in coding order.

    ValueError for a code without a frequency.
    """
    coded = coded_symbols(scale, codes.shape)
    done = 0
    for group, positions in _chunks(coded, codewords.shape[1]):
        row = rows(logits(codewords, log_weights, precision, offset, scale, group, positions), cutoff)
        symbol = np.arange(len(positions)), codes[group, positions]
        part = slice(done, done + len(positions))
        freq[part] = row[symbol]
        start[part] = row.cumsum(1, dtype=np.uint32)[symbol] - row[symbol]
        done = part.stop
    if not freq.all():
        raise ValueError("codes: one has no frequency")


def rans_encode(start: UInt16, freq: UInt16, counts: NDArray[np.int64], lanes: int) -> bytes:
    """Intervals of all stages, `counts` symbols each -> `lanes` states (6 bytes each), then the words (uint16)."""
    states = [LOWEST] * lanes
    words: list[int] = []
    ends = counts.cumsum().tolist()
    for count, end in zip(reversed(counts.tolist()), reversed(ends), strict=True):
        first = end - count
        symbols = zip(start[first:end].tolist(), freq[first:end].tolist(), strict=True)
        for i, (s, f) in zip(range(count - 1, -1, -1), reversed(list(symbols)), strict=True):
            x = states[i % lanes]
            if x >= f << 32:
                words.append(x & 0xFFFF)
                x >>= 16
            states[i % lanes] = (x // f << 16) + x % f + s
    head = b"".join(x.to_bytes(STATE_BYTES, "little") for x in states)
    return head + np.array(words[::-1], "<u2").tobytes()


def decode_stage(
    codewords: Int16,
    log_weights: Int16,
    precision: Int32,
    cutoff: int,
    offset: Int16 | None,
    scale: UInt8 | None,
    words: UInt8,
    states: UInt64,
    position: int,
    codes: Int32,
) -> int:
    """Decodes one stage into `codes` `[M, P]` and `states` `[L]`, from word number `position` on.

    The number of the next word, or -1 where `words` (bytes) ended early: the arrays are then undefined.
    """
    data = words[: len(words) // 2 * 2].view("<u2")
    lanes = len(states)
    codes[:] = 0
    i = 0
    for group, positions in _chunks(coded_symbols(scale, codes.shape), codewords.shape[1]):
        row = rows(logits(codewords, log_weights, precision, offset, scale, group, positions), cutoff)
        ends = row.cumsum(1, dtype=np.uint32)
        for n, at in enumerate(positions):
            x = int(states[i % lanes])
            slot = x & 0xFFFF
            k = int(ends[n].searchsorted(slot, "right"))
            freq = int(row[n, k])
            x = freq * (x >> 16) + slot - (int(ends[n, k]) - freq)
            if x < LOWEST:
                if position == len(data):
                    return -1
                x = x << 16 | int(data[position])
                position += 1
            states[i % lanes] = x
            codes[group, at] = k
            i += 1
    return position


def assign(
    codewords: Int16,
    log_weights: Int16,
    precision: Int32,
    cutoff: int,
    offset: Int16 | None,
    scale: UInt8 | None,
    latents: Float32,
    points: Float32,
    beta: float,
    codes: Int32,
) -> None:
    """Writes argmin_k beta * |v - points_k|^2 - ln p_k to `codes` `[M, P]`; 0 for skipped symbols.

    Of codewords that have a frequency.
    """
    codes[:] = 0
    nats = np.float32(np.log(2) / 64)
    for group, positions in _chunks(coded_symbols(scale, codes.shape), codewords.shape[1]):
        logit = logits(codewords, log_weights, precision, offset, scale, group, positions)
        distance = np.zeros(logit.shape, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # latents far beyond any codeword
            for v, point in zip(latents[group][:, positions], points[group].T, strict=True):
                distance += np.square(v[:, None] - point)
            objective = np.float32(beta) * distance - nats * logit.astype(np.float32)
        far = logit.max(1, keepdims=True) - logit >= cutoff
        far[:, :2] = False
        objective[far] = np.inf
        codes[group, positions] = objective.argmin(1)
