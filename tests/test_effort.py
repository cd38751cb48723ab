"""Encoder-side search: files of a higher effort cost no more and decode like any other."""

from __future__ import annotations

import copy
import io
import re
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from settings import SETTINGS, setting
from tiny import TINY, TINY_UMGM, lively

from mcodec import rate
from mcodec.api import Codec
from mcodec.errors import CodecError
from mcodec.image import to_raster
from mcodec.model import Cascade, level_of
from mcodec.model.search import STEPS, Search, steps_of
from mcodec.rate import Found, Target, find, search

Make = Callable[..., NDArray[np.uint8]]


def cost(codec: Codec, array: NDArray[np.uint8], data: bytes, quality: float) -> float:
    """J = lambda * 255^2 * squared error + bits, of a file; the sum over pixels."""
    decoded = codec.decode_array(data).astype(np.float64)
    pixels = array.shape[0] * array.shape[1]
    error = float(np.square(decoded - array).mean()) * pixels
    return codec.model.config.lam(level_of(quality)) * error + 8 * len(data)


def cost_in_similarity(codec: Codec, array: NDArray[np.uint8], data: bytes, quality: float) -> float:
    """J = lambda * 1250 * (1 - MS-SSIM) + bits, edges repeated up to 161 pixels."""
    pixels, missing = array.shape[0] * array.shape[1], [(0, max(0, 161 - side)) for side in array.shape[:2]]
    pairs = (
        np.pad(x.reshape(*x.shape[:2], -1), [*missing, (0, 0)], mode="edge") for x in (array, codec.decode_array(data))
    )
    error = 1 - rate.ms_ssim(*pairs, 255)
    return 1250 * codec.model.config.lam(level_of(quality)) * error * pixels + 8 * len(data)


@pytest.fixture
def similar(plain: Codec) -> Codec:
    """A codec with weights that count MS-SSIM."""
    codec = Codec(copy.deepcopy(plain.model), plain.fingerprint)
    codec.model.config = replace(codec.model.config, distortion="ms-ssim")
    return codec


@pytest.mark.parametrize("shape", [(1, 1, 3), (50, 70), (64, 64, 3)], ids=str)
def test_costs_fall(plain: Codec, picture: Make, shape: tuple[int, ...]) -> None:
    """Never above effort 1, and on pictures of some size below it; grey as well."""
    check_costs(plain, picture, shape, cost)


@pytest.mark.parametrize("shape", [(1, 1, 3), (50, 70), (170, 200, 3)], ids=str)
def test_costs_fall_in_similarity(similar: Codec, picture: Make, shape: tuple[int, ...]) -> None:
    """As those in squared error do, of pictures that are too small for MS-SSIM as well."""
    pytest.importorskip("pytorch_msssim")
    check_costs(similar, picture, shape, cost_in_similarity)


def check_costs(codec: Codec, picture: Make, shape: tuple[int, ...], cost: Callable[..., float]) -> None:
    least, most = [], []
    for seed, quality in enumerate((10, 30)):
        array = picture(*shape[:2], seed)
        array = array[:, :, 0].copy() if len(shape) == 2 else array
        first, *others = (cost(codec, array, codec.encode(array, quality, effort=e), quality) for e in (1, 4, 9))
        assert max(others) <= first * (1 + 1e-6)
        least.append(others[0] / first)
        most.append(others[1] / first)
    if shape[0] > 1:  # of a pixel, the rounding of its samples decides
        assert np.mean(most) <= np.mean(least)
        assert np.mean(most) < 0.999


def test_similarity_takes_its_library(similar: Codec, picture: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_msssim", None)
    assert similar.encode(picture(40, 40))
    with pytest.raises(CodecError, match="pip install pytorch-msssim"):
        similar.encode(picture(40, 40), effort=2)


def test_effort_1_is_the_default_and_searches_nothing(
    tiny: Codec, picture: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = picture(60, 80)
    data = tiny.encode(array, 60, effort=4)

    def never(*_: object) -> None:
        raise AssertionError("searched")

    monkeypatch.setattr(Search, "__init__", never)
    assert tiny.encode(array, 60) == tiny.encode(array, 60, effort=1)
    with pytest.raises(AssertionError):
        tiny.encode(array, 60, effort=4)
    monkeypatch.undo()
    assert tiny.encode(array, 60, effort=4) == data  # and a search gives the same again


@pytest.mark.parametrize("name", list(SETTINGS)[1::3], ids=str)
def test_codes_decode_on_every_setting(tiny: Codec, picture: Make, name: str) -> None:
    """Whatever encodes, the reference decodes the same codes."""
    with setting(tiny, name):
        data = tiny.encode(picture(50, 70), 60, effort=3)
        codes = tiny.codes(data)
    assert all(torch.equal(a, b) for a, b in zip(codes, tiny.codes(data), strict=True))


def test_batches_and_tiles(plain: Codec, picture: Make) -> None:
    tiled = Codec(plain.model, plain.fingerprint)
    tiled.tile = 64
    arrays = [picture(100, 150, 1), picture(100, 150, 2), picture(40, 30, 3)]
    for codec in (plain, tiled):
        files = codec.encode_batch(arrays, [30, 60, 80], effort=5)
        fast = codec.encode_batch(arrays, [30, 60, 80])
        for array, quality, one, other in zip(arrays, (30, 60, 80), files, fast, strict=True):
            assert codec.decode(one).size == array.shape[1::-1]
            assert cost(codec, array, one, quality) < 1.001 * cost(codec, array, other, quality)
        assert files != fast


def test_padding_costs_nothing(plain: Codec, picture: Make) -> None:
    """What lies beyond the picture has a rate but no error."""
    x = torch.from_numpy(picture(64, 64)).permute(2, 0, 1)[None] / 255 - 0.5
    level = torch.tensor([120.0])
    codes: list[torch.Tensor] = []

    def nothing(index: int, latents: torch.Tensor, *_: object) -> torch.Tensor:
        codes.append(torch.zeros_like(latents[:, :: TINY.stages[index].dim], dtype=torch.int64))
        return codes[-1]

    plain.model.encode(x, level, nothing)
    moves = [torch.zeros(1)] * plain.stages
    left = Search(plain.model, x, level, [(64, 32)], [False], moves).latents(codes, 8)
    other = x.clone()
    other[..., 32:] = 0.3
    again = Search(plain.model, other, level, [(64, 32)], [False], moves).latents(codes, 8)
    whole = Search(plain.model, other, level, [(64, 64)], [False], moves).latents(codes, 8)
    assert all(torch.equal(left[i], again[i]) for i in left)
    assert any(not torch.equal(left[i], whole[i]) for i in left)


def test_weights_without_a_conditional_prior(picture: Make) -> None:
    torch.manual_seed(0)
    codec = Codec(Cascade(TINY_UMGM), b"tinyumgm")
    array = picture(50, 40)
    assert codec.encode(array, effort=9) == codec.encode(array)


def test_unknown_efforts(tiny: Codec, picture: Make) -> None:
    assert [steps_of(e) for e in range(1, 10)] == sorted(STEPS) and STEPS[0] == 0
    for effort in (0, 10, 2.5, "3"):
        with pytest.raises(ValueError, match="effort must be a whole number from 1 to 9"):
            tiny.encode(picture(8, 8), effort=effort)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="effort must be a whole number from 1 to 9"):
            find(tiny, picture(8, 8), Target("bytes", 500), effort=effort)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="effort"):
        tiny.encode_iter([], effort=0)


def test_targets_fall_back(plain: Codec, picture: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a higher effort leaves the target, qualities beside it are tried, then the file of effort 1 is taken."""
    raster = to_raster(picture(60, 60))
    encode, asked = plain.encode, []

    def larger(image: object, quality: float, metadata: str = "all", effort: int = 1) -> bytes:
        asked.append((quality, effort))
        return encode(raster, quality, metadata) + bytes(1000 if effort > 1 else 0)

    monkeypatch.setattr(plain, "encode", larger)
    monkeypatch.setattr(rate, "measure", lambda codec, original, data, name: float(len(data)))
    target = Target("bytes", float(len(encode(raster, 60))))
    data, quality, effort, _ = find(plain, raster, target, effort=7)
    assert data == encode(raster, quality) and effort == 1
    searched = [quality for quality, effort in asked if effort == 7]
    assert 1 < len(searched) <= rate.TURNS and searched[0] == quality
    assert searched == sorted(set(searched), reverse=True)


def test_no_quality_is_searched_twice(plain: Codec, picture: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the highest quality there is none beside it that would make up for a smaller file."""
    raster = to_raster(picture(60, 60))
    encode, asked = plain.encode, []

    def smaller(image: object, quality: float, metadata: str = "all", effort: int = 1) -> bytes:
        asked.append((quality, effort))
        data = encode(raster, quality, metadata)
        return data[: len(data) // 2] if effort > 1 else data

    monkeypatch.setattr(plain, "encode", smaller)
    target = Target("bytes", float(len(encode(raster, 100))))
    assert find(plain, raster, target, effort=9) == Found(encode(raster, 100), 100, 1, len(encode(raster, 100)))
    assert [quality for quality, effort in asked if effort == 9] == [100]


def test_search_reaches_a_perfect_similarity() -> None:
    values = search(lambda level: min(1.0, 0.9 + level / 1000), Target("ms-ssim", 0.95))
    assert values[50] == pytest.approx(0.95) and 1.0 in values.values()


def test_pillow_takes_an_effort(picture: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import mcodec.pillow as plugin

    codec = Codec(lively(TINY), b"tinytiny")
    monkeypatch.setattr(plugin, "default_codec", lambda *_, **__: codec)
    image, file = Image.fromarray(picture(40, 50)), io.BytesIO()
    image.save(file, "MCI", quality=70, effort=3)
    assert file.getvalue() == codec.encode(image, 70, effort=3)


def test_bench(plain: Codec, picture: Make) -> None:
    from mcodec.bench.effort import measure as measured
    from mcodec.bench.effort import table

    arrays, seen = [picture(64, 64, seed) for seed in range(2)], []
    found = measured(plain, arrays, (1, 5), (20, 60, 90), seen.append)
    assert [one.effort for one in found] == [1, 5] and seen == [1] * 6 + [5] * 6
    rows = table(found).splitlines()
    # whether an untrained model gains is chance: what the search lowers is tested above
    assert len(rows) == 4 and rows[2].startswith("| 1 | +0.0 %") and re.match(r"\| 5 \| [+-]\d+\.\d % \|", rows[3])
    assert "(PSNR)" in rows[0]


def test_bench_measures_what_weights_are_for(similar: Codec, picture: Make) -> None:
    pytest.importorskip("pytorch_msssim")
    from mcodec.bench.effort import measure as measured
    from mcodec.bench.effort import table
    from mcodec.errors import BenchError

    array = picture(161, 161)
    found = measured(similar, [array], (1,), (20, 60))
    fidelity = [rate.ms_ssim(array, similar.decode_array(similar.encode(array, q)), 255) for q in (20, 60)]
    assert found[0].curve.quality == pytest.approx([-10 * np.log10(1 - value) for value in fidelity])
    assert "(MS-SSIM)" in table(found)
    with pytest.raises(BenchError, match="too small for MS-SSIM"):
        measured(similar, [picture(160, 161)], (1,), (20, 60))


@pytest.mark.parametrize(
    ("qualities", "said"),
    [((0, 50), "quality must be from 1 to 100, got 0"), ((50,), "at least two"), ((50, 80, 50.01), "of the same")],
)
def test_bench_refuses_qualities_before_it_measures(
    qualities: tuple[float, ...], said: str, tiny: Codec, picture: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mcodec.bench.effort import measure as measured
    from mcodec.errors import BenchError

    monkeypatch.setattr(Codec, "encode", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(BenchError, match=said):
        measured(tiny, [picture(32, 32)], (1, 2), qualities)


def test_bench_keeps_times_of_curves_that_are_not_compared() -> None:
    from mcodec.bench.bd import Curve
    from mcodec.bench.effort import Measured, table

    flat = Curve([0.1, 0.2], [30.0, 30.5])
    rows = table([Measured(1, flat, 2.0), Measured(9, flat, 5.0)]).splitlines()
    assert rows[3] == "| 9 | not compared: the curves overlap from 30.00 to 30.50 only | 5.0 | 2.5 |"


def test_bench_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from mcodec.bench.codecs import make
    from mcodec.errors import BenchError

    assert make("mcodec@5").settings.endswith(", effort 5") and make("mcodec@5").name == "mcodec@5"
    assert "effort" not in make("mcodec").settings
    for wrong in ("mcodec@0", "mcodec@10", "mcodec@x", "jpeg@2"):
        with pytest.raises(BenchError):
            make(wrong)
