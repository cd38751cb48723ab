"""The entropy coder: literal streams, an independent oracle, both backends against each other, hostile bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from stages import Context, Stage, check_assigned, random_stage, sample, slow_row, slow_stream, static, tables_of

from mcodec.entropy import (
    Decoder,
    Encoder,
    PriorTables,
    assign,
    backend,
    coder,
    frequency_rows,
    intervals,
    lanes_for,
    rans,
)
from mcodec.errors import CorruptStream

COMPILED = pytest.mark.skipif(coder._extension is None, reason="the compiled entropy coder was not built")
BACKENDS = [pytest.param("c", marks=COMPILED), "numpy"]


def using(name: str) -> AbstractContextManager[Any]:
    return mock.patch.dict(os.environ, {"MCODEC_ENTROPY": name})


@pytest.fixture(params=BACKENDS)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both backends, one after the other."""
    with using(request.param):
        assert backend() == request.param
        yield request.param


def encode(stages: list[Stage], lanes: int | None = None) -> bytes:
    encoder = Encoder()
    for tables, context, codes in stages:
        encoder.add_stage(tables, *context, codes)
    with mock.patch.object(coder, "lanes_for", lambda n, share: lanes or lanes_for(n, share)):
        return encoder.finish()


def decode(data: bytes, stages: list[Stage]) -> list[NDArray[np.int32]]:
    decoder = Decoder(data)
    found = [
        decoder.decode_stage(tables, *context, (codes.shape[0], codes.shape[1])) for tables, context, codes in stages
    ]
    decoder.finish()
    return found


def ideal_bits(stages: list[Stage]) -> float:
    freqs = [intervals(tables, *context, codes)[1] for tables, context, codes in stages]
    return float(sum((16 - np.log2(freq, dtype=np.float64)).sum() for freq in freqs))


# ------------------------------------------------------------------------------------------------ literal streams

UNIFORM8 = [0] * 8
SHARP = [0, -32768, -32768, -32768]
SOME = (
    tables_of([[[-16, 0], [0, 0], [16, 0], [0, 16]]], [[-64, 0, -64, -100]], [1, 64, 4096]),
    (
        np.array([[[0, 5, -8, 100], [3, -3, 0, 0]]], np.int16),
        np.array([[[0, 1, 2, 2], [0, 0, 1, 2]]], np.uint8),
    ),
    np.array([[0, 1, 0, 2]], np.int32),
)
SKIPPED = (SOME[0], (SOME[1][0], np.zeros_like(SOME[1][1])), np.zeros((1, 4), np.int32))

# Expected bytes, in hexadecimal. A change here is a change of the format: docs/FORMAT.md has to move its version.
GOLDEN: dict[str, tuple[list[Stage], str]] = {
    "no stage": ([], "00000000000100"),
    "no symbol": ([static([0, 0], [])], "00000000000100"),
    "everything skipped": ([SKIPPED], "00000000000100"),
    "one symbol": ([static([0, 0], [1])], "00008000000200"),
    "symbol 0 of 3": ([static([0, 0, 0], [0])], "000400faff0200"),
    "symbol 1 of 3": ([static([0, 0, 0], [1])], "00575503000300"),
    "symbol 2 of 3": ([static([0, 0, 0], [2])], "00acaa03000300"),
    "all mass on the symbol": ([static(SHARP, [0] * 12)], "00be0224000100"),
    "no mass on the symbols": ([static(SHARP, [3, 1, 2])], "00ffff00000100fdfffeff0000"),
    "uniform": ([static(UNIFORM8, list(range(8)))], "00ac0f110000010060"),
    "static prior": ([static([0, -30, -200, -64, -1000], [0, 1, 0, 2, 3, 0, 4, 1, 0])], "004212e09c1e746e91"),
    "context": ([SOME], "00ae690ccc0700"),
    "two stages": ([static([0, -30, -200], [2, 0, 1]), SOME, SKIPPED], "007bf762f64602"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(engine: str, name: str) -> None:
    stages, expected = GOLDEN[name]
    data = encode(stages)
    assert data.hex() == expected == slow_stream(stages, 1).hex()
    for found, (_, _, codes) in zip(decode(data, stages), stages, strict=True):
        assert np.array_equal(found, codes)


def test_golden_lanes(engine: str) -> None:
    """Symbol i of its stage belongs to lane i % L: a stage of five, then one of three."""
    stages = [static(UNIFORM8, [7, 6, 5, 4, 3]), static([0, -30, -200], [2, 0, 1])]
    data = encode(stages, lanes=4)
    assert data.hex() == slow_stream(stages, 4).hex() == "0201f13b40000482ccb3b30e00adb646561400008000000800"
    assert [c.tolist() for c in decode(data, stages)] == [[[7, 6, 5, 4, 3]], [[2, 0, 1]]]


# ------------------------------------------------------------------------------------------------ frequency rows


@pytest.mark.parametrize("reach", [0, 16, 100])
@pytest.mark.parametrize("size,dimension", [(2, 1), (3, 2), (17, 2), (64, 3), (225, 2), (300, 5)])
def test_rows_equal_the_oracle(engine: str, size: int, dimension: int, reach: int) -> None:
    tables, context, _ = random_stage(size, 2, size, dimension, 6, skip=0, spread=200, reach=reach)
    for group in range(2):
        rows = frequency_rows(tables, *context, group)
        assert set(rows.sum(1)) == {65536} and rows[:, :2].min() >= 1 and rows.max() < 65536
        assert rows.min() >= 1 if not reach or size == 2 else size < 200 or rows.min() == 0
        assert rows.tolist() == [slow_row(tables, context, group, i) for i in range(6)]
        check_intervals(tables, context, group, 4, list(range(size)))


@pytest.mark.parametrize("precision", [1, 513, 514, 1 << 14])
@pytest.mark.parametrize("size,dimension", [(2, 1), (2, 64), (33, 2), (40, 3), (8192, 2), (8192, 3)])
def test_rows_at_the_limits(engine: str, size: int, dimension: int, precision: int) -> None:
    """Codewords, offsets, weights and precision at their bounds: no overflow anywhere."""
    rng = np.random.default_rng(size + dimension)
    codewords = rng.choice([-1023, -1022, 0, 1023], (1, size, dimension))
    codewords[0, 0], codewords[0, -1] = -1023, 1023
    tables = tables_of(codewords, rng.choice([-32768, 0, 32767], (1, size)), [precision])
    offset = rng.choice([-1023, 1023], (1, dimension, 3)).astype(np.int16)
    context = offset, np.zeros((1, dimension, 3), np.uint8)
    row = slow_row(tables, context, 0, 1)
    assert frequency_rows(tables, *context, 0, [1])[0].tolist() == row
    tables = tables_of(tables.codewords, tables.log_weights, [1, precision])  # index 0 would be skipped
    context = offset, context[1] + np.uint8(1)
    check_intervals(tables, context, 0, 1, [0, 1, row.index(max(row)), size // 2, size - 1], row)


def check_intervals(
    tables: PriorTables, context: Context, group: int, position: int, codes: list[int], row: list[int] | None = None
) -> None:
    """The intervals of `codes`, all at one symbol, are those of the oracle's row."""
    assert context[0] is not None and context[1] is not None
    one = tables_of(tables.codewords[[group]], tables.log_weights[[group]], tables.precision, tables.reach)
    row = row or slow_row(tables, context, group, position)
    if not context[1][group, :, position].any():
        return

    def found(codes: list[int]) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
        offset, scale = (c[[group]][..., [position] * len(codes)] for c in context if c is not None)
        return intervals(one, offset, scale, np.array([codes], np.int32))

    for k in [k for k in codes if not row[k]][:3]:
        with pytest.raises(ValueError, match="codes: "):
            found([k])
    codes = [k for k in codes if row[k]]
    start, freq = found(codes)
    assert freq.tolist() == [row[k] for k in codes]
    assert start.tolist() == [sum(row[:k]) for k in codes]


@pytest.mark.parametrize("reach", [16, 64])
@pytest.mark.parametrize("side,dimension", [(31, 2), (9, 3)])
def test_rows_of_codewords_by_distance(engine: str, side: int, dimension: int, reach: int) -> None:
    """Nearest first, as released weights have them: a coder may stop where none that follows can be reached."""
    rng = np.random.default_rng(side + reach)
    axes = np.meshgrid(*[np.arange(side) - side // 2] * dimension, indexing="ij")
    points = np.stack([axis.ravel() for axis in axes], 1)
    points = points[np.square(points).sum(1).argsort(kind="stable")] * 16 + rng.integers(-2, 3, points.shape)
    tables = tables_of([points], rng.integers(-90, 1, (1, len(points))), 2**14 // 1.3 ** np.arange(37), reach)
    offset = rng.normal(0, rng.choice([4, 40, 400], 40), (1, dimension, 40)).clip(-1023, 1023).astype(np.int16)
    scale = rng.integers(1, 37, (1, dimension, 40)).astype(np.uint8)
    context = offset, scale
    rows = frequency_rows(tables, *context, 0)
    assert rows[:, -32:].any(1).any() and not rows[:, -32:].any(1).all()
    for position, row in enumerate(rows.tolist()):
        check_intervals(tables, context, 0, position, list(range(len(points))), row)
    stage = tables, context, sample(tables, context, 40, rng)
    assert np.array_equal(decode(encode([stage]), [stage])[0], stage[2])
    latents = rng.normal(0, 4, offset.shape).astype(np.float32)
    codewords = tables.codewords.astype(np.float32) / 16
    for beta in (0.0, 1.0, 1000.0):
        check_assigned(tables, context, latents, codewords, beta, assign(tables, *context, latents, codewords, beta))


def test_the_quadratic_is_near_the_exponential() -> None:
    """Rows follow 2^(logit / 64) within 0.3 %, where a unit of frequency does not matter."""
    tables = tables_of(np.zeros((1, 8, 1)), [np.arange(8) * -13])
    row = frequency_rows(tables, None, None, 0)[0] / 65536
    exact = 2.0 ** (np.arange(8) * -13 / 64)
    assert np.abs(row / (exact / exact.sum()) - 1).max() < 0.004


# ------------------------------------------------------------------------------------------------ round trips


@pytest.mark.parametrize("decoder", BACKENDS)
@pytest.mark.parametrize("encoder", BACKENDS)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    groups=st.integers(1, 3),
    size=st.integers(2, 70),
    dimension=st.integers(1, 4),
    positions=st.integers(0, 40),
    skip=st.sampled_from([0.0, 0.5, 1.0]),
    spread=st.sampled_from([0, 10, 1023]),
    log2_lanes=st.integers(0, 5),
)
def test_round_trip(
    encoder: str,
    decoder: str,
    seed: int,
    groups: int,
    size: int,
    dimension: int,
    positions: int,
    skip: float,
    spread: int,
    log2_lanes: int,
) -> None:
    first = random_stage(seed, groups, size, dimension, positions, skip, spread)
    rng = np.random.default_rng(seed)
    prior = tables_of(rng.integers(-9, 9, (2, size, 1)), rng.integers(-32768, 32767, (2, size)))
    fixed: Stage = prior, (None, None), rng.integers(0, size, (2, positions)).astype(np.int32)
    again = random_stage(seed + 1, groups, size, dimension, positions, skip, spread)
    stages = [first, fixed, again]
    with using(encoder):
        data = encode(stages, 1 << log2_lanes)
        bits = ideal_bits(stages)
    with using(decoder):
        for found, (_, _, codes) in zip(decode(data, stages), stages, strict=True):
            assert found.dtype == np.int32 and np.array_equal(found, codes)
    symbols = sum(int(rans.coded_symbols(context[1], codes.shape).sum()) for _, context, codes in stages)
    overhead = 1 + (6 << log2_lanes)
    assert len(data) <= overhead + 2 * symbols
    assert len(data) <= overhead + (bits + symbols * 2.3e-5) / 8
    if encoder != decoder:
        with using(decoder):
            assert encode(stages, 1 << log2_lanes) == data


@pytest.mark.parametrize("bits_per_symbol,slope", [(0.06, 512), (0.5, 220), (2.5, 45), (5.0, 7)])
def test_size_is_near_the_ideal(engine: str, bits_per_symbol: float, slope: int) -> None:
    """Within 0.01 % and the lanes' bytes, and those of more than one lane are at most 0.1 %."""
    tables = tables_of(np.zeros((1, 64, 1)), [np.arange(64) * -slope])
    codes = sample(tables, (None, None), 100_003, np.random.default_rng(slope))
    stages: list[Stage] = [(tables, (None, None), codes)]
    data, bits = encode(stages), ideal_bits(stages)
    assert bits / codes.size == pytest.approx(bits_per_symbol, rel=0.1)
    lanes = 1 << data[0]
    assert bits / 8 - 2 * lanes <= len(data) - 1 - 6 * lanes <= bits / 8 * 1.0001
    assert lanes == (2 if bits_per_symbol > 1 else 1)
    assert lanes == 1 or 6 * lanes <= 0.001 * bits / 8
    assert np.array_equal(decode(data, stages)[0], stages[0][2])


@pytest.mark.parametrize(
    "loads,more,lanes",
    [(0, 0, 1), (0, 1, 1), (1, 0, 1), (2, -1, 1), (2, 0, 2), (4, -1, 2), (4, 0, 4), (1024, 0, 1024), (10**6, 0, 1024)],
)
def test_lanes_for(loads: int, more: int, lanes: int) -> None:
    assert lanes_for(loads * coder.SURPRISE_PER_LANE + more) == lanes


@pytest.mark.parametrize("share,lanes", [(0.0001, 1), (0.001, 4), (0.01, 32), (0.1, 256)])
def test_share_of_lanes(share: float, lanes: int) -> None:
    """A larger share of the bytes allows for more lanes."""
    assert lanes_for(4 * coder.SURPRISE_PER_LANE, share) == lanes


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.2, -1.0, float("nan"), float("inf")])
def test_share_of_lanes_out_of_range(share: float) -> None:
    with pytest.raises(ValueError, match="share of lanes"):
        lanes_for(1, share)


def test_words(engine: str) -> None:
    stage = random_stage(5, 2, 16, 2, 100)
    encoder = Encoder()
    encoder.add_stage(stage[0], *stage[1], stage[2])
    encoder.add_stage(stage[0], *stage[1], stage[2])
    data = encoder.finish()
    assert encoder.finish() == data
    decoder = Decoder(data)
    assert decoder.words_read == 0
    decoder.decode_stage(stage[0], *stage[1])
    middle = decoder.words_read
    decoder.decode_stage(stage[0], *stage[1])
    assert 0 < middle < decoder.words_read == (len(data) - 7) // 2
    decoder.finish()


def test_any_memory_layout(engine: str) -> None:
    """Transposed, strided and big-endian arrays are taken for their values."""
    tables, (offset, scale), codes = random_stage(6, 2, 16, 2, 50)
    expected = encode([(tables, (offset, scale), codes)])
    assert offset is not None and scale is not None
    odd: Any = np.asfortranarray(offset), np.repeat(scale, 2, 2)[..., ::2]
    assert encode([(tables, odd, codes.astype(">i4").astype(np.int32, order="F"))]) == expected
    assert np.array_equal(Decoder(expected).decode_stage(tables, *odd), codes)


# ------------------------------------------------------------------------------------------------ hostile bytes


def small() -> tuple[list[Stage], bytes]:
    stages = [static([0, -30, -200], [2, 0, 1] * 5), random_stage(7, 2, 20, 2, 40)]
    return stages, encode(stages, lanes=2)


def survives(data: bytes, stages: list[Stage]) -> bool:
    """Decodes; True where that went through with codes in range, False for CorruptStream; else it raises."""
    try:
        found = decode(data, stages)
    except CorruptStream:
        return False
    for codes, (tables, _, _) in zip(found, stages, strict=True):
        assert codes.size == 0 or (codes.min() >= 0 and codes.max() < tables.codewords.shape[1])
    return True


def test_every_truncation_is_noticed(engine: str) -> None:
    stages, data = small()
    assert survives(data, stages)
    assert not any(survives(data[:n], stages) for n in range(len(data)))
    assert not survives(data + b"\0\0", stages)
    assert not survives(data + b"\0", stages)


def test_damage_is_contained(engine: str) -> None:
    stages, data = small()
    rng = np.random.default_rng(0)
    noticed = 0
    for _ in range(300):
        damaged = bytearray(data)
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            damaged[at] ^= 1 << rng.integers(0, 8)
        noticed += not survives(bytes(damaged), stages)
    assert noticed > 250
    for _ in range(300):
        survives(bytes([rng.integers(0, 3)]) + rng.bytes(int(rng.integers(0, 200))), stages)
    survives(b"\0" + b"\xff" * 400, stages)


def test_wrong_tables_are_contained(engine: str) -> None:
    stages, data = small()
    for seed in range(20, 40):
        other = random_stage(seed, 2, 20, 2, 40)
        survives(data, [stages[0], (other[0], stages[1][1], stages[1][2])])
        assert not survives(data, [stages[0], other])


@pytest.mark.parametrize(
    "data,message",
    [
        (b"", "entropy-coded data is empty"),
        (b"\x0b" + bytes(9000), "log2 of the lane count is 11, at most 10 is allowed"),
        (b"\x00\x00\x00\x00\x00\x01", "entropy-coded data of 1 lanes cannot have 6 bytes"),
        (b"\x00\x00\x00\x00\x00\x01\x00\x07", "entropy-coded data of 1 lanes cannot have 8 bytes"),
        (b"\x00\xff\xff\xff\xff\x00\x00", "a coder state is 4294967295, at least 4294967296 is needed"),
    ],
)
def test_bad_heads(data: bytes, message: str) -> None:
    with pytest.raises(CorruptStream) as caught:
        Decoder(data)
    assert str(caught.value) == message


def test_bad_ends(engine: str) -> None:
    stages = [static(UNIFORM8, list(range(8)))]
    data = encode(stages)
    for bad, message in [
        (data + b"\0\0", "1 words are left after the last symbol"),
        (data[:-2], "entropy-coded data ended early, after 0 words"),
        (b"\x00\x07\x00\x00\x00\x01\x00", "1 of 1 coder states are wrong at the end"),
    ]:
        with pytest.raises(CorruptStream) as caught:
            decode(bad, stages if len(bad) > 7 or message.startswith("entropy") else [])
        assert str(caught.value) == message


# ------------------------------------------------------------------------------------------------ callers' mistakes

T = tables_of(np.zeros((2, 3, 1)), np.zeros((2, 3)), [1, 2])
OFFSET, SCALE = np.zeros((2, 1, 4), np.int16), np.ones((2, 1, 4), np.uint8)
CODES = np.zeros((2, 4), np.int32)
WIDE: Any = CODES.astype(np.int64)
POINTS = np.zeros((2, 3, 1), np.float32)
LATENTS = np.zeros((2, 1, 4), np.float32)

MISTAKES: list[tuple[Callable[[], object], str]] = [
    (lambda: tables_of([[[1024], [0]]], [[0, 0]]), "codewords must be at most 1023, got 1024"),
    (lambda: tables_of([[[-1024], [0]]], [[0, 0]]), "codewords must be at least -1023, got -1024"),
    (lambda: tables_of([[[0]]], [[0]]), "codewords: number of codewords must be from 2 to 8192, got 1"),
    (lambda: tables_of(np.zeros((1, 8193, 1)), []), "codewords: number of codewords must be from 2 to 8192, got 8193"),
    (lambda: tables_of(np.zeros((1, 2, 65)), []), "codewords: dimension must be from 1 to 64, got 65"),
    (lambda: tables_of(np.zeros((0, 2, 1)), []), "codewords: number of sub-codebooks must be at least 1, got 0"),
    (lambda: tables_of([[[0], [0]]], [[0, 0, 0]]), "log_weights must be int16 [1, 2], got int16 [1, 3]"),
    (lambda: tables_of([[[0], [0]]], [[0, 0]], [0]), "precision must be at least 1, got 0"),
    (lambda: tables_of([[[0], [0]]], [[0, 0]], [16385]), "precision must be at most 16384, got 16385"),
    (lambda: tables_of([[[0], [0]]], [[0, 0]], []), "precision: number of scales must be from 1 to 256, got 0"),
    (
        lambda: PriorTables(np.zeros((1, 2, 1)), T.log_weights, T.precision),  # type: ignore[arg-type]
        "codewords must be int16 [*, *, *], got float64 [1, 2, 1]",
    ),
    (
        lambda: intervals(T, OFFSET, None, CODES),
        "offset and scale must both be arrays, or both None for a static prior",
    ),
    (lambda: intervals(T, OFFSET[:1], SCALE, CODES), "offset must be int16 [2, 1, *], got int16 [1, 1, 4]"),
    (lambda: intervals(T, OFFSET + np.int16(1024), SCALE, CODES), "offset must be at most 1023, got 1024"),
    (lambda: intervals(T, OFFSET, SCALE[..., :3], CODES), "scale must be uint8 [2, 1, 4], got uint8 [2, 1, 3]"),
    (lambda: intervals(T, OFFSET, SCALE * np.uint8(2), CODES), "scale must be at most 1, got 2"),
    (lambda: intervals(T, OFFSET, SCALE, WIDE), "codes must be int32 [2, 4], got int64 [2, 4]"),
    (lambda: intervals(T, OFFSET, SCALE, CODES + np.int32(3)), "codes must be at most 2, got 3"),
    (lambda: intervals(T, None, None, CODES - np.int32(1)), "codes must be at least 0, got -1"),
    (
        lambda: intervals(T, OFFSET, SCALE * np.uint8(0), CODES + np.int32(1)),
        "codes must be 0 where all scale indices are 0 (skipped), got 1",
    ),
    (lambda: frequency_rows(T, None, None, 2), "group must be from 0 to 1, got 2"),
    (lambda: Decoder(encode([])).decode_stage(T, None, None), "shape is needed for a static prior"),
    (lambda: Decoder(encode([])).decode_stage(T, None, None, (3, 4)), "shape must be (2, P >= 0), got (3, 4)"),
    (
        lambda: Decoder(encode([])).decode_stage(T, OFFSET, SCALE, (2, 5)),
        "shape must be (2, 4) as offset says, got (2, 5)",
    ),
    (lambda: assign(T, OFFSET, SCALE, LATENTS, POINTS, -1.0), "beta must be finite and at least 0, got -1.0"),
    (lambda: assign(T, OFFSET, SCALE, LATENTS * np.nan, POINTS, 1.0), "latents must be finite, got NaN or infinity"),
    (
        lambda: assign(T, OFFSET, SCALE, LATENTS[..., :3], POINTS, 1.0),
        "latents must be float32 [2, 1, 4], got float32 [2, 1, 3]",
    ),
]


@pytest.mark.parametrize("call,message", MISTAKES, ids=[message for _, message in MISTAKES])
def test_mistakes(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == message


# ------------------------------------------------------------------------------------------------ assignment


@pytest.mark.parametrize(
    "size,dimension,beta", [(2, 1, 1.0), (15, 3, 0.0), (225, 2, 3.0), (225, 2, 100.0), (50, 5, 2.0)]
)
def test_assign_finds_the_least_cost(engine: str, size: int, dimension: int, beta: float) -> None:
    tables, context, _ = random_stage(size, 2, size, dimension, 60)
    assert context[0] is not None and context[1] is not None
    rng = np.random.default_rng(size)
    points = (tables.codewords / 16).astype(np.float32)
    latents = (context[0] / 16 + rng.normal(0, 1, context[0].shape)).astype(np.float32)
    for here in (context, (None, None)):
        codes = assign(tables, *here, latents, points, beta)
        assert codes.dtype == np.int32 and codes.shape == (2, 60)
        check_assigned(tables, here, latents, points, beta, codes)


def test_assign_takes_the_lowest_of_equals(engine: str) -> None:
    tables = tables_of(np.zeros((1, 40, 2)), [[-5] * 7 + [0] * 33], [1, 9])
    context = np.ones((1, 2, 3), np.int16), np.ones((1, 2, 3), np.uint8)
    latents, points = np.ones((1, 2, 3), np.float32), np.zeros((1, 40, 2), np.float32)
    assert assign(tables, *context, latents, points, 1.0).tolist() == [[7, 7, 7]]
    assert assign(tables, *context, latents * np.float32(1e30), points, 1.0).max() < 40  # infinite distance


# ------------------------------------------------------------------------------------------------ the dispatcher


def test_unknown_backend() -> None:
    with using("rust"), pytest.raises(ValueError) as caught:
        backend()
    assert str(caught.value) == "MCODEC_ENTROPY must be one of auto, c, numpy, tensor, got 'rust'"


def test_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    cause = ImportError("no such file")
    monkeypatch.setattr(coder, "_extension", None)
    monkeypatch.setattr(coder, "_failure", cause)
    coder._warn_missing.cache_clear()
    with using("c"), pytest.raises(ImportError, match="compiled entropy coder is missing") as caught:
        backend()
    assert caught.value.__cause__ is cause
    with using("auto"):
        with pytest.warns(RuntimeWarning, match="no such file"):
            assert backend() == "numpy"
        assert backend() == "numpy"  # the warning comes once: a second one would be an error here
    coder._warn_missing.cache_clear()


@COMPILED
def test_extension_checks_what_it_is_given() -> None:
    """Called past the wrapper, with sizes that do not fit together: an exception, not an access."""
    c: Any = coder._extension
    t = T.arguments
    out = np.zeros(8, np.uint16)
    words, states = np.zeros(4, np.uint8), np.full(1, 1 << 32, np.uint64)
    c.intervals(*t, OFFSET, SCALE, CODES, out, out.copy())
    calls: list[Callable[[], object]] = [
        lambda: c.intervals(*t),
        lambda: c.intervals(*t, OFFSET, None, CODES, out, out),
        lambda: c.intervals(*t, OFFSET[:, :, :3].copy(), SCALE, CODES, out, out),
        lambda: c.intervals(*t, OFFSET, SCALE, CODES[:, :3].copy(), out, out),
        lambda: c.intervals(*t, OFFSET, SCALE, CODES, out[:7], out[:7]),
        lambda: c.intervals(*t, OFFSET, SCALE, CODES, out, out[:7]),
        lambda: c.intervals(*t, OFFSET, SCALE, CODES + np.int32(3), out, out),
        lambda: c.intervals(*t, OFFSET, SCALE * 0, CODES + np.int32(1), out, out),  # skipped, yet not 0
        lambda: c.intervals(*t, OFFSET[..., ::2], SCALE[..., ::2], CODES, out, out),
        lambda: c.intervals(t[0], t[1], t[2] * 0, t[3], OFFSET, SCALE, CODES, out, out),
        lambda: c.intervals(t[0][:, :1].copy(), *t[1:], OFFSET, SCALE, CODES, out, out),
        lambda: c.intervals(*t[:3], 1023, OFFSET, SCALE, CODES, out, out),
        lambda: c.intervals(*t[:3], -1, OFFSET, SCALE, CODES, out, out),
        lambda: c.intervals(*t[:3], None, OFFSET, SCALE, CODES, out, out),
        lambda: c.intervals(*t, OFFSET, SCALE, CODES, out, bytes(16)),
        lambda: c.rans_encode(out, out, np.array([8]), 1),
        lambda: c.rans_encode(out + 65535, out + 2, np.array([8]), 1),
        lambda: c.rans_encode(out, out + 1, np.array([9]), 1),
        lambda: c.rans_encode(out, out + 1, np.array([-1, 9]), 1),
        lambda: c.rans_encode(out, out + 1, np.array([8]), 3),
        lambda: c.rans_encode(out, out + 1, np.array([8]), 2048),
        lambda: c.rans_encode(out, out + 1, np.array([8]), "1"),
        lambda: c.decode_stage(*t, OFFSET, SCALE, words, states, 3, CODES.copy()),
        lambda: c.decode_stage(*t, OFFSET, SCALE, words, states, -1, CODES.copy()),
        lambda: c.decode_stage(*t, OFFSET, SCALE, words, states[:0], 0, CODES.copy()),
        lambda: c.decode_stage(*t, OFFSET, SCALE, words, states, 0, CODES[:1].copy()),
        lambda: c.decode_stage(*t, OFFSET, SCALE, words, states, 0, None),
        lambda: c.assign(*t, OFFSET, SCALE, LATENTS, POINTS[:1].copy(), 1.0, CODES.copy()),
        lambda: c.assign(*t, OFFSET, SCALE, LATENTS, POINTS, "1", CODES.copy()),
        lambda: c.assign(*t, OFFSET, SCALE, LATENTS.astype(np.float64), POINTS, 1.0, CODES.copy()),
    ]
    for call in calls:
        with pytest.raises((TypeError, ValueError, OverflowError, BufferError)):
            call()
