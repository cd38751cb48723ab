"""What a decoded picture is judged by. All metrics take two uint8 `[H, W, 3]` RGB arrays of one shape."""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from mcodec.bench.protocol import Pixels
from mcodec.errors import BenchError

#: Decibels of a picture without any error, in place of infinity.
LOSSLESS = 99.0


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio of two 8-bit pictures over all samples, dB; LOSSLESS where they are equal."""
    from mcodec import rate  # with torch, which reports of what is measured do without

    return rate.psnr(a, b, 255)


def ms_ssim(a: Pixels, b: Pixels) -> float | None:
    """Multi-scale structural similarity in RGB, 0..1; None for pictures too small for it (sides below `SIDE`)."""
    from mcodec import rate
    from mcodec.model.similarity import SIDE

    return rate.ms_ssim(a, b, 255) if min(a.shape[:2]) >= SIDE else None


@cache
def _lpips_network() -> Any:
    import lpips

    return lpips.LPIPS(net="alex", verbose=False).eval()


def _planes(pixels: Pixels) -> Any:
    """float32 tensor `[1, 3, H, W]` in 0..255."""
    import torch

    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]


def lpips(a: Pixels, b: Pixels) -> float:
    """Learned perceptual distance (Zhang et al. 2018, AlexNet), 0 for equal pictures; lower is better."""
    import torch

    with torch.no_grad():
        return float(_lpips_network()(_planes(a) / 127.5 - 1, _planes(b) / 127.5 - 1))


def ssimulacra2(a: Pixels, b: Pixels) -> float:
    """SSIMULACRA 2 score: 100 for equal pictures, about 90 where a difference is hard to see; may be negative."""
    from ssimulacra2 import compute_ssimulacra2

    files = []
    for pixels in (a, b):
        files.append(io.BytesIO())
        Image.fromarray(pixels).save(files[-1], "BMP")
    return float(compute_ssimulacra2(*files))


def _same(value: float) -> float:
    return value


def _decibels(similarity: float) -> float:
    return LOSSLESS if similarity >= 1 else min(LOSSLESS, -10 * math.log10(1 - similarity))


@dataclass(frozen=True)
class Metric:
    """One metric: how it is computed and how its mean over pictures is shown."""

    name: str  # of the option, and of the field of a row
    key: str  # in CompressAI's results format
    label: str  # with the unit, for axes and tables
    library: str | None  # import name of what computes it
    compute: Callable[[Pixels, Pixels], float | None]
    shown: Callable[[float], float] = _same  # CompressAI's order: mean first, decibels after
    higher_is_better: bool = True
    prepare: Callable[[], object] = lambda: None  # what may fail before anything is measured

    @property
    def title(self) -> str:
        """The label without the unit."""
        return self.label.partition(", ")[0]

    @property
    def unit(self) -> str:
        """That of the label, if it has one."""
        return self.label.partition(", ")[2]


METRICS = {
    m.name: m
    for m in (
        Metric("psnr", "psnr-rgb", "PSNR, dB", None, psnr),
        Metric("ms-ssim", "ms-ssim-rgb", "MS-SSIM, dB", "pytorch_msssim", ms_ssim, _decibels),
        Metric("lpips", "lpips", "LPIPS", "lpips", lpips, higher_is_better=False, prepare=_lpips_network),
        Metric("ssimulacra2", "ssimulacra2", "SSIMULACRA 2", "ssimulacra2", ssimulacra2),
    )
}


def choose(names: Sequence[str]) -> tuple[list[Metric], dict[str, str]]:
    """(metrics that can be computed here, name -> reason for the others); PSNR is always among them.

    Raises BenchError for a name that is no metric.
    """
    chosen, skipped = [METRICS["psnr"]], {}
    for name in dict.fromkeys(names):
        if name not in METRICS:
            raise BenchError(f"no metric {name!r}; there are {', '.join(METRICS)}")
        metric = METRICS[name]
        if metric in chosen:
            continue
        try:
            if metric.library:
                importlib.import_module(metric.library)
        except ImportError as error:
            skipped[name] = f"{metric.library} cannot be imported ({error})"
            continue
        try:
            metric.prepare()
        except Exception as error:  # a network that cannot be fetched or loaded raises many types
            skipped[name] = f"{metric.library} cannot be used ({error})"
            continue
        chosen.append(metric)
    return chosen, skipped
