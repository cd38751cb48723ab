"""Rate-distortion curves from real files.

    python -m mcodec.bench.rd --images DIR --out bench/results/kodak.json

Bytes are those of the files written, header included; PSNR is taken in 8-bit RGB per image, then averaged, as
is bpp (CompressAI's convention). JPEG is Pillow's, with optimized tables and 4:2:0 subsampling.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image
from rich.progress import Progress

Pixels = NDArray[np.uint8]
#: encode(picture, quality) -> (file bytes, decoded picture)
Coder = Callable[[Pixels, float], tuple[bytes, Pixels]]

MCODEC_QUALITIES = (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)
JPEG_QUALITIES = (5, 10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 85, 90, 95)


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio of two 8-bit pictures, dB."""
    mse = float(np.mean((a.astype(np.float64) - b) ** 2))
    return 99.0 if mse == 0 else 10 * float(np.log10(255**2 / mse))


def jpeg(picture: Pixels, quality: float) -> tuple[bytes, Pixels]:
    """Pillow's JPEG, optimized, 4:2:0."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=int(quality), optimize=True, subsampling="4:2:0")
    return buffer.getvalue(), np.asarray(Image.open(buffer).convert("RGB"))


def mcodec_coder(model: str | None, device: str) -> Coder:
    """The codec under test, through its public API."""
    import mcodec

    codec = mcodec.load(model, device)

    def coder(picture: Pixels, quality: float) -> tuple[bytes, Pixels]:
        data = codec.encode(picture, quality)
        return data, np.asarray(codec.decode(data))

    return coder


def measure(
    coder: Coder, pictures: dict[str, Pixels], qualities: tuple[float, ...], advance: Callable[[], None]
) -> dict[str, Any]:
    """Curve of one coder: per-image rows and their means per quality."""
    rows: list[dict[str, Any]] = []
    for quality in qualities:
        for name, picture in pictures.items():
            began = time.perf_counter()
            data, decoded = coder(picture, quality)
            rows.append(
                {
                    "image": name,
                    "quality": quality,
                    "bytes": len(data),
                    "bpp": len(data) * 8 / (picture.shape[0] * picture.shape[1]),
                    "psnr": psnr(picture, decoded),
                    "seconds": round(time.perf_counter() - began, 4),
                }
            )
            advance()

    def means(key: str) -> list[float]:
        return [float(np.mean([r[key] for r in rows if r["quality"] == q])) for q in qualities]

    return {
        "results": {"quality": list(qualities), "bpp": means("bpp"), "psnr-rgb": means("psnr")},
        "images": rows,
    }


def bd_rate(anchor: dict[str, Any], test: dict[str, Any]) -> dict[str, Any]:
    """Bjontegaard delta rate of `test` against `anchor` in percent, PCHIP, with the PSNR window it covers.

    The window is where the two curves overlap; ValueError where it is less than 1 dB. bjontegaard (PyPI)
    integrates (G. Bjontegaard, VCEG-M33, 2001, with piecewise cubic interpolation).
    """
    import bjontegaard

    a, t = anchor["results"], test["results"]
    low = max(min(a["psnr-rgb"]), min(t["psnr-rgb"]))
    high = min(max(a["psnr-rgb"]), max(t["psnr-rgb"]))
    if high - low < 1:
        raise ValueError(f"the curves overlap from {low:.2f} to {high:.2f} dB only")
    percent = bjontegaard.bd_rate(
        a["bpp"], a["psnr-rgb"], t["bpp"], t["psnr-rgb"], method="pchip", require_matching_points=False, min_overlap=0
    )
    return {"percent": round(float(percent), 2), "psnr_window": [round(low, 2), round(high, 2)]}


@click.command()
@click.option("--images", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
@click.option("--model", default=None, help="released name or path of weights")
@click.option("--device", default="auto")
def main(images: Path, out: Path, model: str | None, device: str) -> None:
    """Measure mcodec and JPEG on a folder of PNG pictures; write one JSON file."""
    pictures = {p.name: np.asarray(Image.open(p).convert("RGB")) for p in sorted(images.glob("*.png"))}
    if not pictures:
        raise click.ClickException(f"no PNG pictures in {images}")
    coders: dict[str, tuple[Coder, tuple[float, ...]]] = {
        "mcodec": (mcodec_coder(model, device), MCODEC_QUALITIES),
        "jpeg": (jpeg, JPEG_QUALITIES),
    }
    curves: dict[str, Any] = {}
    with Progress() as progress:
        for name, (coder, qualities) in coders.items():
            task = progress.add_task(name, total=len(qualities) * len(pictures))
            curves[name] = measure(coder, pictures, qualities, lambda t=task: progress.advance(t))  # type: ignore[misc]
    from mcodec import weights

    result = {
        "name": "mcodec",
        "description": "real files, header included; PSNR in RGB per image, then averaged",
        "images": len(pictures),
        "weights": weights.read_card(weights.find(model))["sha256"],
        "pillow": PIL.__version__,
        "bd_rate_vs_jpeg": bd_rate(curves["jpeg"], curves["mcodec"]),
        "curves": curves,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    click.echo(f"BD-rate vs JPEG: {result['bd_rate_vs_jpeg']}")
    for q, bpp, db in zip(*curves["mcodec"]["results"].values(), strict=True):
        click.echo(f"q {q:>3}: {bpp:.4f} bpp  {db:.2f} dB")


if __name__ == "__main__":
    main()
