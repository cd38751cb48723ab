"""Throughput of the whole codec on a GPU: pictures that lie there to bytes on the host, and bytes to pictures there.

    python -m mcodec.bench.gpu --out bench/results/gpu.jsonl

Entropy coding is part of it, files are not. A row holds the 20th, 50th and 80th percentile in seconds, the peak of
allocated memory, and the parts of one more run in which the device is waited for around each (mcodec.bench.speed).
Before anything is timed, a file of one picture must decode on the CPU to the codes that went into it and that the GPU
reads from it; otherwise there is no figure. `MCODEC_ENTROPY=c` measures the coder on the host, stage by stage, in place
of that on the GPU, whose time is that of the longest lane of a stream. Rows append; `--table` writes them as Markdown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from mcodec.api import Codec, load
from mcodec.bench import machine, metrics
from mcodec.bench.pictures import rgb
from mcodec.bench.protocol import Pixels
from mcodec.bench.speed import percentiles, seconds_of_parts, sized
from mcodec.entropy import LANE_SHARE, backend, batch_encoder
from mcodec.entropy.batch import ArrayEncoder
from mcodec.files import append_rows
from mcodec.image import read_image

WIDTH, HEIGHT = 1920, 1080
BATCHES = (1, 4, 16)
#: Side of tiles: that of a file by default, and one that holds the picture in a single tile.
TILES = (1024, 2048)
WARM = 2
#: Without the compiled coder the CPU takes minutes for a picture: only so much of it (side in pixels) is verified then.
VERIFIED_BY_NUMPY = 256
EXAMPLE = Path(__file__).parent.parent / "examples" / "photo.jpg"


class Mismatch(Exception):
    """A file does not decode to the same codes everywhere."""


def picture(path: Path | None, width: int = WIDTH, height: int = HEIGHT) -> Pixels:
    """The pixels of a file mirrored to size, or else soft waves with noise."""
    if path is not None:
        return sized(rgb(read_image(path)), width, height)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width] / 64
    waves = [sum(np.sin(a * x + b * y + c) for a, b, c in rng.normal(0, 1.5, (4, 3))) for _ in range(3)]
    return np.clip(128 + 30 * np.stack(waves, 2) + rng.normal(0, 4, (height, width, 3)), 0, 255).astype(np.uint8)


def on_device(pixels: Pixels, batch: int, device: torch.device) -> list[Tensor]:
    """`batch` pictures `[3, H, W]` on a device, each shifted a little further, so that no two streams are equal."""
    tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).to(device)
    return [torch.roll(tensor, (24 * i, 40 * i), (1, 2)).contiguous() for i in range(batch)]


def verify(codec: Codec, reference: Codec, image: Tensor, quality: float) -> str:
    """Raises Mismatch unless the codes of a file are the same everywhere; returns what was verified, "WxH".

    reference: the same weights on a CPU. image: uint8 `[3, H, W]` on the codec's device.
    """
    if backend() != "c":
        image = image[:, :VERIFIED_BY_NUMPY, :VERIFIED_BY_NUMPY].contiguous()
    data, sent = codec.encode_with_codes(image, quality)
    for name, found in (("the GPU", codec.codes(data)), ("the CPU", reference.codes(data))):
        for stage, (a, b) in enumerate(zip(sent, found, strict=True)):
            if not torch.equal(a.int(), b.int()):
                wrong = int((a.int() != b.int()).sum())
                raise Mismatch(f"stage {stage + 1}: {wrong} of {a.numel()} codes that {name} decodes are not as sent")
    decoded = codec.decode_tensors([data])[0]
    if decoded.shape != image.shape:
        raise Mismatch(f"a picture of {list(image.shape)} comes back as {list(decoded.shape)}")
    return f"{image.shape[2]}x{image.shape[1]}"


def runs(codec: Codec, pictures: Sequence[Tensor], files: Sequence[bytes], quality: float) -> dict[str, Any]:
    """What is timed: name -> call."""
    return {
        "encode": lambda: codec.encode_batch(list(pictures), quality),
        "decode": lambda: codec.decode_tensors(files),
    }


def measure(
    codec: Codec, pixels: Pixels, batch: int, quality: float, repeat: int, facts: dict[str, Any]
) -> list[dict[str, Any]]:
    """Rows of encoding and decoding `batch` pictures together; facts: what else they state."""
    device = codec.device
    pictures = on_device(pixels, batch, device)
    files = codec.encode_batch(pictures, quality)
    count = batch * pixels.shape[0] * pixels.shape[1]
    decoded = codec.decode_tensors(files)
    pairs = ((a.cpu().numpy(), b.cpu().numpy()) for a, b in zip(pictures, decoded, strict=True))
    quality_db = sum(metrics.psnr(a, b) for a, b in pairs) / batch
    del decoded
    rows = []
    for what, run in runs(codec, pictures, files, quality).items():
        gpu = device.type == "cuda"
        if gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        low, middle, high = percentiles(run, repeat, device.type, WARM)
        memory = torch.cuda.max_memory_allocated(device) / 2**20 if gpu else 0.0
        parts = seconds_of_parts(codec, run)
        rows.append(
            {
                "kind": "gpu", "what": what, "width": pixels.shape[1], "height": pixels.shape[0], "batch": batch,
                "tile": codec.tile, "lane_share": codec.lane_share, "quality": quality, "bf16": codec.bf16,
                "repeat": repeat, "bpp": round(8 * sum(map(len, files)) / count, 4), "psnr": round(quality_db, 3),
                "p20": low, "p50": middle, "p80": high, "mpx_s": count / middle / 1e6,
                "mpx_s_p20_p80": [count / high / 1e6, count / low / 1e6], "peak_memory_mib": round(memory, 1),
                "parts": parts, "coding_share": (parts["context"] + parts["coder"]) / parts["whole"],
                **facts,
            }
        )  # fmt: skip
    return rows


def facts(device: torch.device, image: str, model: str | None, codec: Codec, verified: str) -> dict[str, Any]:
    """Where a row was measured."""
    from mcodec.kernels import backend as kernels

    on_host = isinstance(batch_encoder(1, device), ArrayEncoder)
    return {
        "coder": backend() if on_host else "tensor", "image": image,
        "model": model, "weights": codec.fingerprint.hex(), "verified": verified,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__, "triton": getattr(kernels.triton, "__version__", None),
        "commit": machine.commit(), "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def profile(codec: Codec, pixels: Pixels, quality: float, path: Path) -> None:
    """Tables of the operations of one encoding and one decoding of a picture, those first that take the GPU longest."""
    from torch.profiler import ProfilerActivity

    pictures = on_device(pixels, 1, codec.device)
    files = codec.encode_batch(pictures, quality)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (codec.device.type == "cuda")
    parts = []
    for what, run in runs(codec, pictures, files, quality).items():
        run()
        with torch.profiler.profile(activities=activities) as found:
            run()
            if codec.device.type == "cuda":
                torch.cuda.synchronize(codec.device)
        parts.append(f"{what}\n{found.key_averages().table(sort_by='cuda_time_total', row_limit=40)}\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown of a results file: of each device, direction, batch and tile the last row."""
    rows = [{"lane_share": LANE_SHARE, **row} for row in rows]  # older rows do not state it
    key = ("device", "what", "width", "height", "quality", "coder", "lane_share", "batch", "tile")
    last = {tuple(row[name] for name in key): row for row in rows}
    names = ("analysis", "stages", "synthesis", "context", "choice", "coder", "other")
    lines = [
        "| device | size, quality | what | coder | lanes | batch | tile | Mpx/s (p20 to p80) | bpp | PSNR, dB "
        f"| peak MiB | {' | '.join(f'{name}, ms' for name in names)} | coding share |",
        "|---" * (12 + len(names)) + "|",
    ]
    for r in last.values():
        speed = f"{r['mpx_s']:.1f} ({r['mpx_s_p20_p80'][0]:.1f} to {r['mpx_s_p20_p80'][1]:.1f})"
        parts = " | ".join(f"{1000 * r['parts'][name]:.1f}" for name in names)
        lines.append(
            f"| {r['device']} | {r['width']}x{r['height']}, {r['quality']:g} | {r['what']} | {r['coder']} "
            f"| {r['lane_share']:.1%} | {r['batch']} | {r['tile']} | {speed} | {r['bpp']:.3f} | {r['psnr']:.2f}"
            f" | {r['peak_memory_mib']:.0f} | {parts} | {r['coding_share']:.0%} |"
        )
    return "\n".join(lines)


def bench(
    codecs: tuple[Codec, Codec],
    pixels: Pixels,
    batches: Sequence[int],
    tiles: Sequence[int],
    quality: float,
    repeat: int,
    out: Path,
    about: tuple[str, str | None],
    say: Callable[[str], None],
) -> None:
    """Verify, then measure every tile and batch, and append the rows as they come; Mismatch where files do not agree.

    codecs: the one to measure, and the reference on a CPU. about: name of the picture, and of the weights.
    """
    codec, reference = codecs
    for tile in tiles:
        codec.tile = tile
        verified = verify(codec, reference, on_device(pixels, 1, codec.device)[0], quality)
        say(f"tiles of {tile}: a file of {verified} decodes to the same codes on GPU and CPU")
        for batch in batches:
            try:
                rows = measure(
                    codec, pixels, batch, quality, repeat, facts(codec.device, *about, codec, verified)
                )
            except torch.cuda.OutOfMemoryError as error:
                say(f"batch {batch}: out of memory: {error}")
                continue
            append_rows(out, rows)
            say(table(rows).split("\n", 2)[2])


@click.command()
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=Path("bench/results/gpu.jsonl"))
@click.option("--image", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Default: the example.")
@click.option("-q", "--quality", type=click.FloatRange(1, 100), default=50.0, show_default=True)
@click.option("--model", help="Name or path of weights. Default: the released ones.")
@click.option("--batch", "batches", type=click.IntRange(1), multiple=True, default=BATCHES, show_default=True)
@click.option("--tile", "tiles", type=click.IntRange(64), multiple=True, default=TILES, show_default=True)
@click.option(
    "--lane-share", type=click.FloatRange(0.0001, 0.1), default=LANE_SHARE, show_default=True,
    help="Of the bytes, at most: more lanes make shorter ones.",
)
@click.option("--repeat", type=click.IntRange(1), default=10, show_default=True)
@click.option("--bf16/--float32", default=True, show_default=True, help="Type of the transforms' convolutions.")
@click.option("--profile", "profiled", type=click.Path(dir_okay=False, path_type=Path), help="Operations of one run.")
@click.option("--table", "show", is_flag=True, help="Print the file's rows as Markdown and measure nothing.")
def main(
    out: Path,
    image: Path | None,
    quality: float,
    model: str | None,
    batches: tuple[int, ...],
    tiles: tuple[int, ...],
    lane_share: float,
    repeat: int,
    bf16: bool,
    profiled: Path | None,
    show: bool,
) -> None:
    """Whole-codec throughput on a GPU, with entropy coding, without files."""
    if show:
        click.echo(table([json.loads(line) for line in out.read_text().splitlines()]))
        return
    if not torch.cuda.is_available():
        click.echo("no CUDA device: there is nothing to measure")
        return
    path = image or (EXAMPLE if EXAMPLE.exists() else None)
    pixels = picture(path)
    codec, reference = load(model, "cuda", bf16), load(model, "cpu")
    codec.lane_share = lane_share
    click.echo(f"{torch.cuda.get_device_name()}, {codec.batch_pixels / 2**20:g} Mi pixels in a pass")
    try:
        bench(
            (codec, reference), pixels, batches, tiles, quality, repeat, out,
            (path.name if path else "generated", model), click.echo,
        )  # fmt: skip
    except Mismatch as error:
        raise click.ClickException(f"nothing is reported: {error}") from error
    if profiled is not None:
        profile(codec, pixels, quality, profiled)


if __name__ == "__main__":
    main()
