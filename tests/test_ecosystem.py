"""Around the codec: Pillow plugin, `mcodec.read`, iterators, rate control, Ray."""

from __future__ import annotations

import io
import math
import mimetypes
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, ImageSequence

from mcodec import container, reading, weights
from mcodec.api import Codec
from mcodec.container import describe
from mcodec.errors import TargetError
from mcodec.image import Raster, to_raster
from mcodec.rate import MEASURES, Target, encode_to, measure, search

Make = Callable[..., NDArray[np.uint8]]


@pytest.fixture
def plugin(tiny: Codec, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plugin and `mcodec.read` with the tiny model."""
    import mcodec.pillow

    monkeypatch.setattr(mcodec.pillow, "default_codec", lambda *_, **__: tiny)
    monkeypatch.setattr(reading, "default_codec", lambda *_: tiny)
    yield


# ---- Ray ----


def test_ray_decodes_by_the_weights_that_files_name(
    tiny: Codec, model: Path, picture: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of former releases beside those of the present one; what an earlier step could not do keeps its reason."""
    import mcodec.ray

    monkeypatch.setenv("MCODEC_WEIGHTS", str(model.parent))
    other = Codec(*weights.load(model))
    array = picture(20, 30)
    items = [tiny.encode(array), None, other.encode(array), b"none"]
    column, reasons = np.empty(4, object), np.empty(4, object)
    column[:], reasons[1] = items, "no picture"
    monkeypatch.setattr("mcodec.ray.load", lambda *_: tiny)
    found = mcodec.ray.Decode("mci", device="cpu")({"mci": column, "error": reasons})
    assert np.array_equal(found["image"][0], tiny.decode(items[0] or b""))
    assert np.array_equal(found["image"][2], other.decode(items[2] or b""))
    assert list(found["error"][:3]) == [None, "no picture", None] and "magic" in found["error"][3]
    (tmp_path / "other.mci").write_bytes(items[2] or b"")
    held = np.empty(2, object)
    held[:] = tmp_path / "other.mci", memoryview(items[2] or b"")
    again = mcodec.ray.Decode("mci", device="cpu")({"mci": held})
    assert all(np.array_equal(image, found["image"][2]) for image in again["image"])
    named = mcodec.ray.Decode("mci", model="tiny", device="cpu")({"mci": column[2:3]})  # what is named is taken
    assert "made by weights" in named["error"][0]
    (tmp_path / "tiny.safetensors").write_bytes(model.read_bytes()[:-9])  # damaged ones are a matter of their files
    (tmp_path / "tiny.json").write_bytes(model.with_suffix(".json").read_bytes())
    monkeypatch.setenv("MCODEC_WEIGHTS", str(tmp_path))
    found = mcodec.ray.Decode("mci", device="cpu")({"mci": column[::2]})
    assert found["error"][0] is None and "SHA-256" in found["error"][1]


def test_files_from_a_buffer_that_is_filled_again(tiny: Codec, picture: Make) -> None:
    files = [tiny.encode(picture(20, 30, seed)) for seed in range(6)]
    buffer = bytearray(max(map(len, files)))

    def filled() -> Iterator[memoryview]:
        for file in files:
            buffer[: len(file)] = file
            yield memoryview(buffer)[: len(file)]

    found = list(tiny.decode_iter(filled()))
    assert all(np.array_equal(r.value, tiny.decode(file)) for r, file in zip(found, files, strict=True))


# ---- Pillow ----


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "I;16"])
def test_plugin(mode: str, tiny: Codec, picture: Make, tmp_path: Path) -> None:
    image = Image.fromarray(picture(40, 50))
    image = Image.fromarray(picture(40, 50)[..., 0].astype(np.uint16) * 200) if mode == "I;16" else image.convert(mode)
    path = tmp_path / "a.mci"
    image.save(path, quality=70)
    assert path.read_bytes() == tiny.encode(image, 70)
    with Image.open(path) as found:
        assert (found.format, found.mode, found.size) == ("MCI", mode, (50, 40))
        file = found.fp
        assert np.array_equal(np.asarray(found), np.asarray(tiny.decode(path.read_bytes())))
        assert file is not None and file.closed
    assert Image.MIME["MCI"] == "image/x-mci" and mimetypes.guess_type(path) == ("image/x-mci", None)


@pytest.mark.usefixtures("plugin")
def test_plugin_metadata_and_damage(picture: Make, tiny: Codec) -> None:
    image = Image.fromarray(picture(40, 50))
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    buffer = io.BytesIO()
    image.save(buffer, "MCI", exif=exif, icc_profile=b"profile")
    found = Image.open(buffer)
    assert found.size == (40, 50)  # upright, as the tag asks
    assert found.info["icc_profile"] == b"profile" and found.getexif()[0x010F] == "Maker"
    assert ImageOps.exif_transpose(found).size == (40, 50)
    found.save(buffer := io.BytesIO(), "MCI", exif=b"", icc_profile=None)
    assert not {"exif", "icc_profile"} & set(Image.open(buffer).info)
    with pytest.raises(OSError, match="truncated"):
        Image.open(io.BytesIO(buffer.getvalue()[:-9]))
    other = Codec(tiny.model, b"otherone").encode(picture(9, 9))
    with pytest.raises(OSError, match="made by weights"):
        Image.open(io.BytesIO(other)).load()
    with pytest.raises(OSError, match="70000"):
        Image.new("L", (70000, 1)).save(io.BytesIO(), "MCI")


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.jpg"])
def test_plugin_keeps_what_a_file_says(name: str, orientation: int, picture: Make, tmp_path: Path) -> None:
    """Unless an option replaces it."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0112], exif[0x8769] = "Maker", orientation, {0x829A: 0.25}
    Image.fromarray(picture(40, 50)).save(tmp_path / name, exif=exif.tobytes())
    other = Image.Exif()
    other[0x010F] = "Other"
    for option, maker in (({}, "Maker"), ({"exif": other}, "Other")):
        with Image.open(tmp_path / name) as image:
            image.save(tmp_path / "a.mci", **option)
        with Image.open(tmp_path / "a.mci") as found:
            kept = found.getexif()
            assert kept[0x010F] == maker and kept.get(0x0112, 1) == 1
            assert kept.get_ifd(0x8769) == ({} if option else {0x829A: 0.25})
            turned = orientation == 6 and (not option or name == "a.tif")  # Pillow turns TIFF files itself
            assert found.size == ((40, 50) if turned else (50, 40))


@pytest.mark.usefixtures("plugin")
def test_plugin_goes_by_the_limit_of_pillow(picture: Make, tiny: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny.encode(picture(20, 30))
    file = container.unpack(data)
    bomb = container.pack(replace(file, header=replace(file.header, width=16384, height=16384)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2**26)  # a command of another test may have raised it
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(bomb))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(data))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert Image.open(io.BytesIO(data)).load() is not None
    with pytest.raises(OSError, match="table"):  # of 256 tiles; no limit of ours comes before it
        Image.open(io.BytesIO(bomb)).load()


def test_plugin_in_a_fresh_interpreter(tmp_path: Path) -> None:
    """With the released weights; opening alone does not load torch."""
    script = (
        "import sys, mcodec.pillow; from PIL import Image; image = Image.new('RGB', (70, 50), 'teal'); "
        "image.save('a.mci', quality=60); assert Image.open('a.mci').load()[5, 5][0] < 30; "
    )
    opening = "import sys, mcodec.pillow; from PIL import Image; assert Image.open('a.mci').size == (70, 50); "
    for code in (script, opening + "assert 'torch' not in sys.modules"):
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("plugin")
def test_imageio(picture: Make, tiny: Codec, tmp_path: Path) -> None:
    """It asks Pillow, which knows the format."""
    imageio = pytest.importorskip("imageio.v3")
    array, path = picture(40, 50), tmp_path / "a.mci"
    imageio.imwrite(path, array, quality=70)
    assert path.read_bytes() == tiny.encode(array, 70)
    assert np.array_equal(imageio.imread(path), tiny.decode_array(path.read_bytes()))
    assert imageio.improps(path).shape == (40, 50, 3)


@pytest.mark.usefixtures("plugin")
def test_read(tiny: Codec, picture: Make, tmp_path: Path) -> None:
    import mcodec

    data = tiny.encode(picture(40, 50))
    path = tmp_path / "a.mci"
    path.write_bytes(data)
    expected = np.asarray(tiny.decode(data))
    assert np.array_equal(np.asarray(mcodec.read(path)), expected)
    assert mcodec.read(str(path), region=(3, 4, 5, 6)).size == (5, 6)
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://a.mci", "wb") as file:
        file.write(data)
    assert np.array_equal(np.asarray(mcodec.read("memory://a.mci")), expected)
    with pytest.raises(FileNotFoundError):
        mcodec.read(tmp_path / "none.mci")


# ---- iterators ----


def test_iterators(tiny: Codec, picture: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order is kept over several micro-batches; each bad item has its own error."""
    monkeypatch.setattr("mcodec.batch.BATCH_ITEMS", 3)
    Image.fromarray(picture(20, 30, 7)).save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_text("no pixels")
    items = [picture(20 + i, 30, i) for i in range(5)]
    items += [tmp_path / "a.png", tmp_path / "bad.png", str(tmp_path / "none.png"), np.zeros((2, 2), np.float32)]
    items += [memoryview((tmp_path / "a.png").read_bytes()), np.zeros((1, 70000, 3), np.uint8), picture(9, 9)]
    results = list(tiny.encode_iter(iter(items), 60))
    assert all(r.source is item for r, item in zip(results, items, strict=True))
    failed = {i: type(r.error).__name__ for i, r in enumerate(results) if r.error}
    assert failed == {6: "ImageError", 7: "ImageError", 8: "ValueError", 10: "LimitExceeded"}
    assert results[0].value == tiny.encode(items[0], 60) and results[5].value == results[9].value
    files = [r.value for r in results if r.value is not None]
    decoded = list(tiny.decode_iter([*files, files[0][:-5], b"", tmp_path / "a.png"]))
    sizes = [(fields["width"], fields["height"]) for fields in map(describe, files)]
    assert [r.value.size for r in decoded if r.value] == sizes
    assert [type(r.error).__name__ for r in decoded[-3:]] == ["CorruptStream", "NotAnMciFile", "NotAnMciFile"]
    with pytest.raises(ValueError, match="quality"):
        tiny.encode_iter([], 0)
    with pytest.raises(ValueError, match="metadata"):
        tiny.encode_iter([], metadata="some")
    assert list(tiny.encode_iter([])) == []


def test_iterators_keep_what_is_no_picture_to_its_item(
    tiny: Codec, picture: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Image.new("RGB", (8, 8))

    def load() -> None:
        raise SyntaxError("broken PNG file")  # what Pillow raises for some

    monkeypatch.setattr(opened, "load", load)
    results = list(tiny.encode_iter([None, 3, opened, picture(9, 9)]))
    assert [r.error is None for r in results] == [False, False, False, True]
    good = results[-1].value
    assert good is not None
    decoded = list(tiny.decode_iter([None, 3, memoryview(good), good]))
    assert [r.error is None for r in decoded] == [False, False, True, True]


def test_iterators_take_pictures_as_they_are_when_drawn(tiny: Codec, picture: Make, tmp_path: Path) -> None:
    """An array that is filled again, a tensor, and frames that come as one object."""
    frames = [picture(24, 32, index) for index in range(6)]
    stored = tmp_path / "frames.tif"
    Image.fromarray(frames[0]).save(stored, save_all=True, append_images=[Image.fromarray(f) for f in frames[1:]])

    def arrays() -> Iterator[object]:
        buffer = np.empty_like(frames[0])
        for frame in frames:
            buffer[:] = frame
            yield buffer

    def tensors() -> Iterator[object]:
        buffer = torch.empty(3, 24, 32, dtype=torch.uint8)
        for frame in frames:
            yield buffer.copy_(torch.from_numpy(frame).permute(2, 0, 1))

    expected = [tiny.encode(frame) for frame in frames]
    with Image.open(stored) as opened:
        for items in (arrays(), tensors(), ImageSequence.Iterator(opened)):
            assert [result.value for result in tiny.encode_iter(items)] == expected


def test_iterators_go_on_behind_what_memory_does_not_hold(
    tiny: Codec, picture: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torch raises on CPUs and GPUs, and numpy; an error of the program ends the iteration."""
    small, large = picture(16, 16), picture(64, 64)
    encode = Codec.encode_batch
    raised: list[Exception] = []

    def full(codec: Codec, images: list[Raster], *more: Any, **options: Any) -> list[bytes]:
        if any(image.size == (64, 64) for image in images):
            raise raised[0]
        return encode(codec, images, *more, **options)

    monkeypatch.setattr(Codec, "encode_batch", full)
    for error in (MemoryError(), RuntimeError("CUDA out of memory."), RuntimeError("can't allocate memory: 8 bytes")):
        raised[:] = [error]
        results = list(tiny.encode_iter([small, large, small]))
        assert [r.error for r in results] == [None, error, None] and results[0].value == results[2].value
        assert error.__traceback__ is None  # which holds what was in work
    raised[:] = [RuntimeError("shapes do not match")]
    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(tiny.encode_iter([small, large]))


def test_workers_of_a_data_loader_read_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str | None, str]] = []
    monkeypatch.setattr(reading, "_loaded", lambda model, device: asked.append((model, device)))
    reading.default_codec()
    monkeypatch.setattr("torch.utils.data.get_worker_info", lambda: object())
    reading.default_codec()
    reading.default_codec("cascade", "cuda")
    assert asked == [(None, "auto"), (None, "cpu"), ("cascade", "cuda")]


def test_an_iteration_that_is_given_up_reads_no_further(tiny: Codec, picture: Make) -> None:
    taken = 0

    def items() -> Iterator[object]:
        nonlocal taken
        for index in range(1000):
            taken += 1
            yield picture(16, 16, index)

    results = tiny.encode_iter(items(), readers=2)
    assert next(results).error is None
    results.close()  # type: ignore[attr-defined]
    assert taken < 200


# ---- rate ----


@pytest.mark.parametrize("effort", [1, 4])
@pytest.mark.parametrize("name", MEASURES[:3])
def test_targets(name: str, effort: int, plain: Codec, picture: Make) -> None:
    raster = to_raster(picture(100, 120))
    ends = [measure(plain, raster, plain.encode(raster, q), name) for q in (1, 100)]
    value = ends[0] + 0.4 * (ends[1] - ends[0])
    data, quality = encode_to(plain, raster, Target(name, value), effort=effort)
    missed = measure(plain, raster, data, name) - value
    assert abs(missed) <= (0.2 if name == "psnr" else 0.021 * value)  # what the README says: 2 %, of a logarithm
    either = [plain.encode(raster, quality, effort=e) for e in (effort, 1)]  # 1 where no quality of 4 reaches it
    assert data in (either if name == "psnr" else either[:1])


def test_unreachable_targets(plain: Codec, picture: Make) -> None:
    raster = to_raster(picture(60, 60))
    smallest = len(plain.encode(raster, 1))
    with pytest.raises(TargetError, match=f"no quality gives 50 bytes: the nearest is {smallest}, at quality 1"):
        encode_to(plain, raster, Target("bytes", 50))
    with pytest.raises(TargetError, match="no quality gives 90 psnr: the nearest is "):
        encode_to(plain, raster, Target("psnr", 90))
    best = measure(plain, raster, plain.encode(raster, 100), "psnr")
    with pytest.raises(TargetError, match="no quality gives"):
        encode_to(plain, raster, Target("psnr", best + 0.5))
    for measure_, value in (("bytes", 0), ("bpp", -1), ("ms-ssim", 1), ("psnr", math.inf), ("size", 1)):
        with pytest.raises(ValueError, match="a target"):
            Target(measure_, value)


def test_ms_ssim(plain: Codec, picture: Make) -> None:
    pytest.importorskip("pytorch_msssim")
    array = picture(170, 180)
    raster = to_raster(array)
    values = [measure(plain, raster, plain.encode(raster, q), "ms-ssim") for q in (1, 60)]
    assert 0 < values[0] < values[1] < 1
    target = sum(values) / 2
    data, _ = encode_to(plain, raster, Target("ms-ssim", target))
    reached = measure(plain, raster, data, "ms-ssim")
    assert abs(math.log((1 - reached) / (1 - target))) <= 0.1
    with pytest.raises(TargetError, match="nearest is 0"):
        encode_to(plain, raster, Target("ms-ssim", 0.99999))
    with pytest.raises(TargetError, match="sides of 161 pixels"):
        measure(plain, to_raster(picture(160, 180)), plain.encode(picture(160, 180)), "ms-ssim")


@pytest.mark.parametrize("curve", [lambda x: 100 * 1.03**x, lambda x: 100 + x, lambda x: 100 + x * x / 50], ids="abc")
def test_search_finds_the_nearest_level_in_few_steps(curve: Callable[[int], float]) -> None:
    for level in (1, 40, 128, 200, 253):
        values = search(curve, Target("psnr", curve(level) + 0.01))
        assert min(values, key=lambda at: abs(values[at] - curve(level) - 0.01)) == level
        assert len(values) <= 18


def test_search_copes_with_a_fall_at_the_end() -> None:
    """Above some quality a picture may get worse again."""

    def curve(level: int) -> float:
        return 30 + level / 20 if level < 200 else 40 - (level - 200) / 10

    values = search(curve, Target("psnr", 38.5))
    assert min(abs(v - 38.5) for v in values.values()) < 0.06


# ---- Ray ----


def test_ray_workers_without_a_cluster(picture: Make, tiny: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker does with a batch."""
    import mcodec.ray

    monkeypatch.setattr("mcodec.ray.load", lambda *_: tiny)
    buffer = io.BytesIO()
    Image.fromarray(picture(20, 30)).save(buffer, "PNG")
    batch = {"bytes": np.array([buffer.getvalue(), b"no picture"], object), "path": np.array(["a", "b"])}
    coded = mcodec.ray.Encode(quality=60)(batch)
    assert coded["mci"][0] == tiny.encode(picture(20, 30), 60) and coded["mci"][1] is None
    assert coded["error"][0] is None and "unknown format" in coded["error"][1]
    decoded = mcodec.ray.Decode(column="mci")({"mci": coded["mci"][:1]})
    assert np.array_equal(decoded["image"][0], np.asarray(tiny.decode(coded["mci"][0])))
