"""What the encoder's search gives and takes: BD-rate and time of each effort on a folder of pictures.

Real files, in RGB per picture, means over pictures per quality: PSNR, or MS-SSIM of weights trained for it. Decoding is
the same for all efforts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mcodec.bench.bd import Curve, NotComparable, delta, library
from mcodec.bench.metrics import METRICS
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
    metric: str = "psnr"


def measure(
    codec: Codec,
    pictures: Sequence[NDArray[np.uint8]],
    efforts: Sequence[int],
    qualities: Sequence[float] = QUALITIES,
    advance: Callable[[int], None] = lambda effort: None,
) -> list[Measured]:
    """Every effort at every quality on pictures `[H, W, 3]`; `advance` is called after each file.

    Raises BenchError, before anything is measured, for qualities that give no curve and pictures too small for the
    metric.
    """
    metric = METRICS["psnr" if codec.model.config.distortion == "mse" else "ms-ssim"]
    try:
        levels = {level_of(quality) for quality in qualities}
    except ValueError as error:
        raise BenchError(str(error)) from error
    if len(levels) < max(2, len(qualities)):
        raise BenchError("a curve needs at least two qualities, and no two of the same level")
    if any(metric.compute(picture, picture) is None for picture in pictures):
        raise BenchError(f"pictures are too small for {metric.title}")
    library()  # or it is missed after all files have been made
    codec.encode(pictures[0], qualities[0])  # a warm-up
    pixels = sum(picture[..., 0].size for picture in pictures)
    found = []
    for effort in efforts:
        bpp, fidelity, seconds = [], [], 0.0
        for quality in qualities:
            rates, values = [], []
            for picture in pictures:
                began = time.perf_counter()
                data = codec.encode(picture, quality, effort=effort)
                seconds += time.perf_counter() - began
                rates.append(8 * len(data) / picture[..., 0].size)
                value = metric.compute(picture, np.asarray(codec.decode(data)))
                assert value is not None
                values.append(value)
                advance(effort)
            bpp.append(float(np.mean(rates)))
            fidelity.append(metric.shown(float(np.mean(values))))
        took = seconds * 1e6 / (pixels * len(qualities))
        found.append(Measured(effort, Curve(bpp, fidelity), took, metric.name))
    return found


def _gain(first: Measured, one: Measured) -> str:
    try:
        return f"{0.0 if one is first else delta(first.curve, one.curve).rate:+.1f} %"
    except NotComparable as error:  # the times hold all the same
        return f"not compared: {error}"


def table(found: Sequence[Measured]) -> str:
    """As Markdown, against the first of them."""
    first = found[0]
    gain = f"BD-rate ({METRICS[first.metric].title}) against effort {first.effort}"
    head = f"| effort | {gain} | seconds per Mpx | times as long |"
    lines = [head, "| --- | --- | --- | --- |"]
    for one in found:
        lines.append(f"| {one.effort} | {_gain(first, one)} | {one.seconds:.1f} | {one.seconds / first.seconds:.1f} |")
    return "\n".join(lines)
