"""The codecs to compare: one small adapter each, and the registry that makes them by name.

A codec that cannot run here raises Unavailable with the reason; nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from PIL import Image, features

from mcodec.bench.protocol import Codec, Pixels, Unavailable
from mcodec.errors import BenchError


@dataclass(frozen=True)
class PillowCodec:
    """A file format that Pillow writes, or one of its plugins."""

    name: str
    form: str
    version: str
    settings: str
    suffix: str
    qualities: tuple[float, ...]
    options: Callable[[float], dict[str, Any]]
    whole: bool = True
    device: str = "cpu"

    def encode(self, pixels: Pixels, quality: float) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, self.form, **self.options(quality))
        return buffer.getvalue()

    def decode(self, data: bytes) -> Pixels:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _library(feature: str, label: str) -> str:
    """Pillow's release and that of the library behind one of its features."""
    if not features.check(feature):
        raise Unavailable(f"this Pillow is built without {label}")
    return f"Pillow {version('pillow')}, {label} {features.version(feature)}"


def _plugin(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Unavailable(f"{package} cannot be imported ({error}); it comes with mcodec[bench]") from error


def _jpeg(name: str, optimize: bool) -> PillowCodec:
    return PillowCodec(
        name,
        "JPEG",
        _library("libjpeg_turbo", "libjpeg-turbo") if features.check("libjpeg_turbo") else _library("jpg", "libjpeg"),
        "4:2:0, optimized tables" if optimize else "4:2:0, standard tables",
        ".jpg",
        (5, 10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 85, 90, 95),
        lambda q: {"quality": int(q), "optimize": optimize, "subsampling": "4:2:0"},
    )


def _webp(name: str, method: int) -> PillowCodec:
    return PillowCodec(
        name,
        "WEBP",
        _library("webp", "libwebp"),
        f"lossy, method {method}",
        ".webp",
        (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95),
        lambda q: {"quality": int(q), "method": method},
    )


def _jpeg2000(name: str) -> PillowCodec:
    return PillowCodec(
        name,
        "JPEG2000",
        _library("jpg_2000", "OpenJPEG"),
        "9/7 wavelet, one layer; quality = compression ratio of 24-bit pixels",
        ".jp2",
        (200, 120, 80, 60, 48, 36, 28, 22, 16, 12, 9, 6),
        lambda q: {"quality_mode": "rates", "quality_layers": [q], "irreversible": True, "mct": 1},
        whole=False,
    )


def _avif(name: str, threads: int) -> PillowCodec:
    release = _library("avif", "libavif")
    _plugin("PIL.AvifImagePlugin", "Pillow").DEFAULT_MAX_THREADS = threads  # Pillow's only way to bound decoding
    # Encoder and tune are named because the defaults change between releases, and libaom's present one ("iq")
    # aims at looks rather than at the metrics here.
    return PillowCodec(
        name,
        "AVIF",
        release,
        "aom, 4:4:4, speed 4, tune=psnr",
        ".avif",
        (5, 10, 20, 30, 40, 50, 60, 70, 80),
        lambda q: {
            "quality": int(q),
            "codec": "aom",
            "speed": 4,
            "subsampling": "4:4:4",
            "max_threads": threads,
            "advanced": {"tune": "psnr"},
        },
    )


def _jxl(name: str, threads: int) -> PillowCodec:
    plugin = _plugin("pillow_jxl", "pillow-jxl-plugin")
    plugin.JpegXLImagePlugin.DECODE_THREADS = threads
    return PillowCodec(
        name,
        "JXL",
        f"pillow-jxl-plugin {version('pillow-jxl-plugin')}",
        "lossy (XYB), effort 7",
        ".jxl",
        (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95),
        lambda q: {"quality": int(q), "effort": 7, "num_threads": threads},
    )


def _heic(name: str, threads: int) -> PillowCodec:
    plugin = _plugin("pillow_heif", "pillow-heif")
    plugin.register_heif_opener()
    plugin.options.DECODE_THREADS = threads
    libheif = plugin.libheif_info()
    encoder = next((name for name in libheif["encoders"].values() if "HEVC" in name), None)
    if encoder is None:
        raise Unavailable("this pillow-heif is built without an HEVC encoder")
    # Tune is named as AVIF's is: libheif's default is "ssim", whose adaptive steps cost PSNR.
    return PillowCodec(
        name,
        "HEIF",
        f"pillow-heif {version('pillow-heif')}, libheif {libheif['libheif']}, {encoder}",
        "4:2:0, tune=psnr; x265 chooses its own threads",
        ".heic",
        (1, 5, 10, 15, 20, 25, 30, 40, 50),
        lambda q: {"quality": int(q), "chroma": "420", "enc_params": {"tune": "psnr"}},
    )


def _mcodec(name: str, weights: str | None, device: str) -> Codec:
    from mcodec.bench.learned import McodecCodec

    _, _, effort = name.partition(":")[0].partition("@")
    if effort and effort not in EFFORTS:
        raise BenchError(f"effort must be from {EFFORTS[0]} to {EFFORTS[-1]}, got {name!r}")
    return McodecCodec(name, weights, device, int(effort or 1))


def _compressai(name: str, weights: str | None, device: str) -> Codec:
    from mcodec.bench.learned import CompressAICodec

    return CompressAICodec(name, weights, device)


EFFORTS = tuple("123456789")

#: name -> how it is made, given the text after "NAME:", a device for networks and a number of threads.
_MAKERS: dict[str, Callable[[str, str | None, str, int], Codec]] = {
    "mcodec": lambda name, weights, device, threads: _mcodec(name, weights, device),
    "jpeg": lambda name, weights, device, threads: _jpeg(name, optimize=True),
    "webp": lambda name, weights, device, threads: _webp(name, method=6),
    "jpeg2000": lambda name, weights, device, threads: _jpeg2000(name),
    "avif": lambda name, weights, device, threads: _avif(name, threads),
    "jxl": lambda name, weights, device, threads: _jxl(name, threads),
    "heic": lambda name, weights, device, threads: _heic(name, threads),
    # Pillow's defaults, which CompressAI's published curves were made with: for `check`, not as peers.
    "jpeg-default": lambda name, weights, device, threads: _jpeg(name, optimize=False),
    "webp-default": lambda name, weights, device, threads: _webp(name, method=4),
}
LEARNED_PEERS = ("bmshj2018-factorized", "bmshj2018-hyperprior", "mbt2018-mean", "mbt2018", "cheng2020-anchor")
for _peer in LEARNED_PEERS:
    _MAKERS[_peer] = lambda name, weights, device, threads: _compressai(name, weights, device)

NAMES = tuple(_MAKERS)
#: Measured unless others are asked for: everything that needs no weights from elsewhere.
DEFAULT = ("mcodec", "jpeg", "webp", "jpeg2000", "avif", "jxl", "heic")


def make(spec: str, device: str = "cpu", threads: int = 1) -> Codec:
    """The codec of a specification NAME or NAME:WEIGHTS, for mcodec also mcodec@EFFORT.

    WEIGHTS: for mcodec a released name or the path of a `.safetensors` file; for CompressAI's models a checkpoint
    or a folder of them, one per quality. Raises Unavailable where it cannot run, BenchError for an unknown name.
    """
    name, _, weights = spec.partition(":")
    if name.startswith("mcodec@"):
        name = "mcodec"
    if name not in _MAKERS:
        raise BenchError(f"no codec {name!r}; there are {', '.join(NAMES)}")
    if weights and name != "mcodec" and name not in LEARNED_PEERS:
        raise BenchError(f"{name} takes no weights, got {spec!r}")
    return _MAKERS[name](spec, weights or None, device, threads)
