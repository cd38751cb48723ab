"""Entropy coder: the law against a slow oracle, both backends against each other, hostile streams."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcodec import entropy
from mcodec.entropy import Decoder, Encoder, PriorTables, frequency_rows, lanes_for
from mcodec.errors import CorruptStream
from numpy.typing import NDArray

HAVE_C = importlib.util.find_spec("mcodec.entropy._rans") is not None
BACKENDS = [
    pytest.param("c", marks=pytest.mark.skipif(not HAVE_C, reason="built without a C compiler")),
    "numpy",
]
Stage = tuple[PriorTables, Any, Any, NDArray[np.int32]]


def stage(seed: int, m: int, k: int, d: int, p: int, static: bool = False, scales: int = 128) -> Stage:
    """A random stage with codes that are likely and unlikely, skipped symbols included."""
    rng = np.random.default_rng(seed)
    tables = PriorTables(
        rng.integers(-200, 201, (m, k, d), dtype=np.int16),
        rng.integers(-600, 1, (m, k), dtype=np.int16),
        np.geomspace(16000, 2, scales).astype(np.int32),
    )
    codes = rng.integers(0, k, (m, p), dtype=np.int32)
    if static:
        return tables, None, None, codes
    offset = rng.integers(-127, 128, (m, d, p), dtype=np.int16)
    scale = rng.integers(0, scales, (m, d, p), dtype=np.uint8)
    scale[rng.random((m, 1, p)).repeat(d, 1) < 0.3] = 0
    codes[~scale.any(1)] = 0
    return tables, offset, scale, codes


def encode(*stages: Stage) -> bytes:
    encoder = Encoder()
    for s in stages:
        encoder.add_stage(*s)
    return encoder.finish()


def decode(data: bytes, *stages: Stage) -> list[NDArray[np.int32]]:
    decoder = Decoder(data)
    out = [decoder.decode_stage(t, g, s, c.shape) for t, g, s, c in stages]  # type: ignore[arg-type]
    decoder.finish()
    return out


def oracle(tables: PriorTables, offset: Any, scale: Any, m: int, p: int) -> list[int]:
    """The law of docs/ENTROPY.md in Python integers, one symbol."""
    _, size, d = tables.codewords.shape
    logit = []
    for k in range(size):
        cost = 0
        if offset is not None:
            for j in range(d):
                a = int(tables.precision[int(scale[m, j, p])])
                square = (int(tables.codewords[m, k, j]) - int(offset[m, j, p])) ** 2
                cost += a * min(square, (2**31 - 1) // (d * a))
            assert cost < 2**31
            cost = (cost + 512) >> 10
        logit.append(int(tables.log_weights[m, k]) - cost)
    weight = []
    for x in logit:
        f = max(logit) - x
        n, t = f >> 6, f & 63
        weight.append(32768 - ((21997 * t) >> 6) + ((5613 * t * t) >> 12) >> n if n < 16 else 0)
    inverse = ((65536 - size) * 2**31) // sum(weight)
    assert inverse < 2**32
    freq = [1 + ((w * inverse) >> 31) for w in weight]
    freq[logit.index(max(logit))] += 65536 - sum(freq)
    return freq


@pytest.mark.parametrize("k, d", [(2, 1), (9, 2), (225, 2), (300, 3), (17, 64)])
@pytest.mark.parametrize("static", [False, True], ids=["mixture", "static"])
def test_rows_against_the_oracle(k: int, d: int, static: bool) -> None:
    tables, offset, scale, _ = stage(k, 2, k, d, 5, static)
    for m in range(2):
        rows = frequency_rows(tables, offset, scale, m)
        for p in range(len(rows)):
            assert rows[p].tolist() == oracle(tables, offset, scale, m, p)
        assert (rows >= 1).all() and (rows.sum(1) == 65536).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("precision", [1, 2**14])
@pytest.mark.parametrize("d", [1, 2, 3, 64])
def test_extreme_values_do_not_overflow(backend: str, precision: int, d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCODEC_ENTROPY", backend)
    codewords = np.full((1, 3, d), 1023, np.int16)
    codewords[0, 1], codewords[0, 2] = -1023, 0
    tables = PriorTables(codewords, np.array([[0, -2048, 2047]], np.int16), np.full(2, precision, np.int32))
    offset = np.stack([np.full(d, -1023), np.full(d, 1023), np.zeros(d)], 1)[None].astype(np.int16)
    scale = np.ones((1, d, 3), np.uint8)
    for code in range(3):
        codes = np.full((1, 3), code, np.int32)
        start, freq = entropy.intervals(tables, offset, scale, codes)
        for p in range(3):
            row = oracle(tables, offset, scale, 0, p)
            assert (int(start[p]), int(freq[p])) == (sum(row[:code]), row[code])


def tiny_stages() -> dict[str, list[Stage]]:
    one = np.zeros((1, 2, 1), np.int16)
    one[0, 1] = 16
    table = PriorTables(one, np.zeros((1, 2), np.int16), np.array([8000, 400, 2], np.int32))

    def symbols(codes: list[int], scale: int) -> Stage:
        n = len(codes)
        return table, np.zeros((1, 1, n), np.int16), np.full((1, 1, n), scale, np.uint8), np.array([codes], np.int32)

    return {
        "no symbol": [symbols([], 1)],
        "one symbol, likely": [symbols([0], 1)],
        "one symbol, unlikely": [symbols([1], 1)],
        "uniform": [symbols([0, 1, 1, 0, 1, 0, 0, 1] * 4, 2)],
        "all skipped": [symbols([0, 0, 0], 0)],
        "static": [(table, None, None, np.array([[0, 1, 1, 0]], np.int32))],
        "two stages": [symbols([0, 1], 1), symbols([1, 1, 1], 2)],
    }


# Written once with the numpy reference; a change here is a change of the format.
GOLDEN = {
    "no symbol": "0000000100",
    "one symbol, likely": "00b6400100",
    "one symbol, unlikely": "0028fd0300",
    "uniform": "00d2230100719a70a9",
    "all skipped": "0000000100",
    "static": "0000001300",
    "two stages": "00c6583d00",
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes(backend: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCODEC_ENTROPY", backend)
    stages = tiny_stages()[name]
    data = encode(*stages)
    assert data.hex() == GOLDEN[name]
    for got, expected in zip(decode(data, *stages), stages, strict=True):
        assert np.array_equal(got, expected[3])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shapes=st.lists(
        st.tuples(st.integers(1, 3), st.integers(2, 40), st.integers(1, 3), st.integers(0, 30), st.booleans()),
        min_size=1, max_size=3,
    ),
)
def test_round_trip_and_equal_bytes(seed: int, shapes: list[tuple[int, int, int, int, bool]]) -> None:
    stages = [stage(seed + i, *shape) for i, shape in enumerate(shapes)]
    streams = []
    with pytest.MonkeyPatch.context() as patch:
        for backend in ("c", "numpy") if HAVE_C else ("numpy",):
            patch.setenv("MCODEC_ENTROPY", backend)
            streams.append(encode(*stages))
        assert len(set(streams)) == 1
        for backend in ("c", "numpy") if HAVE_C else ("numpy",):
            patch.setenv("MCODEC_ENTROPY", backend)
            for got, expected in zip(decode(streams[0], *stages), stages, strict=True):
                assert np.array_equal(got, expected[3])


def test_many_lanes_and_code_length() -> None:
    """A long stream has several lanes and is within 0.1 % of the ideal plus four bytes a lane."""
    tables, offset, scale, codes = stage(1, 4, 81, 2, 12000)
    encoder = Encoder()
    encoder.add_stage(tables, offset, scale, codes)
    data = encoder.finish()
    lanes = lanes_for(int(scale.any(1).sum()))
    assert lanes == 4 == 1 << data[0]
    assert len(data) <= encoder.bits / 8 * 1.001 + 1 + 4 * lanes
    assert np.array_equal(decode(data, (tables, offset, scale, codes))[0], codes)


@pytest.mark.parametrize("backend", BACKENDS)
def test_truncated_streams(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCODEC_ENTROPY", backend)
    stages = [stage(5, 2, 30, 2, 20), stage(6, 1, 30, 2, 9)]
    data = encode(*stages)
    for length in range(len(data)):
        with pytest.raises(CorruptStream):
            decode(data[:length], *stages)
    with pytest.raises(CorruptStream):
        decode(data + b"\0\0", *stages)


@pytest.mark.parametrize("backend", BACKENDS)
def test_damaged_streams_never_crash(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any bytes decode to codes in range or raise CorruptStream."""
    monkeypatch.setenv("MCODEC_ENTROPY", backend)
    stages = [stage(7, 2, 30, 2, 20), stage(8, 1, 5, 1, 9, static=True)]
    data = encode(*stages)
    rng = np.random.default_rng(0)
    for _ in range(500):
        damaged = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        if rng.random() < 0.2:
            damaged = bytearray(rng.bytes(rng.integers(0, 60)))
        try:
            decoded = decode(bytes(damaged), *stages)
        except CorruptStream:
            continue
        for codes, (tables, *_) in zip(decoded, stages, strict=True):
            assert 0 <= codes.min() and codes.max() < tables.codewords.shape[1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_assignment_minimises_the_objective(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCODEC_ENTROPY", backend)
    tables, offset, scale, _ = stage(3, 2, 225, 2, 40)
    rng = np.random.default_rng(1)
    latents = rng.normal(0, 4, (2, 2, 40)).astype(np.float32)
    points = tables.codewords.astype(np.float32) / 16
    codes = entropy.assign(tables, offset, scale, latents, points, 6.0)
    for m in range(2):
        rows = frequency_rows(tables, offset, scale, m)
        for p in range(40):
            if not scale[m, :, p].any():
                assert codes[m, p] == 0
                continue
            cost = 6.0 * ((latents[m, :, p] - points[m]) ** 2).sum(1)
            logit = entropy.rans.logits(tables.codewords[m], tables.log_weights[m], tables.precision,
                                        offset[m][:, p : p + 1], scale[m][:, p : p + 1])[0]
            cost = cost - logit * np.log(2) / 64
            assert cost[codes[m, p]] <= cost.min() + 1e-3
        assert len(rows) == 40


def test_callers_mistakes() -> None:
    tables, offset, scale, codes = stage(0, 2, 9, 2, 4)
    with pytest.raises(ValueError, match="K must be from 2 to 8192"):
        PriorTables(np.zeros((1, 1, 1), np.int16), np.zeros((1, 1), np.int16), np.ones(1, np.int32))
    with pytest.raises(ValueError, match="precision must be from 1"):
        PriorTables(tables.codewords, tables.log_weights, np.zeros(3, np.int32))
    with pytest.raises(ValueError, match="from 0 to K - 1"):
        entropy.intervals(tables, offset, scale, codes + 9)
    with pytest.raises(ValueError, match="skipped symbol must have code 0"):
        entropy.intervals(tables, offset, np.zeros_like(scale), codes + 1 - codes)
    with pytest.raises(ValueError, match="both be given"):
        entropy.intervals(tables, offset, None, codes)
    with pytest.raises(ValueError, match="scale must be below 128"):
        entropy.intervals(tables, offset, scale + 200, codes)


def test_numpy_takes_over_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    from mcodec.entropy import coder

    monkeypatch.setattr(coder, "_extension", None)
    monkeypatch.setattr(coder, "_failure", ImportError("no compiler"))
    monkeypatch.setattr(coder, "_warned", False)
    monkeypatch.setenv("MCODEC_ENTROPY", "auto")
    with pytest.warns(RuntimeWarning, match="numpy one is many times slower"):
        assert entropy.backend() == "numpy"
    assert entropy.backend() == "numpy"  # said once
    monkeypatch.setenv("MCODEC_ENTROPY", "c")
    with pytest.raises(ImportError, match="no compiler"):
        entropy.backend()
