"""Throughput by part, size, batch and device, beside CompressAI's mbt2018-mean where it can be imported.

Wall-clock seconds of pixels in memory to bytes in memory and back, without loading and without the disk; one warm-up,
then the 20th, 50th and 80th percentile of the repetitions. The parts of mcodec are its transforms (with everything
that is not named), its context network and its coder (choice of codewords included), as shares of one more run, with
one thread for tiles, in which each part is timed apart. The peer's weights are random: its time hardly depends on
them, its rate does; its pictures are padded floats already, and stay so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from mcodec.api import Codec
from mcodec.bench.learned import compressai, padded
from mcodec.bench.protocol import Pixels, Unavailable

PEER = "mbt2018-mean"
PERCENTILES = (20, 50, 80)


@dataclass(frozen=True)
class Timing:
    """One way of coding: seconds at PERCENTILES, throughput at the median."""

    codec: str
    what: str  # encode or decode
    width: int
    height: int
    batch: int
    device: str
    threads: int
    bpp: float
    seconds: tuple[float, ...]
    parts: dict[str, float] = field(default_factory=dict)  # shares of the whole, 0..1

    @property
    def mpx_s(self) -> float:
        """Million pixels a second."""
        return self.width * self.height * self.batch / self.seconds[1] / 1e6

    def row(self) -> dict[str, Any]:
        """As JSON, with the throughput of each part: what it would be if the others took no time."""
        parts = {k: round(self.mpx_s / share, 3) for k, share in self.parts.items() if share > 0}
        return {"kind": "speed", **asdict(self), "mpx_s": round(self.mpx_s, 4), "parts_mpx_s": parts}


def sized(pixels: Pixels, width: int, height: int) -> Pixels:
    """A picture cut, or continued by its mirror image, to a size."""
    grow = [(0, max(0, side - have)) for side, have in zip((height, width), pixels.shape[:2], strict=True)]
    return np.ascontiguousarray(np.pad(pixels, (*grow, (0, 0)), mode="symmetric")[:height, :width])


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def percentiles(run: Callable[[], object], repeat: int, device: str, warm: int = 1) -> tuple[float, ...]:
    """Seconds at PERCENTILES of `repeat` runs, after `warm` that are not counted."""
    for _ in range(warm):
        run()
    times = []
    for _ in range(repeat):
        _synchronize(device)
        began = time.perf_counter()
        run()
        _synchronize(device)
        times.append(time.perf_counter() - began)
    return tuple(float(v) for v in np.percentile(times, PERCENTILES))


@contextmanager
def _timed(targets: list[tuple[Any, str, str]], total: dict[str, float], device: str) -> Iterator[None]:
    """Add the time spent in attributes of objects to `total` under a label."""
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in targets]
    events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
    for owner, name, label in targets:
        inner = getattr(owner, name)

        def wrapped(*args: Any, _inner: Any = inner, _label: str = label, **kwargs: Any) -> Any:
            if device == "cuda":  # on its own clock: who waits for it around each part measures launches
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                try:
                    return _inner(*args, **kwargs)
                finally:
                    end.record()
                    events.append((_label, begin, end))
            began = time.perf_counter()
            try:
                return _inner(*args, **kwargs)
            finally:
                total[_label] = total.get(_label, 0.0) + time.perf_counter() - began

        setattr(owner, name, wrapped)
    try:
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)
        _synchronize(device)
        for label, begin, end in events:
            total[label] = total.get(label, 0.0) + begin.elapsed_time(end) / 1000


#: Parts of a codec, timed apart by `seconds_of_parts`; "stages" are latents and updates, "choice" is that of codewords.
PARTS = ("analysis", "stages", "synthesis", "context", "choice", "coder")


def seconds_of_parts(codec: Codec, run: Callable[[], object]) -> dict[str, float]:
    """Seconds of PARTS in one run of a codec, of the whole, and of what is "other".

    The tiles of a large picture are worked on by one thread: times of parts in several would add up to more than the
    whole. Of a GPU the time is that between events in its queue, idle while it waits for launches included: the
    parts add up to the run as it is, not to one in which the device is waited for around each.
    """
    from mcodec.entropy import batch
    from mcodec.model.cascade import Stage
    from mcodec.model.transforms import Analysis, Synthesis
    from mcodec.model.walk import ContextState, SynthesisState

    targets: list[tuple[Any, str, str]] = [(Analysis, "forward", "analysis"), (Synthesis, "forward", "synthesis")]
    targets += [(Stage, "latents", "stages"), (SynthesisState, "at", "stages"), (SynthesisState, "update", "stages")]
    targets += [(ContextState, "parameters", "context"), (ContextState, "absorb", "context")]
    for encoder, decoder in ((batch.ArrayEncoder, batch.ArrayDecoder), (batch.TensorEncoder, batch.TensorDecoder)):
        targets += [(encoder, "choose", "choice"), (encoder, "add_stage", "coder"), (encoder, "seal", "coder")]
        targets += [(decoder, "__init__", "coder"), (decoder, "decode_stage", "coder"), (decoder, "finish", "coder")]
    # sealed before, this one only fetches
    targets += [(batch.ArrayEncoder, "finish", "coder"), (batch.TensorEncoder, "fetch", "coder")]
    total: dict[str, float] = {}
    device, workers = codec.device.type, codec.tile_workers
    _synchronize(device)
    codec.tile_workers = 1
    try:
        with _timed(targets, total, device):
            began = time.perf_counter()
            run()
            _synchronize(device)
            whole = time.perf_counter() - began
    finally:
        codec.tile_workers = workers
    parts = {name: total.get(name, 0.0) for name in PARTS}
    return {**parts, "other": whole - sum(parts.values()), "whole": whole}


def shares(codec: Codec, run: Callable[[], object]) -> dict[str, float]:
    """Share of transforms (with all that is not named), context network and coder (assignment included) in one run."""
    seconds = seconds_of_parts(codec, run)
    whole = seconds["whole"]
    parts = {"context": seconds["context"] / whole, "coder": (seconds["choice"] + seconds["coder"]) / whole}
    return {"transform": 1 - sum(parts.values()), **parts}


def _timings(
    codec: str,
    runs: dict[str, Callable[[], object]],
    pixels: Pixels,
    batch: int,
    device: str,
    size: int,
    repeat: int,
    parts: Callable[[Callable[[], object]], dict[str, float]] = lambda run: {},
) -> list[Timing]:
    """size: bytes of the files of `batch` pictures."""
    height, width = pixels.shape[:2]
    bpp, threads = size * 8 / (height * width * batch), torch.get_num_threads()
    return [
        Timing(codec, what, width, height, batch, device, threads, bpp, percentiles(run, repeat, device), parts(run))
        for what, run in runs.items()
    ]


def of_mcodec(codec: Codec, pixels: Pixels, batch: int, quality: float, repeat: int) -> list[Timing]:
    """Encoding and decoding of `batch` copies of a picture together."""
    pictures = [pixels] * batch
    files = codec.encode_batch(pictures, quality)
    runs: dict[str, Callable[[], object]] = {
        "encode": lambda: codec.encode_batch(pictures, quality),
        "decode": lambda: codec.decode_batch(files),
    }
    size = sum(map(len, files))
    return _timings("mcodec", runs, pixels, batch, codec.device.type, size, repeat, partial(shares, codec))


def of_compressai(architecture: str, pixels: Pixels, batch: int, device: str, repeat: int) -> list[Timing]:
    """One of CompressAI's models with random weights (quality 4). Raises Unavailable."""
    torch.manual_seed(0)
    model = compressai().image_models[architecture](quality=4, pretrained=False).eval()
    model.update(force=True)
    model.to(device)
    x = padded(pixels, device).expand(batch, -1, -1, -1)
    with torch.no_grad():
        coded = model.compress(x)
        size = sum(len(s) for strings in coded["strings"] for s in strings)
        runs: dict[str, Callable[[], object]] = {
            "encode": lambda: model.compress(x),
            "decode": lambda: model.decompress(coded["strings"], coded["shape"]),
        }
        return _timings(architecture, runs, pixels, batch, device, size, repeat)


def measure(
    codec: Codec,
    pixels: Pixels,
    sizes: Sequence[tuple[int, int]],
    batches: Sequence[int],
    quality: float,
    repeat: int,
    report: Callable[[Timing], None],
    peer: str | None = PEER,
) -> str | None:
    """Time every size (width, height) with every batch; the reason why the peer was left out, if it was."""
    reason = None
    for width, height in sizes:
        cut = sized(pixels, width, height)
        for batch in batches:
            for timing in of_mcodec(codec, cut, batch, quality, repeat):
                report(timing)
            if peer is None or reason:
                continue
            try:
                for timing in of_compressai(peer, cut, batch, codec.device.type, repeat):
                    report(timing)
            except Unavailable as error:
                reason = f"{peer}: {error}"
    return reason
