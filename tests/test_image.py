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


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((3, 5), 200 << 8, np.uint16))
    else:
        image = Image.new("L", (5, 3), 200).convert(mode)
    array = to_array(image)
    assert array.shape == (3, 5, 3) and array.dtype == np.uint8
    assert (array[1, 2] == (255 if mode == "1" else 200)).all()


def test_orientation_is_applied() -> None:
    image = Image.new("RGB", (5, 3))
    image.getexif()[0x0112] = 6
    assert to_array(image).shape == (5, 3, 3)


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((4, 4), np.uint8), r"must have shape \[H, W, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
        (np.zeros((4, 4, 3)), "must be uint8, got float64"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), r"must have shape \[3, H, W\]"),
        (torch.zeros(3, 4, 4), "must be uint8, got float32"),
        ("photo.jpg", "not a picture: str"),
    ],
)
def test_what_is_no_picture(image: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_array(image)  # type: ignore[arg-type]


def test_reading_errors(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path / "absent.png")
    bad = tmp_path / "bad.png"
    bad.write_text("text")
    with pytest.raises(ImageError, match="cannot read the picture"):
        read_image(bad)
    good = tmp_path / "good.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50, 3)).astype(np.uint8)).save(good)
    bad.write_bytes(good.read_bytes()[:2000])
    with pytest.raises(ImageError, match="cannot read the picture"):
        read_image(bad)


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
