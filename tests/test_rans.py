"""rANS on tensors: the bytes of the arrays' coders, for batches of streams with lanes of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stages import Stage, random_stage, sample, slow_stream, static

from mcodec.entropy import Decoder, Encoder, coder, frequency_rows
from mcodec.entropy.batch import TensorDecoder, TensorEncoder
from mcodec.errors import CorruptStream
from mcodec.kernels import rans
from mcodec.kernels.rans import LOWEST, RansStreams

#: A batch: for every tile its stages, with the same tables.
Batch = list[list[Stage]]


def batch_of(seed: int, size: int, dimension: int, positions: int) -> Batch:
    """Two tiles: a stage with context, a static one, a stage where the second tile skips everything."""
    first, last = random_stage(seed, 2, size, dimension, positions), random_stage(seed + 1, 1, size, dimension, 3)
    fixed = static([0, -30, -200, -64], [0, 1, 2, 3, 0, 0, 1])
    assert first[1][0] is not None and first[1][1] is not None and last[1][1] is not None
    turned = first[1][0][..., ::-1].copy(), first[1][1][..., ::-1].copy()
    codes = sample(first[0], turned, positions, np.random.default_rng(seed))
    other = fixed[0], fixed[1], fixed[2][:, ::-1].copy()
    nothing = last[0], (last[1][0], last[1][1] * np.uint8(0)), last[2] * 0
    return [[first, fixed, last], [(first[0], turned, codes), other, nothing]]


def stacked(batch: Batch, index: int, device: torch.device) -> list[torch.Tensor | None]:
    """offset, scale and codes of one stage, `[B, ...]`."""
    parts: list[tuple[Any, ...]] = [(*stages[index][1], stages[index][2]) for stages in batch]
    return [
        None if column[0] is None else torch.from_numpy(np.stack(column)).to(device)
        for column in zip(*parts, strict=True)
    ]


def encode(batch: Batch, device: torch.device, lane_share: float = coder.LANE_SHARE) -> list[bytes]:
    encoder = TensorEncoder(len(batch), device, lane_share)
    for index, (tables, _, _) in enumerate(batch[0]):
        offset, scale, codes = stacked(batch, index, device)
        assert codes is not None
        encoder.add_stage(tables, offset, scale, codes)
    return encoder.finish()


def decode(streams: list[bytes], batch: Batch, device: torch.device) -> list[torch.Tensor]:
    decoder = TensorDecoder(streams, device)
    found = []
    for index, (tables, _, codes) in enumerate(batch[0]):
        offset, scale, _ = stacked(batch, index, device)
        found.append(decoder.decode_stage(tables, offset, scale, (codes.shape[0], codes.shape[1])))
    decoder.finish()
    return found


@pytest.mark.parametrize("load", [coder.SURPRISE_PER_LANE, 5 << 16, 1 << 14], ids=["one lane", "few", "many"])
@pytest.mark.parametrize("size,dimension,positions", [(2, 1, 1), (9, 2, 23), (300, 3, 12)])
def test_streams_of_every_coder(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, size: int, dimension: int, positions: int, load: int
) -> None:
    """The bytes of Python's unbounded integers and of arrays; and the codes that these say."""
    monkeypatch.setattr(coder, "SURPRISE_PER_LANE", load)
    batch = batch_of(size, size, dimension, positions)
    streams = encode(batch, device)
    for stream, stages in zip(streams, batch, strict=True):
        assert stream == slow_stream(stages, 1 << stream[0])
        encoder = Encoder()
        for tables, context, codes in stages:
            encoder.add_stage(tables, *context, codes)
        assert encoder.finish() == stream
    if positions > 1:
        lanes = [stream[0] for stream in streams]
        assert max(lanes) == 0 if load == coder.SURPRISE_PER_LANE > 1 << 20 else max(lanes) > 0
    for index, found in enumerate(decode(streams, batch, device)):
        assert found.dtype == torch.int32
        for item, stages in enumerate(batch):
            assert found[item].tolist() == stages[index][2].tolist()


def test_share_of_lanes(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """More lanes where they may take more of the bytes: as many as arrays take, and the codes come back."""
    monkeypatch.setattr(coder, "SURPRISE_PER_LANE", 100 << 16)
    batch = batch_of(5, 9, 2, 23)
    streams = encode(batch, device, 0.1)
    assert max(stream[0] for stream in streams) > 0 == max(stream[0] for stream in encode(batch, device))
    for stream, stages in zip(streams, batch, strict=True):
        encoder = Encoder(0.1)
        for tables, context, codes in stages:
            encoder.add_stage(tables, *context, codes)
        assert encoder.finish() == stream
    for index, found in enumerate(decode(streams, batch, device)):
        for item, stages in enumerate(batch):
            assert found[item].tolist() == stages[index][2].tolist()


def test_where_stages_end(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder knows what its decoder has read after each stage."""
    monkeypatch.setattr(coder, "SURPRISE_PER_LANE", 5 << 16)
    batch = batch_of(4, 9, 2, 23)
    encoder = TensorEncoder(len(batch), device)
    for index, (tables, _, _) in enumerate(batch[0]):
        offset, scale, codes = stacked(batch, index, device)
        assert codes is not None
        encoder.add_stage(tables, offset, scale, codes)
    encoder.seal()
    decoder, reads = TensorDecoder(encoder.finish(), device), []
    for index, (tables, _, codes) in enumerate(batch[0]):
        offset, scale, _ = stacked(batch, index, device)
        decoder.decode_stage(tables, offset, scale, (codes.shape[0], codes.shape[1]))
        reads.append(decoder.words_read.tolist())
    assert encoder.stage_words() == [list(read) for read in zip(*reads, strict=True)]
    assert min(reads[0]) > 0


def test_nothing(device: torch.device) -> None:
    empty = bytes.fromhex("00000000000100")
    assert TensorEncoder(2, device).finish() == [empty, empty]
    assert TensorEncoder(0, device).finish() == []
    TensorDecoder([empty, empty], device).finish()
    batch = [[static([0, 0], [])]]
    assert encode(batch, device) == [empty]
    assert decode([empty], batch, device)[0].shape == (1, 1, 0)


def test_bad_streams(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes stay in range whatever the bytes, and `finish` notices; messages are those of `Decoder`."""
    monkeypatch.setattr(coder, "SURPRISE_PER_LANE", 4 << 16)
    batch = batch_of(5, 9, 2, 6)
    good = encode(batch, device)
    rng = np.random.default_rng(0)
    for bad in (good[1][:-2], good[1] + b"\0\0", good[1][:8] + rng.bytes(len(good[1]) - 9) + b"\0", good[0]):
        messages = []
        for where in ("tensor", "array"):
            with pytest.raises(CorruptStream) as caught:
                if where == "tensor":
                    decode([good[0], bad], batch, device)
                else:
                    single = Decoder(bad)
                    for tables, context, codes in batch[1]:
                        single.decode_stage(tables, *context, (codes.shape[0], codes.shape[1]))
                    single.finish()
            messages.append(str(caught.value))
        assert messages[0] == messages[1]
    for _ in range(3):
        decoder = TensorDecoder([bytes([2]) + b"\xff" * 24 + rng.bytes(6), good[0]], device)
        for index, (tables, _, codes) in enumerate(batch[0]):
            offset, scale, _ = stacked(batch, index, device)
            found = decoder.decode_stage(tables, offset, scale, (codes.shape[0], codes.shape[1]))
            assert int(found.min()) >= 0 and int(found.max()) < tables.codewords.shape[1]
    with pytest.raises(CorruptStream, match="log2 of the lane count is 11"):
        TensorDecoder([b"\x0b" + bytes(9000)], device)


@pytest.mark.parametrize(
    "scanned,whole", [(0, 0), (rans.SCANNED, 0), (rans.SCANNED, rans.WHOLE)], ids=["by halves", "by heads", "whole"]
)
@pytest.mark.parametrize("load", [coder.SURPRISE_PER_LANE, 5 << 16, 1 << 15], ids=["one lane", "few", "many"])
def test_rows_in_pieces(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, load: int, scanned: int, whole: int
) -> None:
    """Rows that wait for as few steps as can be, and all ways to search them."""
    monkeypatch.setattr(coder, "SURPRISE_PER_LANE", load)
    monkeypatch.setattr(rans, "ROW_BYTES", 0)
    monkeypatch.setattr(rans, "SCANNED", scanned)
    monkeypatch.setattr(rans, "WHOLE", whole)
    batch = batch_of(8, 9, 2, 23)
    for index, found in enumerate(decode(encode(batch, device), batch, device)):
        for item, stages in enumerate(batch):
            assert found[item].tolist() == stages[index][2].tolist()


@pytest.mark.parametrize("size", [2, 64, 65, 1100])
@pytest.mark.parametrize("lanes", [1, 2, 8, 16])
def test_ends_of_intervals(device: torch.device, size: int, lanes: int) -> None:
    """The first and the last slot of codewords at both ends of a row, with and without context; words run out."""
    rng = np.random.default_rng(size)
    for tables, context, _ in (
        random_stage(size, 1, size, 2, 1, skip=0, reach=0),
        random_stage(size, 1, size, 2, 1, skip=0, spread=1000, reach=0),  # most codewords have a frequency of 1
        random_stage(size, 1, size, 2, 1, skip=0, spread=1000, reach=16),  # ... of 0
        static([-(37 * k) % 400 for k in range(size)], []),
    ):
        row = frequency_rows(tables, *context, 0)[0].astype(np.int64)
        end, some = row.cumsum(), np.flatnonzero(row)
        wanted = np.unique(some[[0, 1, len(some) // 2, -2, -1]])
        slots = np.stack([np.append(0, end)[wanted], end[wanted] - 1]).reshape(-1)
        batch = -(-len(slots) // lanes)
        slots = np.resize(slots, (batch, lanes))
        states = torch.from_numpy(rng.integers(1 << 16, 1 << 32, (batch, lanes)) << 16 | slots)
        # a symbol of frequency 2^15 or less takes a word of a state that is as low as can be
        states[::2] = LOWEST | states[::2] & 0xFFFF
        offset, scale = (
            None if c is None else torch.from_numpy(c).expand(batch, -1, -1, lanes).contiguous() for c in context
        )
        words = torch.from_numpy(rng.integers(0, 1 << 16, (batch, 2 * lanes), np.int32))
        found = []
        for where, decode_ in ((device, rans.rans_decode), (torch.device("cpu"), rans.rans_decode_reference)):
            streams = RansStreams(
                words.to(where), torch.full((batch,), lanes // 2, device=where),
                torch.full((batch,), lanes, device=where), states.to(where, copy=True),
                torch.zeros(batch, dtype=torch.int64, device=where),
            )  # fmt: skip
            codes = decode_(
                tables.on(where), *(c if c is None else c.to(where) for c in (offset, scale)), (batch, 1, lanes),
                streams,
            )  # fmt: skip
            found.append([t.tolist() for t in (codes, streams.states, streams.position)])
        assert found[0] == found[1]
        assert found[0][0] == np.searchsorted(end, slots, "right")[:, None].tolist()


@pytest.mark.parametrize("lanes", [1, 4, 64])
def test_divisions(device: torch.device, lanes: int) -> None:
    """Frequencies at both ends and around powers of two, and states as they come."""
    edge = torch.tensor([1, 2, 3, 255, 256, 257, 32767, 32768, 32769, 65521, 65534, 65535])
    g = torch.Generator().manual_seed(lanes)
    freq = edge[torch.randint(0, len(edge), (2, 300), generator=g)].int()
    start = (torch.rand((2, 300), generator=g) * (65537 - freq)).int()
    counts, many = torch.tensor([[200, 100], [77, 0]]), torch.tensor([lanes, max(1, lanes // 2)])
    wanted = rans.rans_encode_reference(start, freq, counts, [0, 200], many, lanes)
    given = [t.to(device) for t in (start, freq, counts)]
    found = rans.rans_encode(*given, [0, 200], many.to(device), lanes)
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a.cpu(), b)


def test_large(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the most lanes that a stream can have."""
    batch = batch_of(3, 961, 2, 30_011)
    for load in (coder.SURPRISE_PER_LANE, 1 << 22, 1 << 18):
        monkeypatch.setattr(coder, "SURPRISE_PER_LANE", load)
        streams = encode(batch, gpu)
        for stream, stages in zip(streams, batch, strict=True):
            encoder = Encoder()
            for tables, context, codes in stages:
                encoder.add_stage(tables, *context, codes)
            assert encoder.finish() == stream
        for index, found in enumerate(decode(streams, batch, gpu)):
            for item, stages in enumerate(batch):
                assert np.array_equal(found[item].cpu().numpy(), stages[index][2])
