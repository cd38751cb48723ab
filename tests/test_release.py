"""The released weights: the same codes everywhere, a rate that is what the model says, a curve that rises."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from settings import SETTINGS, setting
from stages import ideal_bits

import mcodec
from mcodec import container, weights
from mcodec.api import Codec
from mcodec.bench.metrics import psnr

#: Set MCODEC_KODAK to a folder with the 24 pictures to run the tests that need them.
KODAK = os.environ.get("MCODEC_KODAK")
needs_kodak = pytest.mark.skipif(not KODAK, reason="MCODEC_KODAK names no folder with the Kodak pictures")
PHOTO = Path(__file__).parent.parent / "examples" / "photo.jpg"


@pytest.fixture(scope="module")
def codec() -> Codec:
    return mcodec.load(device="cpu")


@pytest.fixture(scope="module")
def photo() -> NDArray[np.uint8]:
    return np.asarray(Image.open(PHOTO).convert("RGB"))


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("path", sorted(weights.folder().glob("*.safetensors")), ids=lambda path: path.stem)
def test_all_released_weights(path: Path, photo: NDArray[np.uint8], tmp_path: Path) -> None:
    assert path.stat().st_size < 40 * 2**20
    card = weights.read_card(path)
    assert card["bytes"] == path.stat().st_size and card["kmac_per_pixel"]["decode"] <= 100
    assert card["name"] == path.stem and card["training_hours"] > 0
    codec = mcodec.load(path, "cpu")
    files = [codec.encode(photo, quality) for quality in (20, 80)]
    fidelity = []
    for file in files:
        (tmp_path / "a.mci").write_bytes(file)
        picture = mcodec.read(tmp_path / "a.mci", device="cpu")  # by the weights that the file names
        fidelity.append(psnr(photo, np.asarray(picture)))
    assert 2 * len(files[0]) < len(files[1]) and fidelity[0] + 3 < fidelity[1]
    codes = codec.codes(files[1])
    for name in list(SETTINGS)[1::5]:
        with setting(codec, name):
            assert same(codec.codes(files[1]), codes), name


@pytest.mark.parametrize("quarter", range(4))  # so that processes can share them
def test_200_random_sizes(codec: Codec, photo: NDArray[np.uint8], quarter: int) -> None:
    """Cuts of a photograph; encoded on one setting after another, decoded on three others each."""
    rng = np.random.default_rng(quarter)
    names = list(SETTINGS)
    for index in range(quarter, 200, 4):
        height, width = rng.integers(1, 140, 2)
        top, left = rng.integers(0, photo.shape[0] - height), rng.integers(0, photo.shape[1] - width)
        with setting(codec, names[index % len(names)]):
            cut = photo[top : top + height, left : left + width]
            data, codes = codec.encode_with_codes(cut, int(rng.integers(1, 101)))
        for step in range(1, 4):
            with setting(codec, names[(index + 5 * step) % len(names)]):
                assert same(codec.codes(data), codes), f"size {width}x{height}"


@pytest.mark.parametrize("count", [3, 8])
def test_batches(codec: Codec, photo: NDArray[np.uint8], count: int) -> None:
    cuts = [photo[20 * i : 20 * i + 200, 10 * i : 10 * i + 130] for i in range(count)]
    files = codec.encode_batch(cuts, 60)
    for file, codes in zip(files, codec.codes_batch(files), strict=True):
        assert same(codes, codec.codes(file))


def test_quality_orders_rate_and_distortion(codec: Codec, photo: NDArray[np.uint8]) -> None:
    files = [codec.encode(photo, q) for q in (1, 10, 30, 50, 70, 90, 100)]
    errors = [psnr(photo, np.asarray(codec.decode(file))) for file in files]
    assert files == sorted(files, key=len) and errors == sorted(errors)


def test_example_of_the_readme(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    root = PHOTO.parent.parent
    text = (root / "README.md").read_text(encoding="utf-8")
    example = re.search(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert example is not None
    monkeypatch.chdir(root)
    monkeypatch.setattr(mcodec, "load", lambda: codec)
    names: dict[str, Any] = {}
    exec(example[1], names)
    with Image.open(PHOTO) as image:
        assert names["picture"].size == image.size and container.unpack(names["data"]).header.level == 126


def coded(data: bytes) -> int:
    """Bytes of a file but for what is fitted to its picture."""
    file = container.unpack(data)
    fitted = (file.section(tag) for tag in (container.TAG_FILTER, container.TAG_SHIFTS))
    return len(data) - sum(2 + len(payload) for payload in fitted if payload)


@needs_kodak
@pytest.mark.parametrize("sixth", range(6))  # so that processes can share the pictures
def test_kodak_rate_and_codes(codec: Codec, sixth: int) -> None:
    """Bytes, as `coded`, within 0.5 % of the estimate above 0.2 bpp, header included; codes equal on every setting."""
    paths = sorted(Path(str(KODAK)).glob("*.png"))
    assert len(paths) == 24
    names = list(SETTINGS)
    for index, path in list(enumerate(paths))[sixth::6]:
        picture = np.asarray(Image.open(path).convert("RGB"))
        for quality in (30, 80):
            data, bits = ideal_bits(codec, picture, quality)
            size, ideal = coded(data), bits / 8
            if size * 8 / picture[..., 0].size > 0.2:
                assert size <= 1.005 * ideal, f"{path.name} at {quality}: {size} bytes, estimate {ideal:.1f}"
        with setting(codec, names[index % len(names)]):
            data = codec.encode(picture, 40)
        assert coded(data) - len(container.unpack(data).codes) <= 28
        decoded = []
        for step in (1, 6):
            with setting(codec, names[(index + step) % len(names)]):
                decoded.append(codec.codes(data))
        assert same(*decoded), path.name


@needs_kodak
@pytest.mark.parametrize(("count", "first"), [(3, 0), (3, 3), (8, 0), (8, 8)])
def test_kodak_batches(codec: Codec, count: int, first: int) -> None:
    """A batch of pictures of one size, or nearly, on one setting after the other; then each alone."""
    paths = sorted(Path(str(KODAK)).glob("*.png"))
    pictures = sorted((np.asarray(Image.open(path).convert("RGB")) for path in paths), key=lambda p: p.shape)
    names, index = list(SETTINGS), first // count
    with setting(codec, names[index]):
        files = codec.encode_batch(pictures[first : first + count], 25)
    with setting(codec, names[(index + count) % len(names)]):
        together = codec.codes_batch(files)
    with setting(codec, names[(index + 2 * count + 1) % len(names)]):
        for file, codes in zip(files, together, strict=True):
            assert same(codes, codec.codes(file))
