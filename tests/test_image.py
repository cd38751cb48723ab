"""Pixels in and out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mcodec.errors import ImageError
from mcodec.image import from_tensor, read_image, to_array, to_tensor, write_bytes, write_image


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 16, 64]))
def test_padding_and_back(height: int, width: int, multiple: int) -> None:
    array = np.random.default_rng(height * 41 + width).integers(0, 256, (height, width, 3)).astype(np.uint8)
    tensor = to_tensor(array, multiple)
    assert tensor.shape[2] % multiple == 0 and tensor.shape[3] % multiple == 0
    assert torch.equal(tensor[0, :, -1, -1], tensor[0, :, height - 1, width - 1])  # edges are repeated
    assert np.array_equal(from_tensor(tensor, height, width), array)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    if mode in ("I;16", "I"):
        image = Image.fromarray(np.full((3, 5), 200 << 8, np.uint16 if mode == "I;16" else np.int32))
    else:
        image = Image.new("L", (5, 3), 200).convert(mode)
    array = to_array(image)
    assert array.shape == (3, 5, 3) and array.dtype == np.uint8
    assert (array[1, 2] == (255 if mode == "1" else 200)).all()


@pytest.mark.parametrize("name", ["a.pgm", "a.png", "a.tif"])
def test_16_bit_files_are_scaled(name: str, tmp_path: Path) -> None:
    grey = np.array([[51200, 25855, 0]], np.uint16)
    if name == "a.pgm":
        (tmp_path / name).write_bytes(b"P5 3 1 65535\n" + grey.astype(">u2").tobytes())
    else:
        Image.fromarray(grey).save(tmp_path / name)
    assert to_array(read_image(tmp_path / name))[0, :, 1].tolist() == [200, 100, 0]


def test_transparent_palette() -> None:
    image = Image.new("L", (5, 3), 200).convert("P")
    image.info["transparency"] = bytes(256)
    assert (to_array(image) == 200).all()


def test_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (5, 3))
    image.getexif()[0x0112] = 6
    assert to_array(image).shape == (5, 3, 3)
    for name in ("a.jpg", "a.png", "a.tif", "a.webp"):
        image.save(tmp_path / name, exif=image.getexif())
        assert to_array(read_image(tmp_path / name)).shape == (5, 3, 3)
    image = Image.new("RGB", (5, 3))
    image.info["exif"] = b"Exif\0\0garbage!!"
    assert to_array(image).shape == (3, 5, 3)


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((4, 4), np.uint8), r"must have shape \[H, W, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
        (np.zeros((4, 4, 3)), "must be uint8, got float64"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), r"must have shape \[3, H, W\]"),
        (torch.zeros(3, 4, 4), "must be uint8, got float32"),
        (torch.zeros(3, 4, 4, dtype=torch.bfloat16), "must be uint8, got bfloat16"),
        (torch.zeros(3, 4, 0, dtype=torch.uint8), "at least one pixel"),
        (Image.new("P", (0, 5)), "at least one pixel"),
        ("photo.jpg", "not a picture: str"),
    ],
)
def test_what_is_no_picture(image: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_array(image)  # type: ignore[arg-type]


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
        write_image(Image.new("RGBA", (4, 4)), tmp_path / "b.jpg")
    with pytest.raises(ImageError, match="cannot write"):
        write_bytes(tmp_path / "absent" / "x", b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ImageError):
        write_bytes(tmp_path / "folder", b"")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jpg", "a.png", "a.webp", "folder"]
