"""Encode and decode time on one picture, beside CompressAI's mbt2018-mean, as ratios of one run.

    python -m mcodec.bench.speed --image PICTURE

CompressAI's weights are untrained (time does not depend on training much); its coder is its own C++ one. Each
figure is the median of the repetitions after one warm-up. Shares are of the default model's own time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image


def _median(run: Callable[[], object], repeat: int) -> float:
    run()
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


@contextmanager
def _timed(targets: list[tuple[Any, str, str]], total: dict[str, float]) -> Iterator[None]:
    """Add the time spent in attributes of objects to `total` under a label."""
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in targets]
    for owner, name, label in targets:
        inner = getattr(owner, name)

        def wrapped(*args: Any, _inner: Any = inner, _label: str = label, **kwargs: Any) -> Any:
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


def shares(codec: Any, run: Callable[[], object]) -> dict[str, float]:
    """Share of transforms, context network and coder (assignment included) in one run."""
    from mcodec.entropy import batch

    targets: list[tuple[Any, str, str]] = []
    for stage in codec.model.stages:
        if stage.mixture:
            targets += [(stage.context, "parameters_of", "context"), (stage.context, "absorb", "context")]
    targets += [(batch.ArrayEncoder, "encode_stage", "coder"), (batch.ArrayEncoder, "finish", "coder")]
    targets += [(batch.ArrayDecoder, "decode_stage", "coder")]
    total: dict[str, float] = {}
    with _timed(targets, total):
        began = time.perf_counter()
        run()
        whole = time.perf_counter() - began
    parts = {k: v / whole for k, v in total.items()}
    parts["transform and rest"] = 1 - sum(parts.values())
    return parts


@click.command()
@click.option("--image", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--repeat", default=5, show_default=True)
@click.option("--quality", default=50.0, show_default=True)
def main(image: Path, threads: int, repeat: int, quality: float) -> None:
    """Print times, ratios and shares."""
    from compressai.zoo import mbt2018_mean

    import mcodec
    from mcodec import entropy

    torch.set_num_threads(threads)
    array = np.asarray(Image.open(image).convert("RGB"))
    codec = mcodec.load(device="cpu")
    data = codec.encode(array, quality)
    peer = mbt2018_mean(quality=4, pretrained=False).eval()
    peer.update(force=True)
    height, width = (-(-s // 64) * 64 for s in array.shape[:2])
    x = torch.zeros(1, 3, height, width)
    x[:, :, : array.shape[0], : array.shape[1]] = torch.from_numpy(array.copy()).permute(2, 0, 1) / 255
    with torch.no_grad():
        stream = peer.compress(x)
        times = {
            "mcodec": (
                _median(lambda: codec.encode(array, quality), repeat),
                _median(lambda: codec.decode(data), repeat),
            ),
            "mbt2018-mean": (
                _median(lambda: peer.compress(x), repeat),
                _median(lambda: peer.decompress(stream["strings"], stream["shape"]), repeat),
            ),
        }
    click.echo(f"{image.name} {array.shape[1]}x{array.shape[0]}, {threads} threads, torch {torch.__version__}, "
               f"entropy backend {entropy.backend()}, {len(data) * 8 / array[..., 0].size:.3f} bpp")
    for name, (encode, decode) in times.items():
        click.echo(f"{name:>14}: encode {encode * 1000:7.1f} ms, decode {decode * 1000:7.1f} ms")
    for index, what in enumerate(("encode", "decode")):
        ratio = times["mcodec"][index] / times["mbt2018-mean"][index]
        click.echo(f"{what}: mcodec / mbt2018-mean = {ratio:.2f}")
    for what, run in (("encode", lambda: codec.encode(array, quality)), ("decode", lambda: codec.decode(data))):
        parts = ", ".join(f"{k} {v:.0%}" for k, v in shares(codec, run).items())
        click.echo(f"{what} shares: {parts}")


if __name__ == "__main__":
    main()
