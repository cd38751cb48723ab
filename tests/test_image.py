"""Pictures in and out: modes, orientation, metadata, alpha, files."""

from __future__ import annotations

import io
import re
import struct
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from mcodec import container
from mcodec.api import Codec
from mcodec.cli import many
from mcodec.container import Kind
from mcodec.errors import CorruptStream, ImageError, LossWarning
from mcodec.files import write_bytes
from mcodec.image import (
    Metadata,
    Raster,
    TensorSamples,
    alpha,
    read_image,
    read_raster,
    to_raster,
    write_image,
    writes_to,
)
from mcodec.image.pixels import from_tensor, to_tensor, to_uint8, window_tensor
from mcodec.image.raster import eight_bits


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 16, 64]))
def test_padding_and_back(height: int, width: int, multiple: int) -> None:
    array = np.random.default_rng(height * 41 + width).integers(0, 256, (height, width, 3)).astype(np.uint8)
    tensor = to_tensor(array, multiple)
    assert tensor.shape[2] % multiple == 0 and tensor.shape[3] % multiple == 0
    assert torch.equal(tensor[0, :, -1, -1], tensor[0, :, height - 1, width - 1])  # edges are repeated
    assert np.array_equal(from_tensor(tensor[0], height, width), array)


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from(list(Kind)))
def test_kinds_and_back(height: int, width: int, kind: Kind) -> None:
    depth = np.uint16 if kind.bits == 16 else np.uint8
    shape = (height, width) if kind.grey else (height, width, 3)
    array = np.random.default_rng(height * 9 + width).integers(0, np.iinfo(depth).max, shape, depth, endpoint=True)
    if kind is Kind.BILEVEL:
        array = array // 128 * 255
    tensor = to_tensor(array, 8)
    assert tensor.shape[1] == 3
    assert np.array_equal(from_tensor(tensor[0], height, width, kind), array)
    upper = to_uint8(tensor[0], height, width, kind).permute(1, 2, 0).numpy()
    assert np.array_equal(upper, np.broadcast_to(eight_bits(array).reshape(height, width, -1), (height, width, 3)))


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 16, 64]), st.sampled_from([1, 3]))
def test_padding_where_a_tensor_lies(height: int, width: int, multiple: int, channels: int) -> None:
    """Samples that lie in a tensor become what arrays become."""
    array = np.random.default_rng(height * 41 + width).integers(0, 256, (height, width, channels)).astype(np.uint8)
    samples = TensorSamples(torch.from_numpy(array).permute(2, 0, 1))
    box = (width // 3, height // 2, width, height)
    found = window_tensor(Raster(samples, Kind.RGB8), box, multiple, torch.device("cpu"))
    assert torch.equal(found, to_tensor(samples.crop(*box), multiple))


@pytest.mark.parametrize(
    "mode, kind, out",
    [
        ("1", Kind.BILEVEL, "1"),
        ("L", Kind.GREY8, "L"),
        ("LA", Kind.GREY8, "LA"),
        ("P", Kind.GREY8, "L"),
        ("RGB", Kind.RGB8, "RGB"),
        ("RGBA", Kind.RGB8, "RGBA"),
        ("CMYK", Kind.RGB8, "RGB"),
        ("YCbCr", Kind.RGB8, "RGB"),
        ("HSV", Kind.RGB8, "RGB"),
        ("I;16", Kind.GREY16, "I;16"),
        ("I", Kind.GREY16, "I;16"),
        ("F", Kind.GREY8, "L"),
    ],
)
def test_modes(mode: str, kind: Kind, out: str) -> None:
    if mode in ("I;16", "I"):
        image = Image.fromarray(np.full((3, 5), 200 << 8, np.uint16 if mode == "I;16" else np.int32))
    elif mode in ("YCbCr", "HSV"):
        image = Image.new("RGB", (5, 3), (200, 200, 200)).convert(mode)
    else:
        image = Image.new("L", (5, 3), 200).convert(mode)
    raster = to_raster(image)
    assert raster.size == (5, 3) and raster.kind is kind
    assert np.asarray(raster.samples)[1, 2].ravel()[0] == {"1": 255, "I;16": 200 << 8, "I": 200 << 8}.get(mode, 200)
    assert (raster.alpha is not None) == mode.endswith("A")
    assert raster.image().mode == out
    assert bool(raster.notes) == (mode in ("P", "CMYK", "YCbCr", "HSV", "F")) or mode == "CMYK"


@pytest.mark.parametrize("name", ["a.pgm", "a.png", "a.tif"])
def test_16_bit_grey_files(name: str, tmp_path: Path) -> None:
    grey = np.array([[51200, 25855, 0]], np.uint16)
    if name == "a.pgm":
        (tmp_path / name).write_bytes(b"P5 3 1 65535\n" + grey.astype(">u2").tobytes())
    else:
        Image.fromarray(grey).save(tmp_path / name)
    raster = read_raster(tmp_path / name)
    assert raster.kind is Kind.GREY16 and np.array_equal(raster.samples, grey)


def test_12_bit_grey_tiff() -> None:
    """Scaled like those of a PGM file: on the scale of 16 bits it would be all but black."""
    grey = np.random.default_rng(0).integers(0, 4096, (3, 8))
    first, second = grey[:, ::2].ravel(), grey[:, 1::2].ravel()
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()
    tags = ((256, 3, 8), (257, 3, 3), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 3, 3))
    rows = b"".join(struct.pack("<HHII", tag, form, 1, value) for tag, form, value in (*tags, (279, 4, len(packed))))
    head = b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed
    raster = read_raster(head + struct.pack("<H", len(tags) + 1) + rows + bytes(4))
    assert raster.kind is Kind.GREY16 and np.abs(np.asarray(raster.samples) - grey * (65535 / 4095)).max() <= 0.5


@pytest.mark.parametrize("name, channels", [("a.png", 2), ("a.png", 3), ("a.png", 4), ("a.tif", 3), ("a.tif", 4)])
def test_16_bit_files(name: str, channels: int, tmp_path: Path) -> None:
    pytest.importorskip("imagecodecs")
    pytest.importorskip("tifffile")
    array = np.random.default_rng(0).integers(0, 65536, (5, 7, channels)).astype(np.uint16)
    raster = to_raster(array)
    metadata = Metadata(icc=b"profile", xmp=b"<x:xmpmeta/>")
    write_image(Raster(raster.samples, raster.kind, raster.alpha, metadata), tmp_path / name)
    found = read_raster(tmp_path / name)
    assert np.array_equal(found.array(), array) and found.kind is raster.kind
    assert found.metadata.icc == b"profile" and found.metadata.xmp == b"<x:xmpmeta/>"


@pytest.mark.parametrize("plain", [False, True], ids=["binary", "plain"])
@pytest.mark.parametrize("maximum", [256, 1000, 65535])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_ppm(channels: int, maximum: int, plain: bool, tmp_path: Path) -> None:
    shape = (5, 7, 3)[: 2 if channels == 1 else 3]
    array = np.random.default_rng(0).integers(0, maximum, shape, endpoint=True).astype(np.uint16)
    magic = {(1, False): "P5", (3, False): "P6", (1, True): "P2", (3, True): "P3"}[channels, plain]
    text = "# a comment\n" + "\n".join(map(str, array.ravel().tolist())) + " # the end"
    raster = text.encode() if plain else array.astype(">u2").tobytes()
    (tmp_path / "a.ppm").write_bytes(f"{magic} 7 5 {maximum}\n".encode() + raster)
    found = read_raster(tmp_path / "a.ppm")
    assert found.kind is (Kind.GREY16 if channels == 1 else Kind.RGB16)
    assert np.abs(np.asarray(found.samples) - array / maximum * 65535).max() <= 0.5


@pytest.mark.parametrize(
    "text, message",
    [
        ("1 2 3 4 5", "the file is truncated"),
        ("1 2 3 4 5 -6", "outside of 0..1000"),
        ("1 2 3 4 5 1001", "outside of 0..1000"),
        ("1 2 3 a 5 6", "invalid literal"),
    ],
)
def test_damaged_plain_ppm(text: str, message: str) -> None:
    with pytest.raises(ImageError, match=f"the picture: .*{message}"):
        read_raster(f"P3 1 2 1000 {text}\n".encode())


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("extra", ["none", "unspecified", "assocalpha", "unassalpha"])
def test_16_bit_tiff_with_a_fourth_channel(extra: str, compression: str | None, planar: str) -> None:
    """It is alpha where the file says so, and colours multiplied with it are divided."""
    tifffile = pytest.importorskip("tifffile")
    rng = np.random.default_rng(0)
    alpha = rng.integers(1, 65536, (12, 20, 1))
    alpha[0] = 0
    colours = rng.integers(0, 65536, (12, 20, 3))
    stored = (colours * alpha + 32767) // 65535 if extra == "assocalpha" else colours
    array = np.dstack([stored, alpha])[..., : 3 if extra == "none" else 4].astype(np.uint16)
    buffer = io.BytesIO()
    pages = array if planar == "contig" else array.transpose(2, 0, 1)
    extrasamples = None if extra == "none" else [extra]
    tifffile.imwrite(
        buffer, pages, photometric="rgb", planarconfig=planar, extrasamples=extrasamples, compression=compression
    )
    raster = read_raster(buffer.getvalue())
    assert raster.kind is Kind.RGB16
    assert (raster.alpha is not None) == extra.endswith("alpha")
    if raster.alpha is not None:
        assert np.array_equal(raster.alpha, array[..., 3])
    samples = np.asarray(raster.samples).astype(int)
    if extra == "assocalpha":
        samples = (samples * alpha + 32767) // 65535
    assert np.array_equal(samples, stored)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_from_white_to_black(dtype: type) -> None:
    tifffile = pytest.importorskip("tifffile")
    array = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (12, 20)).astype(dtype)
    tifffile.imwrite(buffer := io.BytesIO(), array, photometric="miniswhite")
    assert np.array_equal(read_raster(buffer.getvalue()).samples, np.iinfo(dtype).max - array)


def test_16_bit_cmyk() -> None:
    """As of 8 bits: RGB, which is said."""
    tifffile = pytest.importorskip("tifffile")
    array = np.random.default_rng(0).integers(0, 256, (12, 20, 4)).astype(np.uint8)
    found = {}
    for bits, planar, compression in ((8, "contig", None), (16, "contig", None), (16, "separate", "zlib")):
        buffer = io.BytesIO()
        inks = array if bits == 8 else array.astype(np.uint16) * 257
        inks = inks if planar == "contig" else inks.transpose(2, 0, 1)
        tifffile.imwrite(buffer, inks, photometric="separated", planarconfig=planar, compression=compression)
        raster = read_raster(buffer.getvalue())
        assert raster.kind is Kind.RGB8 and raster.alpha is None and raster.notes == ("CMYK becomes RGB",)
        found[bits, planar] = np.asarray(raster.samples)
    assert all(np.array_equal(samples, found[8, "contig"]) for samples in found.values())
    tifffile.imwrite(buffer := io.BytesIO(), inks, photometric="separated", planarconfig="separate")
    with pytest.raises(ImageError, match="CMYK of 16 bits in planes cannot be read"):
        read_raster(buffer.getvalue())


def test_floats_on_another_scale(tmp_path: Path) -> None:
    values = np.linspace(-10, 500, 35, dtype=np.float32).reshape(5, 7)
    Image.fromarray(values).save(tmp_path / "a.tif")
    raster = read_raster(tmp_path / "a.tif")
    assert raster.notes == ("floats become 8-bit grey, 51.4% of them clipped to 0 to 255",)
    assert np.array_equal(raster.array(), values.clip(0, 255).astype(np.uint8))
    for wrong, said in ((values / 500, "none of these is above 1: scale them first"), (values * np.nan, "no numbers")):
        Image.fromarray(wrong).save(tmp_path / "a.tif")
        with pytest.raises(ImageError, match=rf"a\.tif: .*{said}"):
            read_raster(tmp_path / "a.tif")
    assert to_raster(Image.fromarray(values * 0)).notes == ("floats become 8-bit grey",)


def test_without_the_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 bits are never cut to 8 in silence."""
    imagecodecs = pytest.importorskip("imagecodecs")
    array = np.zeros((5, 7, 3), np.uint16)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(array))
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(ImageError, match=r"16-bit colour needs imagecodecs and tifffile: pip install"):
        read_raster(tmp_path / "a.png")
    with pytest.raises(ImageError, match="16-bit colour needs"):
        write_image(to_raster(array), tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()


def test_transparency_without_a_channel() -> None:
    image = Image.new("L", (5, 3), 200).convert("P")
    image.info["transparency"] = bytes(range(256))
    raster = to_raster(image)
    assert (np.asarray(raster.samples) == 200).all()
    assert raster.alpha is not None and (raster.alpha == image.getpixel((0, 0))).all()
    image = Image.new("RGB", (5, 3), "red")
    image.putpixel((0, 0), (1, 2, 3))
    image.info["transparency"] = (1, 2, 3)
    alpha_of = to_raster(image).alpha
    assert alpha_of is not None and alpha_of[0, 0] == 0 and alpha_of.sum() == 14 * 255


@pytest.mark.parametrize("orientation", [1, 6])
def test_transparency_of_16_bit_grey(orientation: int, tmp_path: Path) -> None:
    grey = np.array([[0, 1, 300], [65535, 300, 299]], np.uint16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(grey).save(tmp_path / "a.png", transparency=300, exif=exif)
    raster = read_raster(tmp_path / "a.png")
    upright = grey if orientation == 1 else np.rot90(grey, -1)
    assert raster.kind is Kind.GREY16 and np.array_equal(raster.samples, upright)
    assert raster.alpha is not None and np.array_equal(raster.alpha, np.where(upright == 300, 0, 255))


def test_16_bit_grey_with_alpha_in_tiff(tmp_path: Path) -> None:
    """As colour: Pillow, and with it most readers, take no TIFF file of such grey."""
    pytest.importorskip("tifffile")
    grey = np.random.default_rng(0).integers(0, 65536, (70, 9)).astype(np.uint16)
    alpha = np.arange(630, dtype=np.uint16).reshape(70, 9)
    write_image(Raster(grey, Kind.GREY16, alpha), tmp_path / "a.tif")
    raster = read_raster(tmp_path / "a.tif")
    assert raster.kind is Kind.RGB16 and raster.alpha is not None
    assert np.array_equal(raster.array(), np.dstack([grey, grey, grey, alpha]))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
def test_orientation(orientation: int, name: str, tmp_path: Path) -> None:
    """Upright pixels, and metadata that says so."""
    image = Image.fromarray(np.kron(np.arange(6).reshape(2, 3) * 40, np.ones((16, 16))).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Maker"
    image.save(tmp_path / name, exif=exif)
    with Image.open(io.BytesIO((tmp_path / name).read_bytes())) as written:
        expected = np.asarray(ImageOps.exif_transpose(written))
    raster = read_raster(tmp_path / name)
    assert raster.size == ((32, 48) if orientation > 4 else (48, 32))
    assert np.array_equal(raster.samples, expected)
    again = raster.image().getexif()
    assert again.get(0x0112, 1) == 1 and again[0x010F] == "Maker"


def test_orientation_of_16_bits(tmp_path: Path) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    from mcodec.image.writing import _with_chunks

    array = np.arange(2 * 3 * 3, dtype=np.uint16).reshape(2, 3, 3) * 3000
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        plain = Metadata(exif=exif.tobytes().removeprefix(b"Exif\0\0"))
        data = _with_chunks(imagecodecs.png_encode(array), plain)
        eight = Image.fromarray((array >> 8).astype(np.uint8))
        eight.info["exif"] = exif.tobytes()
        expected = np.asarray(ImageOps.exif_transpose(eight))
        assert np.array_equal(np.asarray(read_raster(data).samples) >> 8, expected)


def test_damaged_exif_is_carried() -> None:
    image = Image.new("RGB", (5, 3))
    image.info["exif"] = b"Exif\0\0garbage!!"
    raster = to_raster(image)
    assert raster.size == (5, 3) and raster.metadata.exif == b"garbage!!"
    assert raster.metadata.without_gps().exif is None  # what cannot be parsed might say it


@pytest.mark.parametrize(
    ("field", "block", "kept"),
    [
        ("xmp", b"<x>" + b" " * 2**20 + b"</x>", True),
        ("xmp", (b"<exif:GPS" + b"a" * 100) * 590, False),
        ("exif", b"MM\0*\0\0\0\x08" + b"\x27\x10" + b"\x88\x25\0\x04\0\0\0\x01\0\0\0\x08" * 10000 + bytes(9), False),
    ],
    ids=["spaces", "names", "pointers"],
)
def test_crafted_blocks_take_no_longer(field: str, block: bytes, kept: bool) -> None:
    """It would take hours if every beginning were followed to an end."""
    assert getattr(Metadata(**{field: block}).without_gps(), field) == (block if kept else None)


def test_gps_is_dropped_alone() -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Maker of cameras", "Model name"
    exif[0x8825] = {1: "N", 2: (52.0, 31.0, 12.5), 3: "E", 4: (13.0, 24.0, 17.25), 29: "2026:01:02"}
    exif[0x8769] = {0x9003: "2026:01:02 03:04:05"}
    xmp = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description dc:title="kept" exif:GPSLatitude="52,31.2N"
      exif:GPSLongitude='13,24.3E'><exif:GPSAltitude>34/1</exif:GPSAltitude></rdf:Description></x:xmpmeta>"""
    image = Image.new("RGB", (5, 3))
    image.info["exif"], image.info["xmp"] = exif.tobytes(), xmp
    kept = to_raster(image).metadata.without_gps()
    assert kept.exif is not None and kept.xmp is not None
    found = Image.Exif()
    found.load(b"Exif\0\0" + kept.exif)
    assert found[0x010F] == "Maker of cameras" and found[0x0110] == "Model name"
    assert found.get_ifd(0x8769)[0x9003] == "2026:01:02 03:04:05"
    assert not found.get_ifd(0x8825) and b"2026:01:02\0" not in kept.exif
    assert b"kept" in kept.xmp and b"GPS" not in kept.xmp and b"52,31" not in kept.xmp and b"34/1" not in kept.xmp
    assert Metadata(xmp=xmp.decode().encode("utf-16")).without_gps().xmp is None


def test_directories_of_a_tiff_file_go_along(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif[0x8825] = {1: "N", 29: "2026:01:02"}
    exif[0x8769] = {0x9003: "2026:01:02 03:04:05"}
    Image.new("RGB", (5, 3)).save(tmp_path / "a.tif", exif=exif.tobytes())
    kept = read_raster(tmp_path / "a.tif").metadata.exif
    assert kept is not None
    found = Image.Exif()
    found.load(b"Exif\0\0" + kept)
    assert found[0x010F] == "Maker" and found.get_ifd(0x8825)[29] == "2026:01:02"
    assert found.get_ifd(0x8769)[0x9003] == "2026:01:02 03:04:05"


def test_positions_that_take_long_to_cut_out_take_the_block_along() -> None:
    """Thousands of values that are all of the block; thousands of beginnings without an end."""
    rows = struct.pack("<HHII", 1, 1, 60_000, 40) * 5000
    block = struct.pack("<2sHIHHHIII", b"II", 42, 8, 1, 0x8825, 4, 1, 26, 0) + struct.pack("<H", 5000) + rows + bytes(4)
    metadata = Metadata(exif=block, xmp=b"<exif:GPSa>" * 7000).without_gps()
    assert metadata.exif is None and metadata.xmp is None


@given(st.binary(max_size=80), st.sampled_from([b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b""]))
def test_any_exif(tail: bytes, head: bytes) -> None:
    metadata = Metadata(exif=head + tail)
    assert len(metadata.upright().exif or b"") == len(head + tail)
    metadata.without_gps()
    assert len(metadata.without_thumbnail().exif or b"") <= len(head + tail)


def _orientation(exif: bytes | None) -> int:
    found = Image.Exif()
    found.load(b"Exif\0\0" + (exif or b""))
    return int(found.get(0x0112, 1))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_orientation_is_patched_wherever_it_is_found() -> None:
    """With a prefix written twice, a header with its bytes swapped, a directory that is cut off."""
    exif = Image.Exif()
    exif[0x0112] = 6
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    order = "<" if block[:2] == b"II" else ">"
    more = bytearray(block)
    struct.pack_into(order + "H", more, 8, 40)
    for whole in (block, b"Exif\0\0" + block, block[:2] + block[3:1:-1] + block[4:], bytes(more)):
        image = Image.new("RGB", (5, 3))
        image.info["exif"] = b"Exif\0\0" + whole
        raster = to_raster(image)
        assert raster.size == (3, 5) and _orientation(raster.metadata.exif) == 1


def test_a_thumbnail_goes_with_what_it_shows(plain: Codec) -> None:
    """From pictures that are turned and from regions; elsewhere it stays, and what looks like none is not touched."""
    thumbnail = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(thumbnail, "JPEG")
    jpeg = thumbnail.getvalue()
    for orientation, kept in ((1, True), (6, False)):
        head = struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 26)
        rows = struct.pack("<HHHIIHHIII", 2, 0x0201, 4, 1, 56, 0x0202, 4, 1, len(jpeg), 0)
        block = head + rows + jpeg
        image = Image.new("RGB", (100, 80))
        image.info["exif"] = b"Exif\0\0" + block
        metadata = to_raster(image).metadata
        assert metadata.exif is not None and (jpeg[:40] in metadata.exif) is kept
        assert len(metadata.exif) == (len(block) if kept else 56) and _orientation(metadata.exif) == 1
        if kept:
            data = plain.encode(image)
            assert jpeg in (plain.decode_raster(data).metadata.exif or b"")
            part = plain.decode_raster(data, region=(0, 0, 64, 64)).metadata.exif
            assert part == metadata.without_thumbnail().exif and jpeg[:40] not in (part or b"")
    other = Metadata(exif=block.replace(b"\xff\xd8", b"\0\0"))
    assert other.without_thumbnail() == other


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("offset", [8, 10, 16, 22, 34, 40, 10**9])
@pytest.mark.parametrize("pointers", [1, 2])
def test_gps_that_points_to_what_it_should_not(pointers: int, offset: int, order: str) -> None:
    """To its own directory, into it, beyond the block: it goes, or the block goes."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    maker = struct.pack(order + "HHI4s", 0x010F, 2, 4, b"abc")
    gps = struct.pack(order + "HHII", 0x8825, 4, 1, offset)
    block = head + struct.pack(order + "H", 1 + pointers) + maker + gps * pointers + bytes(40)
    kept = Metadata(exif=block).without_gps().exif
    assert kept is None or (len(kept) == len(block) and gps[:2] not in kept[10:])


@pytest.mark.parametrize("name,least", [("a.webp", 99), ("a.jpg", 35), ("a.avif", 35)])
def test_what_is_decoded_is_written_nearly_as_it_is(name: str, least: float, tmp_path: Path) -> None:
    if Path(name).suffix not in Image.registered_extensions():
        pytest.skip("this Pillow does not write it")
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    samples = np.dstack([np.tile(ramp, (48, 1)), np.tile(ramp[:48, None], (1, 64)), np.full((48, 64), 90, np.uint8)])
    write_image(Image.fromarray(samples), tmp_path / name)
    with Image.open(tmp_path / name) as image:
        error = np.square(np.asarray(image.convert("RGB"), float) - samples).mean()
    assert 10 * np.log10(255**2 / (error + 1e-9)) > least


@pytest.mark.parametrize("name", ["a.jpg", "a.avif"])
def test_colours_are_written_at_full_size(name: str, tmp_path: Path) -> None:
    if Path(name).suffix not in Image.registered_extensions():
        pytest.skip("this Pillow does not write it")
    stripes = np.zeros((48, 64, 3), np.uint8)
    stripes[:, ::2, 0], stripes[:, 1::2, 2] = 255, 255
    write_image(Image.fromarray(stripes), tmp_path / name)
    with Image.open(tmp_path / name) as image:
        error = np.square(np.asarray(image.convert("RGB"), float) - stripes).mean()
    assert 10 * np.log10(255**2 / error) > 25  # at a quarter of the samples they are violet
    write_image(Image.new("L", (8, 8)), tmp_path / name)


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_alpha(depth: type) -> None:
    rng = np.random.default_rng(0)
    for plane in (rng.integers(0, np.iinfo(depth).max, (9, 31), depth), np.full((40, 50), 255, depth)):
        data = alpha.pack(plane)
        bits = 8 * plane.itemsize
        found = alpha.unpack(data, plane.shape[1], plane.shape[0], bits)
        assert found.dtype == depth and np.array_equal(found, plane)
        with pytest.raises(CorruptStream, match="7x7"):
            alpha.unpack(data, 7, 7, bits)
        for bad in (data[: len(data) // 2], b"", b"\x89PNG\r\n\x1a\n"):
            with pytest.raises(CorruptStream, match="alpha"):
                alpha.unpack(bad, plane.shape[1], plane.shape[0], bits)


def test_alpha_of_another_size_and_none(plain: Codec) -> None:
    samples = np.zeros((8, 9, 3), np.uint8)
    with pytest.raises(ValueError, match=r"alpha has shape \[9, 8\], not \[8, 9\]"):
        plain.encode(Raster(samples, Kind.RGB8, np.zeros((9, 8), np.uint8)))
    file = container.unpack(plain.encode(samples))
    with pytest.raises(CorruptStream, match="alpha section"):
        plain.decode(container.pack(replace(file, sections=(*file.sections, (container.TAG_ALPHA, b"")))))


def test_alpha_is_one_grey_plane_of_the_samples_depth() -> None:
    """Another size is refused before there is room for it."""
    saved: list[bytes] = []
    for picture, form, options in (
        (Image.new("RGB", (8, 8)), "PNG", {}), (Image.new("1", (8, 8)), "PNG", {}),
        (Image.new("L", (8, 8)), "WEBP", {"quality": 50}), (Image.new("L", (9000, 9000)), "WEBP", {"lossless": True}),
        (Image.new("L", (8, 8)), "JPEG", {}),
    ):  # fmt: skip
        buffer = io.BytesIO()
        picture.save(buffer, form, **options)
        saved.append(buffer.getvalue())
    deep = alpha.pack(np.zeros((8, 8), np.uint16))
    assert alpha.unpack(deep, 8, 8, 16).dtype == np.uint16
    for data in (*saved, deep):
        with pytest.raises(CorruptStream):
            alpha.unpack(data, 8, 8, 8)
    assert alpha.unpack(alpha.pack(np.full((8, 8), 7, np.uint8)), 8, 8, 16).dtype == np.uint8


@pytest.mark.parametrize("kind, name", [(Kind.RGB16, "a.png"), (Kind.RGB16, "a.tif"), (Kind.GREY16, "a.png")])
def test_8_bit_alpha_beside_16_bits(kind: Kind, name: str, tmp_path: Path) -> None:
    """In one array it has their scale; apart it stays as it is."""
    pytest.importorskip("imagecodecs")
    shape = (70, 5) if kind.grey else (70, 5, 3)
    plane = np.tile(np.array([0, 1, 128, 254, 255], np.uint8), (70, 1))
    raster = Raster(np.full(shape, 1000, np.uint16), kind, plane)
    array = raster.array()
    assert array.dtype == np.uint16 and np.array_equal(array[..., -1], plane.astype(int) * 257)
    assert np.array_equal(np.concatenate(list(raster.bands(32))), array)
    assert np.array_equal(np.asarray(raster.image().getchannel("A")), plane)
    write_image(raster, tmp_path / name)
    assert np.array_equal(read_raster(tmp_path / name).array(), array)


def test_16_bit_alpha_beside_8_bits_is_refused(tmp_path: Path) -> None:
    raster = Raster(np.zeros((3, 4, 3), np.uint8), Kind.RGB8, np.zeros((3, 4), np.uint16))
    with pytest.raises(ValueError, match="alpha of 16 bits needs samples of 16 bits"):
        to_raster(raster)
    with pytest.raises(ImageError, match="alpha of 16 bits"):
        write_image(raster, tmp_path / "a.png")


AVIF = pytest.param(
    "a.avif",
    marks=pytest.mark.skipif(".avif" not in Image.registered_extensions(), reason="this Pillow writes no AVIF"),
)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif", AVIF])
def test_metadata_goes_along(name: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    metadata = Metadata(profile, exif.tobytes().removeprefix(b"Exif\0\0"), b"<x:xmpmeta>a packet</x:xmpmeta>")
    samples = np.full((8, 9, 3), 100, np.uint8)
    write_image(Raster(samples, Kind.RGB8, None, metadata), tmp_path / name)
    found = read_raster(tmp_path / name)
    assert found.metadata.icc == profile and found.metadata.xmp == metadata.xmp
    assert found.image().getexif()[0x010F] == "Maker"
    assert read_raster(io.BytesIO((tmp_path / name).read_bytes())).metadata == found.metadata


def _profile(space: bytes) -> bytes:
    """As much of a profile as says what it is of."""
    return bytes(16) + space + bytes(108)


def test_profiles_fit_the_samples(tmp_path: Path) -> None:
    """A palette of greys stays RGB beside a profile of RGB; WebP has no grey for a profile of it to describe."""
    image = Image.linear_gradient("L").resize((8, 9)).convert("P")
    assert to_raster(image).kind is Kind.GREY8
    image.info["icc_profile"] = _profile(b"RGB ")
    raster = to_raster(image)
    assert raster.kind is Kind.RGB8 and raster.metadata.icc == _profile(b"RGB ")
    grey = Raster(np.zeros((9, 8), np.uint8), Kind.GREY8, None, Metadata(_profile(b"GRAY")))
    write_image(grey, tmp_path / "a.png")
    assert read_raster(tmp_path / "a.png").metadata == grey.metadata
    with pytest.warns(LossWarning, match=said_of(tmp_path / "a.webp", "WEBP cannot hold a colour profile of greys")):
        write_image(grey, tmp_path / "a.webp")
    assert read_raster(tmp_path / "a.webp").metadata.icc is None


def said_of(path: Path, lost: str) -> str:
    """The pattern of a whole warning."""
    return f"^{re.escape(str(path))}: {lost}$"


@pytest.mark.parametrize(
    "array, name, lost",
    [
        (np.zeros((3, 4, 4), np.uint8), "a.jpg", "JPEG cannot hold alpha"),
        (np.zeros((3, 4), np.uint16), "a.jpg", "JPEG cannot hold 16 bits"),
        (np.zeros((3, 4, 4), np.uint16), "a.bmp", "BMP cannot hold alpha, 16 bits"),
        (np.zeros((3, 4, 3), np.uint16), "a.webp", "WEBP cannot hold 16 bits"),
    ],
)
def test_what_a_format_cannot_hold_is_said(array: NDArray[np.uint8], name: str, lost: str, tmp_path: Path) -> None:
    with pytest.warns(LossWarning, match=said_of(tmp_path / name, lost)):
        write_image(to_raster(array), tmp_path / name)
    assert read_image(tmp_path / name).size == (4, 3)
    plain = Raster(np.zeros((3, 4), np.uint8), Kind.GREY8, None, Metadata(b"i", b"II*\0", b"x"))
    with pytest.warns(LossWarning, match=said_of(tmp_path / "b.bmp", "BMP cannot hold the colour profile, EXIF, XMP")):
        write_image(plain, tmp_path / "b.bmp")


@pytest.mark.parametrize("name, size", [("a.ico", (72, 56)), ("a.ico", (7, 256)), ("a.icns", (1024, 1024))])
def test_icons_keep_their_size(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    image = Image.radial_gradient("L").resize(size).convert("RGB")
    write_image(image, tmp_path / name)
    assert np.array_equal(read_image(tmp_path / name).convert("RGB"), image)
    with pytest.raises(ImageError, match=r"has sides of \d+ to \d+ pixels, got 600x400"):
        write_image(image.resize((600, 400)), tmp_path / f"large{name}")
    assert not (tmp_path / f"large{name}").exists()


@pytest.mark.parametrize("colours", [256, 257])
def test_palettes_that_are_too_small_are_said(colours: int, tmp_path: Path) -> None:
    indices = np.minimum(np.arange(20 * 30).reshape(20, 30), colours - 1)
    array = np.stack([indices % 256, indices // 256, 0 * indices], -1).astype(np.uint8)
    if colours > 256:
        with pytest.warns(LossWarning, match=said_of(tmp_path / "a.gif", "GIF cannot hold more than 256 colours")):
            write_image(Image.fromarray(array), tmp_path / "a.gif")
    else:
        write_image(Image.fromarray(array), tmp_path / "a.gif")
        assert np.array_equal(read_image(tmp_path / "a.gif").convert("RGB"), array)


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.jpg", "a.webp", AVIF])
@pytest.mark.parametrize("exif", [b"garbage!!", b"II*\0"])
def test_damaged_exif_is_written_or_said(exif: bytes, name: str, tmp_path: Path) -> None:
    raster = Raster(np.full((8, 9, 3), 100, np.uint8), Kind.RGB8, None, Metadata(b"profile", exif, b"<x/>"))
    if parsed := name in ("a.tif", "a.avif"):
        lost = "(TIFF|AVIF) cannot hold EXIF that cannot be parsed"
        with pytest.warns(LossWarning, match=said_of(tmp_path / name, lost)):
            write_image(raster, tmp_path / name)
    else:
        write_image(raster, tmp_path / name)
    found = read_raster(tmp_path / name).metadata
    assert found.exif == (None if parsed else exif) and (found.icc, found.xmp) == (b"profile", b"<x/>")


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((4, 4, 5), np.uint8), r"must have shape \[H, W\] or \[H, W, C\]"),
        (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
        (np.zeros((4, 4, 3)), "must be uint8 or uint16, got float64"),
        (torch.zeros(5, 4, 3, dtype=torch.uint8), r"must have shape \[C, H, W\]"),
        (torch.zeros(3, 4, 4), "must be uint8 or uint16, got float32"),
        (torch.zeros(3, 4, 4, dtype=torch.bfloat16), "must be uint8 or uint16, got bfloat16"),
        (torch.zeros(3, 4, 0, dtype=torch.uint8), "at least one pixel"),
        (Image.new("P", (0, 5)), "at least one pixel"),
        ("photo.jpg", "not a picture: str"),
    ],
)
def test_what_is_no_picture(image: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_raster(image)  # type: ignore[arg-type]


def test_reading_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path / "absent.png")
    bad = tmp_path / "bad.png"
    bad.write_text("text")
    with pytest.raises(ImageError, match=r"cannot read the picture .*bad\.png: unknown format$"):
        read_image(bad)
    with pytest.raises(ImageError, match=r"cannot read the picture .*: Is a directory$"):
        read_image(tmp_path)
    good = tmp_path / "good.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50, 3)).astype(np.uint8)).save(good)
    bad.write_bytes(good.read_bytes()[:2000])
    with pytest.raises(ImageError, match="cannot read the picture"):
        read_image(bad)
    for limit in (2000, 1000):  # Pillow warns above its limit and refuses above twice that
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ImageError, match="too many pixels"):
            read_image(good)


def test_written_files(tmp_path: Path) -> None:
    """The mode of an ordinary new file, and any name that the folder takes."""
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    path = tmp_path / ("n" * 250)
    for data in (b"one", b"two"):
        write_bytes(path, data)
        assert path.read_bytes() == data and path.stat().st_mode == plain.stat().st_mode


def test_writing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 4), "red")
    for name in ("a.png", "a.jpg", "a.webp"):
        write_image(image, tmp_path / name)
        assert read_image(tmp_path / name).size == (4, 4)
    with pytest.raises(ImageError, match="no picture format"):
        write_image(image, tmp_path / "a.xyz")
    with pytest.raises(ImageError, match="cannot write"):
        write_image(Image.new("RGB", (70000, 1)), tmp_path / "b.jpg")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "absent" / "x", tmp_path / "folder"):
        with pytest.raises(ImageError, match="cannot write"), writes_to(path):
            write_bytes(path, b"")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jpg", "a.png", "a.webp", "folder"]


@pytest.mark.parametrize(("field", "most"), [("exif", 65527), ("xmp", 65504)])
def test_jpeg_leaves_out_what_a_segment_cannot_hold(field: str, most: int, tmp_path: Path) -> None:
    """Editing histories are long; the picture is worth more."""
    raster = to_raster(np.zeros((8, 8, 3), np.uint8))
    for size in (most, most + 1):
        block = b"MM\0*\0\0\0\x08\0\0\0\0\0\0".ljust(size, b" ")
        full = replace(raster, metadata=Metadata(**{field: block}))
        with nullcontext() if size == most else pytest.warns(LossWarning, match=f"{field.upper()} of more than {most}"):
            write_image(full, tmp_path / f"{size}.jpg")
        kept = getattr(read_raster(tmp_path / f"{size}.jpg").metadata, field)
        assert kept == (block if size == most else None)


def test_heic(tmp_path: Path) -> None:
    """Where pillow-heif is installed, pictures of phones are read like others, and written."""
    pytest.importorskip("pillow_heif")
    level = np.linspace(0, 255, 64).astype(np.uint8)
    picture = np.stack([np.tile(level, (48, 1)), np.tile(level[::-1], (48, 1)), np.full((48, 64), 90, np.uint8)], 2)
    exif = Image.Exif()
    exif[0x010F] = "maker"
    write_image(to_raster(picture), tmp_path / "a.heic")
    with Image.open(tmp_path / "a.heic") as image:
        image.save(tmp_path / "in.heic", exif=exif, quality=95)
    raster = read_raster(tmp_path / "in.heic")
    assert raster.size == (64, 48) and raster.kind is Kind.RGB8 and b"maker" in (raster.metadata.exif or b"")
    assert np.abs(np.asarray(raster.samples).astype(int) - picture).mean() < 6
    assert many.pictures(tmp_path / "in.HEIC")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    metadata = Metadata(profile, exif.tobytes().removeprefix(b"Exif\0\0"), b"<x:xmpmeta>a packet</x:xmpmeta>")
    write_image(replace(to_raster(picture), metadata=metadata), tmp_path / "b.heic")
    found = read_raster(tmp_path / "b.heic").metadata
    assert found.icc == profile and found.xmp == metadata.xmp and b"maker" in (found.exif or b"")


def test_gain_maps_are_said(tmp_path: Path) -> None:
    """Pillow counts one picture in such a file."""
    xmp = b'<rdf:Description xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0"/>'
    Image.new("RGB", (16, 16)).save(tmp_path / "a.jpg", xmp=xmp)
    assert read_raster(tmp_path / "a.jpg").notes == ("its gain map (HDR) is left out",)
    Image.new("RGB", (16, 16)).save(tmp_path / "b.jpg", xmp=b"<x/>")
    assert not read_raster(tmp_path / "b.jpg").notes


def test_what_has_no_place_in_a_file_is_said(tmp_path: Path) -> None:
    """Captions, a second part of XMP, the gamma of a PNG file, more bits than Pillow hands out."""
    image = Image.new("RGB", (16, 16))
    caption = b"\x1c\x02\x78\x00\x04text"
    block = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + struct.pack(">I", len(caption)) + caption + b"\0"
    image.save(tmp_path / "a.jpg", extra=b"\xff\xed" + struct.pack(">H", len(block) + 2) + block)
    assert read_raster(tmp_path / "a.jpg").notes == ("its IPTC captions are left out",)
    image.save(tmp_path / "a.jpg", xmp=b'<x xmpNote:HasExtendedXMP="0"/>')
    assert read_raster(tmp_path / "a.jpg").notes == ("the extended part of its XMP is left out",)
    for gamma, notes in ((100000, ("its gamma of 1 is left out",)), (45455, ())):
        info = PngImagePlugin.PngInfo()
        info.add(b"gAMA", struct.pack(">I", gamma))
        image.save(tmp_path / "a.png", pnginfo=info)
        assert read_raster(tmp_path / "a.png").notes == notes
    imagecodecs = pytest.importorskip("imagecodecs")
    for bits, notes in ((16, ("16 bits become 8",)), (8, ())):
        (tmp_path / "a.jp2").write_bytes(imagecodecs.jpeg2k_encode(np.zeros((64, 64, 3), f"u{bits // 8}")))
        assert read_raster(tmp_path / "a.jp2").notes == notes
