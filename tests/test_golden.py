"""The tool that guards golden files lets a rounding step pass, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from golden import cell_means, codes_hash, differences, record
from numpy.typing import NDArray
from PIL import Image

from mcodec.api import Codec

Make = Callable[..., NDArray[np.uint8]]


@pytest.mark.parametrize("size", [(1, 1), (5, 70), (64, 65)], ids=str)
def test_round_trip(tiny: Codec, picture: Make, size: tuple[int, int]) -> None:
    data = tiny.encode(picture(*size), 60)
    golden = json.loads(json.dumps(record(tiny, data)))
    assert differences(tiny, data, golden) == []
    assert np.array(golden["cells"]).shape == (min(8, size[0]), min(8, size[1]), 3)


def test_tolerance(tiny: Codec, picture: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fifth sample off by one is a rounding; a shift of a corner, or of all by one, is not."""
    data = tiny.encode(picture(64, 64), 60)
    golden = record(tiny, data)
    exact = np.asarray(tiny.decode(data)).clip(2, 250)
    golden["cells"] = cell_means(Image.fromarray(exact)).tolist()

    def decoded(change: NDArray[np.int64]) -> list[str]:
        monkeypatch.setattr(tiny, "decode", lambda _: Image.fromarray((exact + change).astype(np.uint8)))
        return [what.split(" ")[0] for what in differences(tiny, data, golden)]

    noise = np.random.default_rng(0).choice([-1, 0, 0, 0, 0, 0, 0, 0, 0, 1], exact.shape)
    corner = np.zeros_like(noise)
    corner[:8, :8] = 2
    assert decoded(noise) == []
    assert decoded(corner) == decoded(np.ones_like(noise)) == ["pixels"]


def test_codes_and_file_are_exact(tiny: Codec, picture: Make) -> None:
    data, other = (tiny.encode(picture(40, 40, seed), 50) for seed in (0, 1))
    assert {"file", "codes"} <= set(differences(tiny, other, record(tiny, data)))
    codes = tiny.codes(data)
    before = codes_hash(codes)
    codes[-1][0, 0, 0] += 1
    assert codes_hash(codes) != before


def test_golden_files_on_disk() -> None:
    """Every golden file has its record and decodes to it."""
    from golden import codec_for

    for path in sorted((Path(__file__).parent / "golden").glob("*.mci")):
        data = path.read_bytes()
        assert differences(codec_for(data), data, json.loads(path.with_suffix(".json").read_text())) == [], path.name
