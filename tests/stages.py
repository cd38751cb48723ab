"""Stages made from a seed, and the law of docs/ENTROPY.md in Python's unbounded integers."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from mcodec.api import Codec
from mcodec.entropy import Encoder, PriorTables, frequency_rows, rans

Context = tuple[NDArray[np.int16] | None, NDArray[np.uint8] | None]
Stage = tuple[PriorTables, Context, NDArray[np.int32]]


def tables_of(codewords: Any, log_weights: Any, precision: Any = (1,), reach: int = 0) -> PriorTables:
    return PriorTables(
        np.array(codewords, np.int16), np.array(log_weights, np.int16), np.array(precision, np.int32), reach
    )


def static(log_weights: list[int], codes: list[int]) -> Stage:
    """One sub-codebook without context."""
    tables = tables_of(np.zeros((1, len(log_weights), 1)), [log_weights])
    return tables, (None, None), np.array([codes], np.int32).reshape(1, -1)


def random_stage(
    seed: int,
    groups: int,
    size: int,
    dimension: int,
    positions: int,
    skip: float = 0.3,
    spread: int = 60,
    reach: int | None = None,
) -> Stage:
    """A stage with context whose codes follow its own probabilities, nearly; the seed decides the reach."""
    rng = np.random.default_rng(seed)
    tables = tables_of(
        rng.integers(-spread, spread + 1, (groups, size, dimension)),
        rng.integers(-400, 1, (groups, size)),
        np.maximum(1, 2**14 >> np.arange(14)),
        (0, 16, 33)[seed % 3] if reach is None else reach,
    )
    offset = rng.integers(-spread, spread + 1, (groups, dimension, positions)).astype(np.int16)
    scale = rng.integers(0, 14, (groups, dimension, positions)).astype(np.uint8)
    scale.transpose(0, 2, 1)[rng.random((groups, positions)) < skip] = 0
    return tables, (offset, scale), sample(tables, (offset, scale), positions, rng)


def sample(tables: PriorTables, context: Context, positions: int, rng: np.random.Generator) -> NDArray[np.int32]:
    groups = len(tables.codewords)
    codes = np.zeros((groups, positions), np.int32)
    if positions:
        for group in range(groups):
            ends = frequency_rows(tables, *context, group, np.arange(positions)).cumsum(1)
            codes[group] = (ends <= rng.integers(0, 65536, (positions, 1))).sum(1)
    codes[~rans.coded_symbols(context[1], codes.shape)] = 0
    return codes


def slow_row(tables: PriorTables, context: Context, group: int, position: int) -> list[int]:
    """The law of docs/ENTROPY.md, word for word, in Python's unbounded integers."""
    points: list[list[int]] = tables.codewords[group].tolist()
    logits: list[int] = tables.log_weights[group].tolist()
    dimension = len(points[0])
    offset, scale = context
    if offset is not None and scale is not None:
        for k, point in enumerate(points):
            cost = 512
            for j, coordinate in enumerate(point):
                a = int(tables.precision[scale[group, j, position]])
                square = (coordinate - int(offset[group, j, position])) ** 2
                cost += a * min(square, (2**31 - 1) // (dimension * a))
            logits[k] -= cost // 1024
    f = [max(logits) - value for value in logits]
    w = []
    for value in f:
        n, t = divmod(value, 64)
        p = 32768 - 21997 * t // 64 + 5613 * t * t // 4096
        w.append(p // 2**n if n < 16 else 0)
    near = [k < 2 or not tables.reach or value < 64 * tables.reach for k, value in enumerate(f)]
    inverse = (65536 - sum(near)) * 2**31 // sum(w)
    freq = [least + value * inverse // 2**31 for least, value in zip(near, w, strict=True)]
    freq[f.index(0)] += 65536 - sum(freq)
    return freq


def slow_stream(stages: list[Stage], lanes: int) -> bytes:
    """The stream of docs/ENTROPY.md in Python's unbounded integers, from the last symbol to the first."""
    symbols = []
    for tables, context, codes in stages:
        rank = 0
        for group, position in np.ndindex(codes.shape):
            if context[1] is not None and not context[1][group, :, position].any():
                continue
            row, k = slow_row(tables, context, group, position), int(codes[group, position])
            symbols.append((rank % lanes, sum(row[:k]), row[k]))
            rank += 1
    states, words = [2**32] * lanes, b""
    for lane, start, freq in reversed(symbols):
        if states[lane] >= freq * 2**32:
            states[lane], word = divmod(states[lane], 2**16)
            words = word.to_bytes(2, "little") + words
        quotient, rest = divmod(states[lane], freq)
        states[lane] = quotient * 2**16 + start + rest
        assert 2**32 <= states[lane] < 2**48
    return bytes([lanes.bit_length() - 1]) + b"".join(x.to_bytes(6, "little") for x in states) + words


def check_assigned(
    tables: PriorTables, context: Context, latents: Any, points: Any, beta: float, codes: NDArray[Any]
) -> bool:
    """Codes `[M, P]` have the least cost of those with a frequency, to the rounding of float32.

    Returns whether any other would cost less.
    """
    coded, better = rans.coded_symbols(context[1], codes.shape), False
    assert not codes[~coded].any()
    for group, code in enumerate(codes):
        logit = rans.logits(*tables.arguments[:3], *context, group, np.arange(len(code)))
        distance = ((latents[group].T[:, None].astype(np.float64) - points[group]) ** 2).sum(2)
        every = beta * distance - logit * (math.log(2) / 64)
        far = logit.max(1, keepdims=True) - logit >= tables.cutoff
        far[:, :2] = False
        cost = np.where(far, np.inf, every)
        chosen = np.take_along_axis(cost, code[:, None].astype(np.intp), 1)[:, 0]
        assert (chosen - cost.min(1) <= 1e-4 * (1 + np.abs(chosen)))[coded[group]].all()
        better |= bool((every.min(1) < cost.min(1))[coded[group]].any())
    return better


def ideal_bits(codec: Codec, picture: NDArray[np.uint8], quality: float) -> tuple[bytes, float]:
    """The file of a picture of one tile, and the sum of -log2 of the frequencies of all its symbols."""
    bits: list[float] = []
    finish = Encoder.finish

    def spy(self: Encoder) -> bytes:
        bits.append(float(sum((16 - np.log2(freq, dtype=np.float64)).sum() for _, freq in self._parts)))
        return finish(self)

    with mock.patch.object(Encoder, "finish", spy):
        return codec.encode(picture, quality), bits[0]
