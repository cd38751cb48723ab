"""What the encoder's search gives and takes: BD-rate and time of each effort on a folder of pictures.

Real files, PSNR in RGB per picture, means over pictures per quality. Decoding is the same for all efforts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mcodec import rate
from mcodec.bench.bd import Curve, NotComparable, delta
from mcodec.errors import BenchError
from mcodec.model import level_of

if TYPE_CHECKING:
    from mcodec.api import Codec

QUALITIES = (10.0, 30.0, 50.0, 70.0, 90.0)


@dataclass(frozen=True)
class Measured:
    """One effort: its curve, and the seconds of encoding a million pixels."""

    effort: int
    curve: Curve
    seconds: float


def measure(
    codec: Codec,
    pictures: Sequence[NDArray[np.uint8]],
    efforts: Sequence[int],
    qualities: Sequence[float] = QUALITIES,
    advance: Callable[[int], None] = lambda effort: None,
) -> list[Measured]:
    """Every effort at every quality on pictures `[H, W, 3]`; `advance` is called after each file.

    Raises BenchError, before anything is measured, for qualities that give no curve.
    """
    try:
        levels = {level_of(quality) for quality in qualities}
    except ValueError as error:
        raise BenchError(str(error)) from error
    if len(levels) < max(2, len(qualities)):
        raise BenchError("a curve needs at least two qualities, and no two of the same level")
    codec.encode(pictures[0], qualities[0])  # a warm-up
    pixels = sum(picture[..., 0].size for picture in pictures)
    found = []
    for effort in efforts:
        bpp, psnr, seconds = [], [], 0.0
        for quality in qualities:
            rates, values = [], []
            for picture in pictures:
                began = time.perf_counter()
                data = codec.encode(picture, quality, effort=effort)
                seconds += time.perf_counter() - began
                rates.append(8 * len(data) / picture[..., 0].size)
                values.append(rate.psnr(picture, codec.decode_array(data), 255))
                advance(effort)
            bpp.append(float(np.mean(rates)))
            psnr.append(float(np.mean(values)))
        found.append(Measured(effort, Curve(bpp, psnr), seconds * 1e6 / (pixels * len(qualities))))
    return found


def _gain(first: Measured, one: Measured) -> str:
    try:
        return f"{0.0 if one is first else delta(first.curve, one.curve).rate:+.1f} %"
    except NotComparable as error:  # the times hold all the same
        return f"not compared: {error}"


def table(found: Sequence[Measured]) -> str:
    """As Markdown, against the first of them."""
    first = found[0]
    head = f"| effort | BD-rate against effort {first.effort} | seconds per Mpx | times as long |"
    lines = [head, "| --- | --- | --- | --- |"]
    for one in found:
        lines.append(f"| {one.effort} | {_gain(first, one)} | {one.seconds:.1f} | {one.seconds / first.seconds:.1f} |")
    return "\n".join(lines)
