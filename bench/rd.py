"""The runner: real files of every codec at every quality, measured once each.

Bytes are those of the file on disk, header included. Metrics compare 8-bit RGB. Seconds are those of the coding
itself, pixels in memory to bytes in memory and back, without the disk; the first coding of a codec at a picture
size is a warm-up and not timed. Pictures are the outer loop: an interrupted run has whole pictures, hence curves.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from mcodec.bench import codecs, machine, memory, metrics
from mcodec.bench.metrics import Metric
from mcodec.bench.pictures import Picture
from mcodec.bench.protocol import Codec, Pixels, Unavailable
from mcodec.bench.rows import CROPS, ROWS, Row, Rows, memory_quality
from mcodec.errors import BenchError

#: report(done, total, what is measured): after every row, also one that was already there.
Report = Callable[[int, int, str], None]

#: Rates at which the viewer compares, bits per pixel, and the size of its crops.
CROP_BPP = (0.25, 0.75)
CROP_WIDTH, CROP_HEIGHT = 320, 240
#: Halvings of the quality range: 2**-8 of 1..100 is finer than whole qualities.
MATCH_STEPS = 8


@dataclass(frozen=True)
class Plan:
    """What is to be measured."""

    codecs: Sequence[Codec]
    qualities: dict[str, tuple[float, ...]]  # by codec name
    metrics: Sequence[Metric]
    skipped: dict[str, str]  # codec or metric -> reason
    threads: int
    crops: int = 0  # pictures in the viewer
    memory: bool = True

    def identity(self, codec: Codec) -> Row:
        """The fields that rows of this codec share."""
        return {
            "codec": codec.name,
            "version": codec.version,
            "settings": codec.settings,
            "device": codec.device,
            "threads": self.threads,
            "processor": machine.hardware(codec.device),
        }


def plan(
    names: Sequence[str],
    metric_names: Sequence[str] = ("psnr", "ms-ssim"),
    qualities: dict[str, tuple[float, ...]] | None = None,
    device: str = "cpu",
    threads: int = 1,
    crops: int = 0,
    measure_memory: bool = True,
) -> Plan:
    """A plan with those of the named codecs and metrics that can run here; the others with their reasons.

    qualities: for codecs that shall not have their default ones. Raises BenchError where no codec is left.
    """
    chosen, skipped = metrics.choose(metric_names)
    made: list[Codec] = []
    for name in dict.fromkeys(names):
        try:
            made.append(codecs.make(name, device, threads))
        except Unavailable as error:
            skipped[name] = str(error)
    if not made:
        raise BenchError("no codec can run: " + "; ".join(f"{k}: {v}" for k, v in skipped.items()))
    asked = qualities or {}
    if unknown := set(asked) - {c.name for c in made} - set(skipped):
        raise BenchError(f"qualities for {', '.join(sorted(unknown))}, which is not among the codecs")
    levels = {c.name: asked.get(c.name, c.qualities) for c in made}
    for codec in made:
        if codec.whole and any(q != int(q) for q in levels[codec.name]):
            raise BenchError(f"{codec.name} has whole qualities only")
    return Plan(made, levels, chosen, skipped, threads, crops, measure_memory)


def measure(codec: Codec, quality: float, pixels: Pixels, wanted: Sequence[Metric], folder: Path) -> Row:
    """Code a picture once through a file in `folder`; bytes, bpp, seconds and metrics."""
    began = time.perf_counter()
    data = codec.encode(pixels, quality)
    encode_s = time.perf_counter() - began
    file = folder / f"picture{codec.suffix}"
    file.write_bytes(data)
    size, data = file.stat().st_size, file.read_bytes()
    began = time.perf_counter()
    decoded = codec.decode(data)
    decode_s = time.perf_counter() - began
    if decoded.shape != pixels.shape:
        raise BenchError(f"decoded to shape {list(decoded.shape)}, not {list(pixels.shape)}")
    return {
        "bytes": size,
        "bpp": size * 8 / (pixels.shape[0] * pixels.shape[1]),
        "encode_s": round(encode_s, 6),
        "decode_s": round(decode_s, 6),
        "metrics": {m.name: m.compute(pixels, decoded) for m in wanted},
    }


def matched(codec: Codec, pixels: Pixels, qualities: Sequence[float], size: float) -> tuple[float, bytes]:
    """(quality, file) whose bytes come nearest to `size`, by bisection between the first and the last quality.

    A codec that cannot reach the size gives its nearest end. Files must grow from the first quality to the last.
    """
    low, high = qualities[0], qualities[-1]
    tried: dict[float, bytes] = {}
    for quality in (low, high):
        tried[quality] = codec.encode(pixels, quality)
    for _ in range(MATCH_STEPS):
        middle = (low + high) / 2
        middle = round(middle) if codec.whole else round(middle, 2)
        if middle in tried:
            break
        tried[middle] = codec.encode(pixels, middle)
        low, high = (middle, high) if len(tried[middle]) < size else (low, middle)
    return min(tried.items(), key=lambda item: abs(len(item[1]) - size))


def middle(pixels: Pixels) -> Pixels:
    """The crop of the viewer, from the middle of the picture."""
    top = max(0, (pixels.shape[0] - CROP_HEIGHT) // 2)
    left = max(0, (pixels.shape[1] - CROP_WIDTH) // 2)
    return pixels[top : top + CROP_HEIGHT, left : left + CROP_WIDTH]


def save_crop(pixels: Pixels, folder: Path, name: str) -> str:
    """Write the middle crop losslessly; its file name."""
    folder.mkdir(exist_ok=True)
    Image.fromarray(middle(pixels)).save(folder / f"{name}.webp", lossless=True)
    return f"{name}.webp"


class Runner:
    """Measures a plan into `folder`/rows.jsonl, leaving out what is already there."""

    def __init__(self, plan: Plan, pictures: Sequence[Picture], folder: Path, report: Report) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.plan, self.pictures, self.folder, self._report = plan, pictures, folder, report
        self.rows = Rows(folder / ROWS)
        good = [p for p in pictures if not p.problem]
        self._readable = good
        self._shown = [p for p in good if p.averaged][: plan.crops]
        points = sum(len(plan.qualities[c.name]) for c in plan.codecs)
        crops = len(self._shown) * len(CROP_BPP) * len(plan.codecs)
        self._total = len(good) * points + crops + len(plan.codecs) * plan.memory
        self._done = 0
        self._warm: set[tuple[str, tuple[int, ...]]] = set()

    def run(self) -> None:
        """Measure everything. KeyboardInterrupt passes through; the file is valid whenever it comes."""
        self.rows.add(self._description())
        with TemporaryDirectory(dir=self.folder, prefix=".coding-") as files:
            for picture in self._readable:
                pixels = picture.pixels()
                for codec in self.plan.codecs:
                    self._curve(codec, picture, pixels, Path(files))
            for picture in self._shown:
                pixels = picture.pixels()
                save_crop(pixels, self.folder / CROPS, picture.sha256[:16])
                for codec in self.plan.codecs:
                    self._crops(codec, picture, pixels)
        if self.plan.memory:
            largest = max(self._readable, key=lambda p: p.width * p.height)
            for codec in self.plan.codecs:
                self._memory(codec, largest)

    def _description(self) -> Row:
        devices = {c.device for c in self.plan.codecs}
        return {
            "kind": "run",
            **machine.describe("cuda" if "cuda" in devices else "cpu", self.plan.threads),
            "metrics": [m.name for m in self.plan.metrics],
            "codecs": [
                self.plan.identity(c) | {"qualities": list(self.plan.qualities[c.name])} for c in self.plan.codecs
            ],
            "skipped": self.plan.skipped,
            "pictures": [
                {
                    "image": p.name,
                    "image_sha256": p.sha256,
                    "width": p.width,
                    "height": p.height,
                    "averaged": p.averaged,
                    "note": p.problem or p.note,
                }
                for p in self.pictures
            ],
            "crops": [p.name for p in self._shown],
        }

    def _step(self, what: str) -> None:
        self._done += 1
        self._report(self._done, self._total, what)

    def _identity(self, kind: str, codec: Codec, picture: Picture, **more: Any) -> Row:
        row = {"kind": kind, **self.plan.identity(codec), "image": picture.name, "image_sha256": picture.sha256}
        return row | more

    def _curve(self, codec: Codec, picture: Picture, pixels: Pixels, files: Path) -> None:
        """All qualities of one codec on one picture; a failure ends them and is noted."""
        qualities = self.plan.qualities[codec.name]
        names = {m.name for m in self.plan.metrics}
        for index, quality in enumerate(qualities):
            row = self._identity("point", codec, picture, quality=quality)
            before = self.rows.find(row)
            if before is None or not names <= set(before["metrics"]):
                try:
                    self._warm_up(codec, pixels, quality)
                    row |= measure(codec, quality, pixels, self.plan.metrics, files)
                except Exception as error:  # whatever a codec's library raises concerns this codec and picture only
                    self._failed(row, error)
                    for _ in qualities[index:]:
                        self._step(f"{picture.name} {codec.name}: failed")
                    return
                self.rows.add(row)
            self._step(f"{picture.name} {codec.name} {quality:g}")

    def _warm_up(self, codec: Codec, pixels: Pixels, quality: float) -> None:
        if (codec.name, pixels.shape) not in self._warm:
            codec.decode(codec.encode(pixels, quality))
            self._warm.add((codec.name, pixels.shape))

    def _crops(self, codec: Codec, picture: Picture, pixels: Pixels) -> None:
        for target in CROP_BPP:
            row = self._identity("crop", codec, picture, target_bpp=target)
            before = self.rows.find(row)
            if before is None or not (self.folder / CROPS / before["file"]).exists():
                size = target * picture.width * picture.height / 8
                name = hashlib.sha256(repr(sorted(row.items())).encode()).hexdigest()[:16]
                try:
                    quality, data = matched(codec, pixels, codec.qualities, size)
                    file = save_crop(codec.decode(data), self.folder / CROPS, name)
                    self.rows.add(row | {"bytes": len(data), "at_quality": quality, "file": file})
                except Exception as error:  # as above
                    self._failed(row, error)
            self._step(f"{picture.name} {codec.name} at {target} bpp")

    def _memory(self, codec: Codec, picture: Picture) -> None:
        qualities = self.plan.qualities[codec.name]
        row = self._identity("memory", codec, picture, quality=memory_quality(qualities))
        if self.rows.find(row) is None:
            try:
                found = memory.measure(codec.name, codec.device, self.plan.threads, row["quality"], picture.path)
                self.rows.add(row | found)
            except BenchError as error:
                self._failed(row, error)
        self._step(f"{codec.name}: memory")

    def _failed(self, row: Row, error: Exception) -> None:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        self.rows.add(row | {"kind": "failure", "of": row["kind"], "reason": reason})
