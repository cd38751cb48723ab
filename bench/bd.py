"""Bjontegaard deltas between two rate-distortion curves.

Computed by the package bjontegaard (G. Bjontegaard, VCEG-M33, 2001) with piecewise cubic (PCHIP) interpolation of
the logarithmic rate, over the interval that both curves cover. A figure without its interval misleads: codecs that
only differ at high rates compare differently below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mcodec.errors import BenchError

#: Curves that share less of the quality axis than this are not compared, dB.
MIN_OVERLAP = 1.0


class NotComparable(BenchError):
    """Two curves overlap too little, or one of them is no function; the message says which."""


@dataclass(frozen=True)
class Curve:
    """Points of one codec: bits per pixel and quality (dB, or another score that rises)."""

    bpp: Sequence[float]
    quality: Sequence[float]

    def ordered(self) -> Curve:
        """By rising rate; NotComparable where the quality does not rise with it."""
        points = sorted(zip(self.bpp, self.quality, strict=True))
        if len(points) < 2:
            raise NotComparable("a curve needs at least two points")
        for (r0, q0), (r1, q1) in pairwise(points):
            if q1 <= q0 or r1 <= r0:
                raise NotComparable(f"quality does not rise from {r0:.3f} bpp ({q0:.2f}) to {r1:.3f} bpp ({q1:.2f})")
        return Curve([p[0] for p in points], [p[1] for p in points])


@dataclass(frozen=True)
class Delta:
    """A comparison with an anchor: negative `rate` and positive `quality` are better."""

    rate: float  # percent of the anchor's bits at equal quality
    quality: float  # at equal rate, in the unit of the curves; nan where the rates do not overlap
    quality_interval: tuple[float, float]  # over which `rate` holds
    rate_interval: tuple[float, float]  # over which `quality` holds, bpp


def _shared(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    return max(min(a), min(b)), min(max(a), max(b))


def library() -> Any:
    """The package bjontegaard; BenchError where it is missing."""
    try:
        import bjontegaard
    except ImportError as error:
        raise BenchError(f"BD-rates need bjontegaard (pip install '.[bench]'): {error}") from error
    return bjontegaard


def delta(anchor: Curve, test: Curve) -> Delta:
    """`test` against `anchor`.

    Raises NotComparable where the curves share less than MIN_OVERLAP of the quality axis, or quality does not
    rise with the rate.
    """
    anchor, test = anchor.ordered(), test.ordered()
    low, high = _shared(anchor.quality, test.quality)
    if high - low < MIN_OVERLAP:
        between = f"from {low:.2f} to {high:.2f} only" if high > low else "nowhere"
        raise NotComparable(f"the curves overlap {between}")
    curves = (anchor.bpp, anchor.quality, test.bpp, test.quality)
    options = {"method": "pchip", "require_matching_points": False, "min_overlap": 0}
    least, most = _shared(anchor.bpp, test.bpp)
    return Delta(
        rate=float(library().bd_rate(*curves, **options)),
        quality=float(library().bd_psnr(*curves, **options)) if most > least else math.nan,
        quality_interval=(low, high),
        rate_interval=(least, most),
    )
