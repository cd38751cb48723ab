"""Tiles, regions, previews and kinds of samples with the tiny model and tiles of 64 pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from settings import BACKENDS, SETTINGS, setting
from tiny import TINY, lively

from mcodec import container, decoding, postfilter, tiles
from mcodec.api import Codec
from mcodec.bench.metrics import psnr
from mcodec.engine import Engine
from mcodec.errors import CorruptStream
from mcodec.image import Raster
from mcodec.model.window import Box, window

Make = Callable[..., NDArray[np.uint8]]


def whole(codec: Codec, data: bytes, stages: int | None = None) -> NDArray[np.float32]:
    """The picture of a tiled file, synthesized in one piece: what windows must agree with."""
    file = container.unpack(data)
    header, payload = file.header, file.section(container.TAG_FILTER) if stages is None else None
    codes = [stage[None].int() for stage in codec.codes(data)][:stages]
    height, width = (codec.model.config.stages[0].stride * side for side in codes[0].shape[2:])
    level = torch.tensor([float(header.level)])
    with torch.no_grad():
        picture = codec.model.synthesis(codec.model.synthesize(codes, height, width, level), level)
        limit = postfilter.clipping(codec.model.config.lam(header.level))
        picture = postfilter.apply(picture[0], payload, header.kind.grey, limit)
    out: NDArray[np.float32] = (picture[:, : header.height, : header.width].permute(1, 2, 0).numpy() + 0.5) * 255
    return out.clip(0, 255)


def agree(samples: NDArray[np.uint8], exact: NDArray[np.float32]) -> bool:
    """Equal but for the rounding of floats that were added up in another order."""
    return float(np.abs(samples - exact).max()) <= 0.501


@pytest.mark.parametrize("region", [(0, 0, 320, 256), (100, 3, 7, 2), (128, 128, 64, 64), (319, 255, 1, 1)], ids=str)
def test_a_window_is_a_part_of_the_whole(region: tuple[int, int, int, int]) -> None:
    """On random codes, which no smoothness hides."""
    model, (height, width) = lively(TINY), (256, 320)
    x, y, w, h = region
    level = torch.tensor([100.0])
    generator = torch.Generator().manual_seed(0)
    codes = [
        torch.randint(0, s.codewords, (1, s.groups, height // s.stride, width // s.stride), generator=generator)
        for s in TINY.stages
    ]
    pixels, none = Box(y, x, y + h, x + w), Box(0, 0, 0, 0)
    part = window(model, pixels, height, width)
    cut = [box.crop(c, none) for box, c in zip(part.around, codes, strict=True)]
    with torch.no_grad():
        full = model.synthesis(model.synthesize(codes, height, width, level), level)
        found = model.synthesis(model.synthesize(cut, height, width, level, part), level)
    assert torch.allclose(pixels.crop(found, part.inside[-1].finer(8)), pixels.crop(full, none), atol=1e-5)
    if region[2] == 1:
        assert all(c.shape[-1] * s.stride < width for c, s in zip(cut, TINY.stages, strict=True))


@pytest.mark.parametrize("size", [(65, 64), (64, 200), (130, 190)], ids=str)
def test_tiles_make_one_picture(tiled: Codec, picture: Make, size: tuple[int, int]) -> None:
    array = picture(*size)
    data = tiled.encode(array, 70)
    assert container.unpack(data).header.tiles > 1
    decoded = np.asarray(tiled.decode(data))
    assert decoded.shape == array.shape and agree(decoded, whole(tiled, data))
    tiled.tile = 1024
    alone = tiled.encode(array, 70)
    assert len(data) < 1.05 * len(alone) + 30
    assert abs(psnr(array, decoded) - psnr(array, np.asarray(tiled.decode(alone)))) < 0.2


def test_a_tile_as_large_as_a_picture_takes_no_more_memory(
    tiled: Codec, picture: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file may say that its picture is one tile: it is synthesized window by window all the same."""
    tiled.tile = 1024
    data = tiled.encode(picture(130, 190), 70)
    assert container.unpack(data).header.tiles == 1
    monkeypatch.setattr(container, "TILE", 64)
    monkeypatch.setattr(tiled, "batch_pixels", 64 * 64)
    synthesize, parts = decoding._synthesize, []

    def watched(*arguments: Any) -> Any:
        parts.append(arguments[5:])
        return synthesize(*arguments)

    monkeypatch.setattr(decoding, "_synthesize", watched)
    tiled.tile = 64
    assert agree(np.asarray(tiled.decode(data)), whole(tiled, data))
    assert len(parts) == 9 and all(parts)


def test_no_seam(tiled: Codec, picture: Make) -> None:
    """Beside tile borders the picture is no worse than it would be without tiles."""
    array = picture(256, 320)
    tiled_error, error = np.empty_like(array, float), np.empty_like(array, float)
    for side, out in ((64, tiled_error), (1024, error)):
        tiled.tile = side
        out[:] = (array.astype(float) - np.asarray(tiled.decode(tiled.encode(array, 60)))) ** 2
    columns = [64 * k + offset for k in range(1, 5) for offset in (-2, -1, 0, 1)]
    rows = [64 * k + offset for k in range(1, 4) for offset in (-2, -1, 0, 1)]
    assert tiled_error[:, columns].mean() < 1.03 * error[:, columns].mean()
    assert tiled_error[rows].mean() < 1.03 * error[rows].mean()


def test_tiles_are_the_same_on_every_setting(tiled: Codec, picture: Make) -> None:
    array = picture(70, 100)
    names = list(SETTINGS)[1::3]  # both coders, all but int32, bfloat16 among them
    for index, name in enumerate(names):
        with setting(tiled, name):
            tiled.tile_workers = 1 + index % 3
            data = tiled.encode(array, 50)
            expected = tiled.codes(data)
        with setting(tiled, names[(index + 1) % len(names)]):
            assert all(torch.equal(a, b) for a, b in zip(expected, tiled.codes(data), strict=True))
    tiled.tile_workers = 2


@pytest.mark.parametrize("tile", [64, 1024])
def test_regions(tiled: Codec, picture: Make, tile: int) -> None:
    tiled.tile = tile
    data = tiled.encode(picture(150, 200), 60)
    full = tiled.decode_array(data)
    for x, y, w, h in ((0, 0, 200, 150), (60, 62, 9, 7), (64, 64, 64, 64), (199, 149, 1, 1), (0, 100, 200, 50)):
        part = tiled.decode_array(data, region=(x, y, w, h))
        assert np.abs(part.astype(int) - full[y : y + h, x : x + w]).max() <= 1
    for kind in (np.uint8, np.int16):
        part = tiled.decode_array(data, region=np.array([190, 0, 10, 150], kind))
        assert np.abs(part.astype(int) - full[:, 190:]).max() <= 1
    for kind in ((0.0, 0.0, 5.0, 5.0), ("0", 0, 5, 5), 7):
        with pytest.raises(ValueError, match="a region is four whole numbers"):
            tiled.decode(data, region=kind)  # type: ignore[arg-type]
    for bad in ((0, 0, 201, 1), (-1, 0, 5, 5), (0, 0, 0, 5), (200, 0, 1, 1)):
        with pytest.raises(ValueError, match="is not within the picture of 200x150"):
            tiled.decode(data, region=bad)


def test_a_region_reads_few_tiles(tiled: Codec, picture: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiled.encode(picture(64 * 9, 64 * 9), 30)
    read: list[int] = []
    inner = decoding.read_tiles

    def spy(engine: Engine, streams: list[bytes], *arguments: object) -> object:
        read.extend([arguments[4]] * len(streams))  # type: ignore[list-item]
        return inner(engine, streams, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(decoding, "read_tiles", spy)
    tiled.decode(data, region=(64 * 4, 64 * 4, 64, 64))
    assert len(read) < 81 and read.count(4) <= 9  # those far off give their coarse stages only


@pytest.mark.parametrize("tile", [64, 1024])
def test_previews(tiled: Codec, picture: Make, tile: int) -> None:
    """Each prefix decodes as its complete stages do, from all stages down to an error."""
    tiled.tile = tile
    array = picture(100, 130)
    data = tiled.encode(array, 60)
    sizes = tiled.stage_bytes(data)
    previews = [tiled.decode_array(data, stages=n) for n in range(1, 5)]
    errors = [psnr(array, p) for p in previews]
    assert errors[:3] == sorted(errors[:3]) and errors[3] > errors[1]  # the tiny model is untrained
    assert np.array_equal(previews[3], tiled.decode_array(data))
    assert agree(previews[1], whole(tiled, data, stages=2))
    body = len(data) - 4 - sum(sizes)
    for n, end in enumerate(np.cumsum(sizes)):
        assert np.array_equal(tiled.decode_array(data[: body + end], partial=True), previews[n])
        before = data[: body + end - 1]
        if n:
            assert np.array_equal(tiled.decode_array(before, partial=True), previews[n - 1])
            continue
        with pytest.raises(CorruptStream):
            tiled.decode(before, partial=True)
    assert np.array_equal(tiled.decode_array(data, partial=True), previews[3])
    head = data[: body + sum(sizes[:2])]
    for lazy in (False, True):  # what is missing is said, but not where no more is asked for
        assert tiled.decode_raster(head, partial=True, lazy=lazy).notes == ("the file ends after 2 of 4 stages",)
        assert not tiled.decode_raster(head, stages=2, partial=True, lazy=lazy).notes
    for stages in (0, 5, 2.0, "2"):
        with pytest.raises(ValueError, match="stages must be from 1 to 4"):
            tiled.decode(data, stages=stages)  # type: ignore[arg-type]


@pytest.mark.parametrize("lazy", [False, True])
def test_other_stages_in_the_table(tiled: Codec, picture: Make, lazy: bool) -> None:
    file = container.unpack(tiled.encode(picture(100, 130), 60))
    for stages in (1, 255):
        data = container.pack(replace(file, codes=bytes([stages]) + file.codes[1:]))
        with pytest.raises(CorruptStream, match=f"{stages} stages are coded, but the weights have 4"):
            tiled.decode_raster(data, lazy=lazy)


@pytest.mark.parametrize("words", [-1, 1])
@pytest.mark.parametrize("name", BACKENDS)
def test_stages_that_end_elsewhere_than_the_table_says(
    tiled: Codec, picture: Make, words: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The streams are whole, and decode as a whole: only the places of the cuts are wrong."""
    monkeypatch.setenv("MCODEC_ENTROPY", name)
    file = container.unpack(tiled.encode(picture(100, 130), 90))
    count = file.header.tiles
    streams = [file.streams.stream(tile) for tile in range(count)]
    ends = [file.streams.ends(tile) for tile in range(count)]
    assert tiles.pack(streams, ends) == file.codes and ends[1][1] + 2 <= ends[1][2]
    ends[1][1] += 2 * words
    data = container.pack(replace(file, codes=tiles.pack(streams, ends)))
    for options in ({}, {"stages": 2}, {"stages": 4}):
        with pytest.raises(CorruptStream, match=r"stages do not end where|ended early"):
            tiled.decode(data, **options)


def test_a_damaged_tile_of_a_partial_file_is_its_own(tiled: Codec, picture: Make) -> None:
    array = picture(64, 200)
    file = container.unpack(tiled.encode(array, 60))
    streams, ends = [file.streams.stream(tile) for tile in range(4)], [file.streams.ends(tile) for tile in range(4)]
    streams[1] = bytes([11]) + streams[1][1:]  # of more lanes than there can be
    data = container.pack(replace(file, codes=tiles.pack(streams, ends)))[:-4] + bytes(4)
    with pytest.raises(CorruptStream, match="log2 of the lane count is 11"):
        tiled.decode(data, partial=True)
    streams[1] = file.streams.stream(1)[:-2] + bytes(2)
    data = container.pack(replace(file, codes=tiles.pack(streams, ends)))[:-4] + bytes(4)
    seen = tiled.decode_raster(data, partial=True)
    assert "the checksum does not match" in seen.notes[0]
    assert np.array_equal(seen.array()[:, 140:], tiled.decode_array(container.pack(file))[:, 140:])


def test_rows_of_tiles() -> None:
    assert [place for row in range(3) for place in tiles.grid(130, 190, 64, row)] == tiles.grid(130, 190, 64)


def test_stage_bytes_add_up(tiled: Codec, picture: Make) -> None:
    data = tiled.encode(picture(100, 130), 60)
    described = container.describe(data)
    assert tiled.stage_bytes(data) == described["stages"]
    assert described["tiles"] == 6 and sum(described["stages"]) < described["sections"]["codes"]
    tiled.tile = 1024
    data = tiled.encode(picture(100, 130), 60)
    assert sum(tiled.stage_bytes(data)) == len(container.unpack(data).codes)
    assert container.describe(data)["stages"] is None


def test_damaged_tiles(tiled: Codec, picture: Make) -> None:
    file = container.unpack(tiled.encode(picture(70, 130), 50))
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(60):
        codes = bytearray(file.codes)
        codes[rng.integers(0, 30)] ^= 1 << rng.integers(8)
        try:
            tiled.decode(container.pack(container.Container(file.header, bytes(codes))))
            outcomes.add("decoded")
        except CorruptStream:
            outcomes.add("refused")
    assert "refused" in outcomes
    with pytest.raises(CorruptStream, match="1 stages are coded, but the weights have 4"):
        tiled.decode(container.pack(container.Container(file.header, b"\1" + bytes(6))))


# ---- kinds of samples ----


@pytest.mark.parametrize("tile", [64, 1024])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_kinds(tiled: Codec, picture: Make, tile: int, channels: int, depth: type) -> None:
    """Shape, depth and alpha come back, and 16 bits are not 8 in disguise."""
    tiled.tile = tile
    rgb = picture(70, 90)
    array = np.dstack([rgb, rgb[..., :1]])[..., [0, 3, 2, 1][:channels] if channels != 2 else [0, 1]].astype(depth)
    if depth is np.uint16:
        array = array * 257 + np.arange(90, dtype=depth)[:, None]
    data = tiled.encode(array, 60)
    decoded = tiled.decode_array(data)
    assert decoded.dtype == depth and decoded.shape == (array.shape if channels > 1 else array.shape[:2])
    if channels in (2, 4):
        assert np.array_equal(decoded[..., -1], array[..., -1])
    if depth is np.uint16:
        assert len(np.unique(decoded[..., 0] if channels > 1 else decoded)) > 1000
    image = tiled.decode(data)
    grey = "I;16" if depth is np.uint16 and channels == 1 else "L"
    assert image.mode == {1: grey, 2: "LA", 3: "RGB", 4: "RGBA"}[channels]


def test_16_bits_are_as_good_as_8(tiled: Codec, picture: Make) -> None:
    array = picture(64, 64)
    eight = tiled.decode_array(tiled.encode(array, 60))
    sixteen = tiled.decode_array(tiled.encode(array.astype(np.uint16) * 257, 60))
    assert np.abs(sixteen / 257 - eight).max() <= 0.51


def test_grey_costs_less_and_is_grey(tiny: Codec, picture: Make) -> None:
    colour = picture(128, 128)
    grey = np.rint(colour @ [0.299, 0.587, 0.114]).astype(np.uint8)
    data = tiny.encode(grey, 60)
    assert len(data) < len(tiny.encode(colour, 60))
    assert tiny.decode(data).mode == "L"


def test_metadata(tiny: Codec, picture: Make) -> None:
    from mcodec.image import Metadata

    metadata = Metadata(b"profile", b"II*\0\x08\0\0\0\0\0\0\0\0\0", b"<x/>")
    raster = Raster(picture(20, 30), container.Kind.RGB8, None, metadata)
    assert tiny.decode_raster(tiny.encode(raster)).metadata == metadata
    assert tiny.decode_raster(tiny.encode(raster, metadata="none")).metadata == Metadata()
    assert tiny.decode(tiny.encode(raster)).info["icc_profile"] == b"profile"
    with pytest.raises(ValueError, match="metadata must be one of all, no-gps, none, got 'some'"):
        tiny.encode(raster, metadata="some")
