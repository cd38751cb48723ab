"""Large pictures in parts: read from files, decoded and written without being held."""

from __future__ import annotations

import io
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mcodec import decoding
from mcodec.api import Codec
from mcodec.cli import main as entry
from mcodec.container import Kind
from mcodec.engine import Engine
from mcodec.errors import CorruptStream, ImageError
from mcodec.image import Metadata, Raster, Strips, read_raster, save, write_image
from mcodec.image import strips as parts

Make = Callable[..., NDArray[np.uint8]]
HEIGHT, WIDTH = 70, 50


@pytest.fixture
def all_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pictures count as large ones."""
    monkeypatch.setattr(parts, "LARGE", 1)


def _peak(work: Callable[[], object]) -> int:
    """Most bytes that Python and numpy hold more than before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# ---- reading ----


def _array(grey: bool, wide: bool) -> NDArray[Any]:
    shape = (HEIGHT, WIDTH) if grey else (HEIGHT, WIDTH, 3)
    dtype = np.uint16 if wide else np.uint8
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def _ppm(path: Path, array: NDArray[Any]) -> None:
    magic = "P5" if array.ndim == 2 else "P6"
    body = array.astype(array.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(f"{magic}\n{WIDTH} {HEIGHT}\n{np.iinfo(array.dtype).max}\n".encode() + body)


TIFF: dict[str, dict[str, Any]] = {
    "plain": {"rowsperstrip": 16},
    "motorola": {"byteorder": ">"},
    "deflate": {"compression": "zlib", "predictor": True, "rowsperstrip": 16},
    "deflate-motorola": {"compression": "zlib", "rowsperstrip": 7, "byteorder": ">"},
    "lzw": {"compression": "lzw", "rowsperstrip": 16},
    "tiles": {"tile": (16, 32), "compression": "zlib"},
    "plain-tiles": {"tile": (32, 16)},
}


@pytest.mark.usefixtures("all_in_parts")
@pytest.mark.parametrize("wide", [False, True], ids=["8", "16"])
@pytest.mark.parametrize("grey", [False, True], ids=["rgb", "grey"])
@pytest.mark.parametrize("form", ["ppm", *TIFF])
def test_reading_in_parts(form: str, grey: bool, wide: bool, tmp_path: Path) -> None:
    array, path = _array(grey, wide), tmp_path / f"a.{form}"
    if form == "ppm":
        _ppm(path, array)
    else:
        tifffile = pytest.importorskip("tifffile")
        tifffile.imwrite(path, array, photometric="minisblack" if grey else "rgb", **TIFF[form])
    raster = read_raster(path)
    assert isinstance(raster.samples, Strips) and raster.size == (WIDTH, HEIGHT)
    assert raster.kind is {0: Kind.RGB8, 1: Kind.GREY8, 2: Kind.RGB16, 3: Kind.GREY16}[grey + 2 * wide]
    assert raster.samples.dtype == array.dtype
    for left, top, right, bottom in ((0, 0, 1, 1), (5, 10, 40, 60), (31, 0, 33, 70), (49, 69, 50, 70), (0, 3, 50, 5)):
        assert np.array_equal(raster.crop(left, top, right, bottom), array[top:bottom, left:right])
    assert np.array_equal(raster.array(), array)
    assert np.array_equal(np.concatenate(list(raster.bands(9))), array)
    held = read_raster(path.read_bytes())
    assert not isinstance(held.samples, Strips) and held.kind is raster.kind and held.metadata == raster.metadata


@pytest.mark.usefixtures("all_in_parts")
def test_what_is_not_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What must be converted, turned or composed, and strips as high as the picture."""
    tifffile, imagecodecs = pytest.importorskip("tifffile"), pytest.importorskip("imagecodecs")
    monkeypatch.setattr(parts, "MAX_ROWS", 32)
    rgb, grey = _array(False, False), _array(True, False)
    path = tmp_path / "a.tif"
    turned = Image.Exif()
    turned[0x0112] = 6
    alpha = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
    writers: list[Callable[[], object]] = [
        lambda: Image.fromarray(rgb).convert("CMYK").save(path),
        lambda: Image.fromarray(rgb).quantize(16).save(path),
        lambda: Image.fromarray(rgb).save(path, exif=turned),
        lambda: tifffile.imwrite(path, np.dstack([rgb, grey]), **alpha),
        lambda: tifffile.imwrite(path, np.moveaxis(rgb, 2, 0), photometric="rgb", planarconfig="separate"),
        lambda: tifffile.imwrite(path, grey, photometric="miniswhite"),
        lambda: tifffile.imwrite(path, rgb, photometric="rgb", compression="zlib", rowsperstrip=HEIGHT),
        lambda: Image.fromarray(rgb).save(path, tiffinfo={266: 2}),  # bits in the other order
        lambda: Image.fromarray(rgb).save(path, "PNG"),
        lambda: path.write_bytes(imagecodecs.png_encode(rgb.astype(np.uint16) * 250)),  # not cut to 8 bits
        lambda: path.write_bytes(b"P2\n2 2\n255\n1 2 3 4\n"),
        lambda: path.write_bytes(b"P5\n2 2\n100\n1234"),
    ]
    for write in writers:
        write()
        raster = read_raster(path)
        assert not isinstance(raster.samples, Strips)
        assert np.array_equal(raster.array(), read_raster(path.read_bytes()).array())


@pytest.mark.usefixtures("all_in_parts")
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_pipes_are_read_once(tmp_path: Path) -> None:
    """As a shell's <(...) passes them: there is no going back in them, and their size is 0."""
    array = _array(False, False)
    _ppm(tmp_path / "a.ppm", array)
    os.mkfifo(tmp_path / "pipe")
    writer = Thread(target=lambda: (tmp_path / "pipe").write_bytes((tmp_path / "a.ppm").read_bytes()))
    writer.start()
    assert np.array_equal(read_raster(tmp_path / "pipe").array(), array)
    writer.join()


@pytest.mark.usefixtures("all_in_parts")
def test_tiles_that_are_left_out(tmp_path: Path) -> None:
    tifffile, path = pytest.importorskip("tifffile"), tmp_path / "a.tif"
    array = np.zeros((64, 64), np.uint8)
    array[:16, :16] = array[16:32, 32:48] = 7
    tiles = [part if part.any() else None for row in np.split(array, 4) for part in np.split(row, 4, 1)]
    tifffile.imwrite(path, iter(tiles), shape=(64, 64), dtype=np.uint8, tile=(16, 16), compression="zlib")
    raster = read_raster(path)
    assert isinstance(raster.samples, parts.Segments) and 0 in raster.samples.page.databytecounts
    assert np.array_equal(raster.array(), array)


@pytest.mark.usefixtures("all_in_parts")
def test_damage_shows_where_it_is_read(tmp_path: Path) -> None:
    array, path = _array(False, False), tmp_path / "a.ppm"
    _ppm(path, array)
    whole = path.read_bytes()
    raster = read_raster(path)
    path.write_bytes(whole[:-1])
    with pytest.raises(ImageError, match=r"^\S*a\.ppm: the file is truncated$"):
        read_raster(path)
    assert np.array_equal(raster.crop(0, 0, WIDTH, HEIGHT - 1), array[:-1])
    with pytest.raises(ImageError, match="the file is truncated"):
        raster.array()
    path.unlink()
    with pytest.raises(ImageError, match="No such file"):
        raster.array()
    tifffile, path = pytest.importorskip("tifffile"), tmp_path / "a.tif"
    tifffile.imwrite(path, array, photometric="rgb", compression="zlib", rowsperstrip=10)
    raster = read_raster(path)
    data = bytearray(path.read_bytes())
    data[-2000:] = bytes(2000)
    path.write_bytes(data)
    assert np.array_equal(raster.crop(0, 0, WIDTH, 10), array[:10])
    with pytest.raises(ImageError, match=r"cannot read the picture .*a.tif"):
        raster.array()


def test_memory_of_reading(tmp_path: Path) -> None:
    """A window of a picture of 243 MB takes what the window does, of a compressed one a row of strips."""
    path = tmp_path / "a.ppm"
    with open(path, "wb") as file:
        file.write(b"P6\n9000 9000\n255\n")
        file.truncate(file.tell() + 243_000_000)
    raster = read_raster(path)
    assert _peak(lambda: raster.crop(5000, 5000, 6000, 6000)) < 2 * 3_000_000
    assert _peak(lambda: [band.shape for band in raster.bands(100)]) < 4 * 3_000_000
    tifffile, path = pytest.importorskip("tifffile"), tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((4096, 5000), np.uint8), compression="zlib", rowsperstrip=64)
    raster = read_raster(path)
    assert isinstance(raster.samples, parts.Segments)
    places = [(left, top) for top in range(0, 4096, 256) for left in range(0, 5000, 1000)]
    assert _peak(lambda: [raster.crop(x, y, x + 1000, y + 256).shape for x, y in places]) < 3 * 256 * 5000


# ---- writing ----


class _Made(Strips):
    """A slope that nothing holds."""

    def crop(self, left: int, top: int, right: int, bottom: int) -> Any:
        rows = (np.arange(top, bottom) % 256).astype(self.dtype)
        return np.broadcast_to(rows.reshape(-1, 1, 1), (bottom - top, right - left, 3)).copy()


@pytest.mark.parametrize("form", ["PPM", "TIFF"])
def test_memory_of_writing(form: str, tmp_path: Path) -> None:
    """Bands of 1024 rows are in memory, whatever the height."""
    path = tmp_path / f"a.{form.lower()}"
    raster = Raster(_Made((16384, 400, 3), np.uint8), Kind.RGB8)
    assert _peak(lambda: write_image(raster, path)) < 4 * 1024 * 400 * 3
    with Image.open(path) as image:
        assert image.size == (400, 16384) and image.getpixel((399, 16383)) == (255, 255, 255)


@pytest.mark.parametrize("form", ["PPM", "TIFF"])
@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name)
@pytest.mark.parametrize("alpha", [False, True], ids=["", "alpha"])
def test_what_is_written_in_bands(form: str, kind: Kind, alpha: bool) -> None:
    """Pillow and tifffile read the same samples."""
    if alpha and form == "PPM":
        pytest.skip("PPM has no alpha")
    samples = _array(kind.grey, kind.bits == 16)
    if kind is Kind.BILEVEL:
        samples = samples // 128 * 255
    plane = _array(True, kind.bits == 16)[::-1] if alpha else None
    raster, buffer = Raster(samples, kind, plane), io.BytesIO()
    save(raster, buffer, form)
    if form == "TIFF":
        found = pytest.importorskip("tifffile").imread(io.BytesIO(buffer.getvalue()))
        expected = raster.array()
        if (kind, alpha) == (Kind.GREY16, True):  # for which Pillow has no mode: as colour
            expected = expected[..., [0, 0, 0, 1]]
        assert np.array_equal(found * 255 if found.dtype == bool else found, expected)
    if (kind, alpha) == (Kind.GREY16, True):
        return  # test_image reads it back
    again = read_raster(buffer.getvalue())
    assert again.kind is (Kind.GREY8 if kind is Kind.BILEVEL and alpha else kind)
    assert np.array_equal(again.array(), raster.array())


@pytest.mark.filterwarnings("ignore:.*TIFF cannot hold EXIF that cannot be parsed:mcodec.errors.LossWarning")
def test_metadata_of_tiff(tmp_path: Path) -> None:
    """All of EXIF, with the directories below, though not what describes how another file is stored."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0142] = "Maker", 16
    exif[0x8769] = {0x829A: 0.25}
    exif[0x8825] = {1: "N", 2: (1.0, 2.0, 3.0)}
    metadata = Metadata(b"profile", exif.tobytes().removeprefix(b"Exif\0\0"), b"<x/>")
    for block, kept in ((metadata.exif, True), (b"II*\0\xff\xff\0\0", False)):
        raster = Raster(_array(False, True), Kind.RGB16, None, Metadata(metadata.icc, block, metadata.xmp))
        write_image(raster, tmp_path / "a.tif")
        with Image.open(tmp_path / "a.tif") as image:
            found = image.getexif()
            assert (image.info["icc_profile"], image.info["xmp"]) == (b"profile", b"<x/>")
            assert found.get(0x010F) == ("Maker" if kept else None) and 0x0142 not in found
            assert found.get_ifd(0x8769).get(0x829A) == (0.25 if kept else None)
            assert found.get_ifd(0x8825) == ({1: "N", 2: (1.0, 2.0, 3.0)} if kept else {})
        assert np.array_equal(read_raster(tmp_path / "a.tif").array(), raster.array())


# ---- decoding ----


@pytest.mark.parametrize("stages", [None, 2])
def test_decoding_in_bands(
    tiled: Codec, picture: Make, stages: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same pixels but for a rounding; from top to bottom every tile is read once, and few rows of them are held."""
    array = picture(64 * 7 + 20, 100)
    data = tiled.encode(array, 60)
    full = tiled.decode_array(data, stages)
    read = []
    inner = decoding.read_tiles

    def spy(engine: Engine, streams: list[bytes], *arguments: Any) -> Any:
        read.extend(streams)
        return inner(engine, streams, *arguments)

    monkeypatch.setattr(decoding, "read_tiles", spy)
    samples = tiled.decode_raster(data, stages, lazy=True).samples
    assert isinstance(samples, Strips) and samples.shape == full.shape and not read
    held = []
    for top in range(0, len(array), 64):
        band = samples.crop(0, top, 100, min(top + 64, len(array)))
        assert np.abs(band.astype(int) - full[top : top + 64]).max() <= 1
        held.append(len(samples._rows))  # type: ignore[attr-defined]
    assert len(read) == 16 and max(held) == 5  # this synthesis sees two tiles far
    part = samples.crop(30, 100, 70, 300)
    assert np.abs(part.astype(int) - full[100:300, 30:70]).max() <= 1


def test_lazy_where_it_does_not_apply(tiled: Codec, picture: Make) -> None:
    data = tiled.encode(picture(100, 130), 60)
    with pytest.raises(ValueError, match="stages must be from 1 to 4"):
        tiled.decode_raster(data, stages=5, lazy=True)
    assert isinstance(tiled.decode_raster(data, region=(0, 0, 9, 9), lazy=True).samples, np.ndarray)
    assert isinstance(tiled.decode_raster(tiled.encode(picture(9, 9)), lazy=True).samples, np.ndarray)
    end = len(data) - 4 - sum(tiled.stage_bytes(data)[2:])
    preview = tiled.decode_raster(data[:end], partial=True, lazy=True)
    assert np.abs(preview.array().astype(int) - tiled.decode_array(data, stages=2)).max() <= 1
    with pytest.raises(CorruptStream):
        tiled.decode_raster(data[:200], partial=True, lazy=True).array()


@pytest.mark.usefixtures("all_in_parts")
def test_memory_of_the_command(
    plain: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture twice as high takes little more to encode and to decode: nothing holds it."""
    monkeypatch.setattr(plain, "tile", 64)
    monkeypatch.setattr(plain, "tile_workers", 1)
    for module in ("coding", "options"):
        monkeypatch.setattr(f"mcodec.cli.{module}.load_codec", lambda *_: plain)
    monkeypatch.setattr("mcodec.image.writing.TILE", 64)
    monkeypatch.setattr(plain, "batch_pixels", 64 * 64)  # no tiles share a pass
    monkeypatch.setattr("mcodec.container.TILE", 64)
    source, coded, copy = (tmp_path / name for name in ("a.ppm", "a.mci", "copy.ppm"))
    peaks = []
    for height in (64, 320, 640):  # the first imports what is needed
        array = np.broadcast_to((np.arange(height) % 200).astype(np.uint8)[:, None, None], (height, 64, 3))
        source.write_bytes(f"P6\n64 {height}\n255\n".encode() + array.tobytes())
        run = [["encode", str(source), str(coded), "-q", "1", "--force"], ["decode", str(coded), str(copy), "--force"]]
        peaks.append([_peak(lambda arguments=command: entry.run(arguments)) for command in run])
        assert "error" not in capsys.readouterr().err and read_raster(copy).size == (64, height)
    added = 320 * 64 * 3
    assert all(high - low < added / 3 for low, high in zip(*peaks[1:], strict=True)), peaks
