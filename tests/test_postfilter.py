"""The filter behind the synthesis: it is found where there is one, and never makes a picture worse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mcodec import container, postfilter
from mcodec.api import Codec
from mcodec.container import TAG_FILTER
from mcodec.errors import CorruptStream
from mcodec.model.window import Box

Make = Callable[..., NDArray[np.uint8]]
LIMIT = 0.05


def noise(height: int = 70, width: int = 90) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(height)) - 0.5


def whole(picture: torch.Tensor) -> Box:
    return Box(0, 0, *picture.shape[1:])


@pytest.mark.parametrize("length", [postfilter.ALIKE, postfilter.OWN, postfilter.ALL])
def test_a_filter_is_found_again(length: int) -> None:
    payload = np.random.default_rng(length).integers(-30, 31, length).astype(np.int8).tobytes()
    picture = noise()
    original = postfilter.apply(picture, payload, False, LIMIT)
    assert (original - picture).square().mean() > 1e-4
    assert postfilter.fit(postfilter.statistics(picture, original, whole(picture), False, LIMIT), 1e6, False) == payload


def slow(picture: torch.Tensor, payload: bytes, limit: float) -> torch.Tensor:
    """docs/FORMAT.md, step 4, sample by sample."""
    weights = np.frombuffer(payload, np.int8).astype(float) / 128
    y, (_, height, width) = picture.double().numpy(), picture.shape
    out = y.copy()

    def difference(channel: int, i: int, j: int, row: int, column: int) -> float:
        at = min(max(i + row, 0), height - 1), min(max(j + column, 0), width - 1)
        return float(y[channel][at] - y[channel, i, j])

    pairs = [(0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0), (0, 3), (3, 0)]
    rings = [((0, 1), (1, 0)), ((1, 1), (1, -1)), ((0, 2), (2, 0)), ((2, 2), (2, -2)), ((0, 3), (3, 0))]
    for channel, i, j in np.ndindex(3, height, width):
        own = weights[:13] if len(weights) == 13 else weights[13 * channel : 13 * channel + 13]
        for weight, (row, column) in zip(own, pairs, strict=False):
            both = [difference(channel, i, j, sign * row, sign * column) for sign in (1, -1)]
            out[channel, i, j] += weight * sum(both) / 2
        for weight, ring in zip(own[8:], rings, strict=True):
            four = [difference(channel, i, j, sign * row, sign * column) for row, column in ring for sign in (1, -1)]
            out[channel, i, j] += weight * sum(min(max(d, -limit), limit) for d in four) / 4
        if len(weights) == 45:
            others = [other for other in range(3) if other != channel]
            for weight, other in zip(weights[39 + 2 * channel :][:2], others, strict=True):
                four = [difference(other, i, j, *at) for at in ((0, 1), (1, 0), (0, -1), (-1, 0))]
                out[channel, i, j] += weight * sum(four) / 4
    return torch.from_numpy(out)


@pytest.mark.parametrize("length", [postfilter.ALIKE, postfilter.OWN, postfilter.ALL])
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (21, 18)], ids=str)
def test_the_format(device: torch.device, length: int, size: tuple[int, int]) -> None:
    payload = np.random.default_rng(length).integers(-127, 128, length).astype(np.int8).tobytes()
    picture = noise(*size)
    found = postfilter.apply(picture.to(device), payload, False, 0.2).cpu()
    torch.testing.assert_close(found.double(), slow(picture, payload, 0.2), atol=1e-5, rtol=0)


def test_large(gpu: torch.device) -> None:
    """A picture of 8K, in one piece."""
    payload = np.random.default_rng(0).integers(-30, 31, postfilter.ALL).astype(np.int8).tobytes()
    picture = noise(4320, 7680)
    found = postfilter.apply(picture.to(gpu), payload, False, LIMIT).cpu()
    torch.testing.assert_close(found, postfilter.apply(picture, payload, False, LIMIT), atol=1e-5, rtol=0)


def test_grey_is_filtered_as_one_channel() -> None:
    payload = np.random.default_rng(0).integers(-30, 31, postfilter.ALIKE).astype(np.int8).tobytes()
    picture = noise()
    original = postfilter.apply(picture, payload, True, LIMIT)
    assert torch.equal(original[0], original[1]) and torch.equal(original[1], original[2])
    assert postfilter.fit(postfilter.statistics(picture, original, whole(picture), True, LIMIT), 1e6, True) == payload


def test_parts_add_up() -> None:
    picture, original = noise(170), noise(170).flip(1)
    parts = [Box(0, 0, 33, 90), Box(33, 0, 170, 17), Box(33, 17, 170, 90)]
    together = sum(postfilter.statistics(picture, original, part, False, LIMIT) for part in parts)
    assert isinstance(together, torch.Tensor)
    once = postfilter.statistics(picture, original, whole(picture), False, LIMIT)
    torch.testing.assert_close(together, once, rtol=1e-4, atol=1e-4)


def test_what_does_not_pay_is_left_out() -> None:
    picture = noise()
    sums = postfilter.statistics(picture, picture + 0.01 * noise().flip(2), whole(picture), False, LIMIT)
    assert postfilter.fit(sums, 1.0, False) == b""
    assert postfilter.fit(torch.zeros_like(sums), 1e6, False) == b""  # a flat picture
    payload = np.random.default_rng(1).integers(-4, 5, postfilter.ALL).astype(np.int8).tobytes()
    original = postfilter.apply(picture, payload, False, LIMIT)
    sums = postfilter.statistics(picture, original, whole(picture), False, LIMIT)
    error = [
        (postfilter.apply(picture, postfilter.fit(sums, weight, False), False, LIMIT) - original).square().sum()
        for weight in (1e-3, 1.0, 1e3, 1e6)
    ]
    assert error == sorted(error, reverse=True) and error[-1] < error[0]


@pytest.mark.parametrize("size,tile", [((100, 140), 1024), ((150, 200), 64)], ids=["one tile", "tiles"])
def test_files(
    tiny: Codec, picture: Make, size: tuple[int, int], tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file's picture is nearer with its filter, the same in every part, and decodes without it."""
    monkeypatch.setattr(tiny, "tile", tile)
    pixels = picture(*size)
    data = tiny.encode(pixels, 80)
    file = container.unpack(data)
    assert file.section(TAG_FILTER) and container.describe(data)["sections"]["filter"] >= postfilter.ALIKE
    bare = container.pack(replace(file, sections=tuple(s for s in file.sections if s[0] != TAG_FILTER)))

    def error(decoded: NDArray[np.uint8]) -> float:
        return float(np.square(decoded.astype(float) - pixels).mean())

    decoded = np.asarray(tiny.decode_array(data))
    assert error(decoded) < error(np.asarray(tiny.decode_array(bare)))
    for region in ((60, 10, 70, 64), (0, 0, 3, 2), (size[1] - 1, size[0] - 1, 1, 1)):
        x, y, width, height = region
        part = np.asarray(tiny.decode_array(data, region=region)).astype(int)
        assert np.abs(part - decoded[y : y + height, x : x + width]).max() <= 1
    tensor = tiny.decode_tensors([data])[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(tensor - decoded).max() <= 1
    lazy = np.asarray(tiny.decode_raster(data, lazy=True).samples).astype(int)
    assert np.abs(lazy - decoded).max() <= 1
    # it is that of all stages
    fewer = tiny.stages - 1
    assert np.array_equal(tiny.decode_array(data, stages=fewer), tiny.decode_array(bare, stages=fewer))
    assert np.array_equal(tiny.decode_array(data, stages=tiny.stages), decoded)


@pytest.mark.parametrize("length", [0, 1, 8, 14, 40, 46])
def test_wrong_lengths(tiny: Codec, picture: Make, length: int) -> None:
    file = container.unpack(tiny.encode(picture(64, 64), 80))
    wrong = container.pack(replace(file, sections=((TAG_FILTER, bytes(length)),)))
    with pytest.raises(CorruptStream, match=f"a filter of {length} bytes"):
        tiny.decode_array(wrong)
