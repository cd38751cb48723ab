"""rANS on tensors: the bytes of the arrays' coders, for batches of streams with lanes of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stages import Stage, random_stage, sample, slow_stream, static

from mcodec.entropy import Decoder, Encoder, coder
from mcodec.entropy.batch import TensorDecoder, TensorEncoder
from mcodec.errors import CorruptStream

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


def encode(batch: Batch, device: torch.device) -> list[bytes]:
    encoder = TensorEncoder(len(batch), device)
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
