"""The documents are enough to decode every golden file: by a decoder that was written from them alone."""

from __future__ import annotations

import hashlib
from pathlib import Path

import golden
import independent
import numpy as np
import pytest
from PIL import Image

import mcodec
from mcodec import weights
from mcodec.container import Kind
from mcodec.image import Metadata, Raster

WEIGHTS = {
    hashlib.sha256(path.read_bytes()).digest()[:8]: path for path in (golden.FOLDER / "weights").glob("*.safetensors")
}


def test_a_photograph_with_the_released_weights() -> None:
    picture = Path(__file__).parent.parent / "examples" / "photo.jpg"
    codec = mcodec.load(device="cpu")
    codec.tile = 64
    pixels = np.asarray(Image.open(picture))[100:170, 200:290]
    data = codec.encode(pixels, 90)
    file = independent.parse(data)
    config, tensors = independent.weights(weights.find())
    codes = independent.picture_codes(file, config, tensors)
    for mine, theirs in zip(codes, codec.codes(data), strict=True):
        assert np.array_equal(mine, theirs.numpy())
    found = independent.samples(file, config, tensors, codes).astype(int)
    off = np.abs(found - codec.decode_array(data))
    assert file.sections.keys() >= {independent.CODES, independent.SHIFTS}
    assert off.max() <= 1 and off.mean() < 0.01


@pytest.mark.parametrize("path", sorted(golden.FOLDER.glob("*.mci")), ids=lambda path: path.stem)
def test_golden_files(path: Path) -> None:
    wanted = golden.manifest()[path.name]
    file = independent.parse(path.read_bytes())
    config, tensors = independent.weights(WEIGHTS[file.fingerprint])
    codes = independent.picture_codes(file, config, tensors)
    digest = hashlib.sha256()
    for stage in codes:
        digest.update(np.array(stage.shape, "<i4").tobytes() + stage.astype("<i4").tobytes())
    assert digest.hexdigest() == wanted["codes"]

    found = independent.samples(file, config, tensors, codes)
    assert [file.width, file.height] == wanted["size"] and Kind(file.kind).name == wanted["kind"]
    metadata = Metadata(*(file.sections.get(tag) for tag in (independent.ICC, independent.EXIF, independent.XMP)))
    exact: dict[str, bytes] = dict(metadata.info())
    if (plane := independent.alpha(file)) is not None:
        exact["alpha"] = plane.astype(plane.dtype.newbyteorder("<")).tobytes()
    assert {name: hashlib.sha256(value).hexdigest() for name, value in exact.items()} == wanted["exact"]
    off = np.abs(golden.cell_means(Raster(found, Kind(file.kind))) - np.array(wanted["cells"]))
    assert off.max() <= golden.TOLERANCE and off.mean() <= golden.MEAN_TOLERANCE
