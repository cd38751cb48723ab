"""Small folders of pictures and measurements for the benchmark's tests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mcodec.bench.metrics import METRICS
from mcodec.bench.pictures import look
from mcodec.bench.rd import Plan, Runner
from mcodec.bench.rows import Rows

Pixels = NDArray[np.uint8]


@dataclass
class Steps:
    """A codec that stores pixels in steps of 64 / quality; counts its calls and may fail or be interrupted."""

    name: str = "steps"
    version: str = "1"
    settings: str = "steps of 64 / quality"
    suffix: str = ".steps"
    device: str = "cpu"
    qualities: tuple[float, ...] = (1, 2, 4)
    whole: bool = True
    interrupt_at: int = 0  # number of the call that Ctrl-C comes in
    fail_on: tuple[int, ...] = ()  # widths that it cannot code
    calls: list[tuple[int, float]] = field(default_factory=list)  # (width, quality)

    def encode(self, pixels: Pixels, quality: float) -> bytes:
        self.calls.append((pixels.shape[1], quality))
        if len(self.calls) == self.interrupt_at:
            raise KeyboardInterrupt
        if pixels.shape[1] in self.fail_on:
            raise RuntimeError("no such\nwidth")
        step = int(64 / quality)
        sides = np.array([*pixels.shape[:2], step], np.uint16).tobytes()
        return sides + (pixels // step).tobytes() + bytes(int(quality))

    def decode(self, data: bytes) -> Pixels:
        height, width, step = np.frombuffer(data[:6], np.uint16)
        body = np.frombuffer(data[6 : 6 + 3 * int(height) * int(width)], np.uint8)
        return (body.reshape(height, width, 3) * int(step) + int(step) // 2).astype(np.uint8)


def photographs(folder: Path, sizes: Iterable[tuple[int, int]] = ((40, 32), (48, 32))) -> Path:
    """A folder with smooth, lightly textured pictures of some sizes (width, height): a.png, b.png, ..."""
    folder.mkdir(exist_ok=True)
    for index, (width, height) in enumerate(sizes):
        rng = np.random.default_rng(index)
        y, x = np.mgrid[:height, :width] / 16
        waves = np.stack([np.sin(a * x + b * y + c) for a, b, c in rng.normal(0, 1.5, (3, 3))], 2)
        array = np.clip(128 + 70 * waves + rng.normal(0, 6, waves.shape), 0, 255).astype(np.uint8)
        Image.fromarray(array).save(folder / f"{chr(97 + index)}.png")
    return folder


def quiet(done: int, total: int, what: str) -> None:
    """No progress."""


def planned(*codecs: Steps, metrics: tuple[str, ...] = ("psnr",), crops: int = 0) -> Plan:
    """A plan for codecs of the tests at their own qualities."""
    levels = {codec.name: codec.qualities for codec in codecs}
    return Plan(codecs, levels, [METRICS[m] for m in metrics], {}, threads=1, crops=crops, memory=False)


def measure(plan: Plan, images: Path, out: Path) -> Rows:
    """Run a plan and read its file again."""
    Runner(plan, look(images), out, quiet).run()
    return Rows(out / "rows.jsonl")
