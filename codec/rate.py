"""Rate control: the quality that meets a size or a fidelity."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from mcodec.errors import TargetError
from mcodec.image import Picture, Raster, taken
from mcodec.model import quality_of, similarity
from mcodec.model.config import LEVELS
from mcodec.model.search import steps_of

if TYPE_CHECKING:
    from mcodec.api import Codec

#: A result this close to its target has reached it: 2 % of a size, 0.2 dB, 10 % of what MS-SSIM lacks to 1.
TOLERANCE = {"bytes": 0.02, "bpp": 0.02, "psnr": 0.2, "ms-ssim": 0.1}
#: The search ends early here: less than what neighbouring quality levels differ by.
CLOSE = 0.003
#: Encodings of a higher effort before that of effort 1 is taken.
TURNS = 3
#: Levels that are tried where the highest falls short.
BACK = (240, 216, 192)

MEASURES = tuple(TOLERANCE)


@dataclass(frozen=True)
class Target:
    """What a file is to be: `measure` one of MEASURES; bytes and bpp of the whole file, psnr in dB, ms-ssim 0 to 1."""

    measure: str
    value: float

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise ValueError(f"a target is one of {', '.join(MEASURES)}, got {self.measure!r}")
        limit = 1.0 if self.measure == "ms-ssim" else math.inf
        if not 0 < self.value < limit:
            raise ValueError(f"a target of {self.measure} must be above 0 and below {limit}, got {self.value}")


class Found(NamedTuple):
    """A file that meets its target; encoding the picture again with this quality and effort gives the same bytes."""

    data: bytes
    quality: float
    effort: int
    value: float  # of the target's measure


def encode_to(
    codec: Codec, image: Picture, target: Target, metadata: str = "all", effort: int = 1
) -> tuple[bytes, float]:
    """(file, quality) of what `find` finds."""
    found = find(codec, image, target, metadata, effort)
    return found.data, found.quality


def find(codec: Codec, image: Picture, target: Target, metadata: str = "all", effort: int = 1) -> Found:
    """The file within its TOLERANCE of a target; TargetError names the nearest where no quality reaches it.

    Size and fidelity rise with the quality, by and large: the search is for a crossing, by interpolation and halving in
    turns, and takes some 6 to 8 encodings, of effort 1. A higher effort is spent on the quality that was found, and on
    others only where it moves the file away from the target. Where it reaches the target with none of them, the file is
    that of effort 1.
    """
    steps_of(effort)  # ValueError at once, not behind some encodings
    raster = taken(image)
    files: dict[int, bytes] = {}

    def measured(level: int) -> float:
        files[level] = codec.encode(raster, quality_of(level), metadata)
        return measure(codec, raster, files[level], target.measure)

    values = search(measured, target)
    level = min(values, key=lambda at: _missed(values[at], target))
    if _missed(values[level], target) > 1:
        raise TargetError(
            f"no quality gives {target.value:g} {target.measure}: "
            f"the nearest is {values[level]:.6g}, at quality {quality_of(level):.4g}"
        )
    if effort > 1 and (found := _dearer(codec, raster, target, metadata, effort, values, level)):
        return found
    return Found(files[level], quality_of(level), 1, values[level])


def _dearer(
    codec: Codec,
    raster: Raster,
    target: Target,
    metadata: str,
    effort: int,
    values: dict[int, float],
    level: int,
) -> Found | None:
    """The file of a higher effort, from the level and the values of effort 1; None where none reaches the target."""
    levels, rising = sorted(values), sorted(values, key=values.__getitem__)
    tried: set[int] = set()
    while level not in tried and len(tried) < TURNS:
        tried.add(level)
        data = codec.encode(raster, quality_of(level), metadata, effort)
        value = measure(codec, raster, data, target.measure)
        if _missed(value, target) <= 1:
            return Found(data, quality_of(level), effort, value)
        # the effort moves neighbouring levels by about the same factor
        before = float(np.interp(level, levels, [values[at] for at in levels]))
        aim = before * target.value / value
        level = round(float(np.interp(aim, [values[at] for at in rising], rising)))
    return None


def search(measured: Callable[[int], float], target: Target) -> dict[int, float]:
    """Levels that were tried, with their values; the nearest to the target is among them if values rise."""
    low, high = 0, LEVELS - 1
    values = {low: measured(low), high: measured(high)}
    for level in BACK:  # near the top a picture may get worse again
        if values[high] >= target.value:
            break
        high = level
        values[high] = measured(high)
    if not values[low] < target.value < values[high]:
        return values
    halve = False
    while high - low > 1:
        share = 0.5
        if not halve:
            a, b, t = (_even(value, target.measure) for value in (values[low], values[high], target.value))
            share = (t - a) / (b - a)
        halve = not halve
        level = min(high - 1, max(low + 1, round(low + share * (high - low))))
        values[level] = measured(level)
        if abs(values[level] - target.value) <= CLOSE * target.value and target.measure in ("bytes", "bpp"):
            break
        if values[level] < target.value:
            low = level
        else:
            high = level
        if values[low] >= values[high]:
            break  # not rising here: what is there is as near as it gets
    return values


def _missed(value: float, target: Target) -> float:
    """How far a value is from a target, in tolerances."""
    distance = _even(value, target.measure) - _even(target.value, target.measure)
    return abs(distance) / TOLERANCE[target.measure]


def _even(value: float, measure: str) -> float:
    """The measure on a scale on which it is about linear in the level."""
    if measure in ("bytes", "bpp"):
        return math.log(value)
    return -math.log(max(1 - value, 1e-9)) if measure == "ms-ssim" else value


def measure(codec: Codec, original: Raster, data: bytes, name: str) -> float:
    """One of MEASURES of a file; fidelity is that of the decoded colour or grey samples, without alpha."""
    if name == "bytes":
        return float(len(data))
    if name == "bpp":
        return 8 * len(data) / (original.size[0] * original.size[1])
    a, b = np.asarray(original.samples), np.asarray(codec.decode_raster(data, max_pixels=None).samples)
    peak = float(np.iinfo(a.dtype).max)
    return psnr(a, b, peak) if name == "psnr" else ms_ssim(a, b, peak)


def psnr(a: np.ndarray, b: np.ndarray, peak: float) -> float:
    """Peak signal-to-noise ratio in dB, 99 for equal arrays. Row by row: large pictures are not copied as floats."""
    total = sum(float(np.square(x.astype(np.float64) - y).sum()) for x, y in zip(a, b, strict=True))
    return 99.0 if total == 0 else 10 * math.log10(peak**2 * a.size / total)


def ms_ssim(a: np.ndarray, b: np.ndarray, peak: float) -> float:
    """MS-SSIM (see `mcodec.model.similarity`) of arrays `[H, W]` or `[H, W, C]`; TargetError for sides too short."""
    if min(a.shape[:2]) < similarity.SIDE:
        side = f"sides of {similarity.SIDE} pixels"
        raise TargetError(f"MS-SSIM is defined from {side} on, got {a.shape[1]}x{a.shape[0]}")
    x, y = (torch.from_numpy(v.reshape(*v.shape[:2], -1).astype(np.float32)).permute(2, 0, 1)[None] for v in (a, b))
    return float(similarity.ms_ssim(x, y, peak))
