"""Do measured classical codecs agree with the published Kodak curves? A check of the whole chain.

Files, bytes, colour space and means would all show up as a shift of the curve. What may differ is the encoder: each
pair states that, and how far the curves may lie apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mcodec.bench.anchors import KODAK, Published
from mcodec.bench.bd import Delta, delta
from mcodec.bench.results import Results
from mcodec.errors import BenchError


@dataclass(frozen=True)
class Pair:
    """A codec of ours and the published curve of the same format, with bounds of the BD-rate in percent."""

    codec: str
    published: str
    low: float
    high: float
    why: str


PAIRS = (
    Pair("jpeg-default", "jpeg", -3, 1, "Pillow 7.1.2, same settings: bytes within 0.3 %, its pictures 0.1 dB worse"),
    Pair("jpeg", "jpeg", -15, 0, "Pillow 7.1.2 without optimized tables, which save most at low rates"),
    Pair("webp-default", "webp", -1, 1, "Pillow 7.1.2, same settings"),
    Pair("webp", "webp", -8, 3, "an older libwebp at method 4; ours is method 6"),
    Pair("avif", "av1", -15, 15, "libaom of 2021, --cpu-used=0 in a WebM file; ours is speed 4 in an AVIF file"),
    Pair("jpeg2000", "jpeg2000", -25, 10, "ffmpeg's libopenjpeg in YCbCr; ours is OpenJPEG by Pillow, 9/7 wavelet"),
)


@dataclass(frozen=True)
class Agreement:
    """How one pair compares."""

    pair: Pair
    delta: Delta

    @property
    def holds(self) -> bool:
        return self.pair.low <= self.delta.rate <= self.pair.high


def check(results: Results, published: Sequence[Published]) -> list[Agreement]:
    """Every pair that both sides have, by PSNR. Raises BenchError where the pictures are not the 24 of Kodak."""
    if set(results.pictures) != KODAK:
        raise BenchError(
            f"published curves are means of the 24 Kodak pictures; these are {len(results.pictures)} pictures"
        )
    others = {p.name: p.curves["psnr"] for p in published}
    found = []
    for pair in PAIRS:
        measured = next((m for m in results.codecs if m.name == pair.codec), None)
        curve = measured.curve("psnr", results.pictures) if measured else None
        if curve is not None and pair.published in others:
            found.append(Agreement(pair, delta(others[pair.published], curve)))
    if not found:
        raise BenchError("no codec of the results has a published curve to agree with")
    return found
