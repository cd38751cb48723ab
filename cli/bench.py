"""`mcodec bench`: a thin layer over `mcodec.bench`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mcodec.cli.options import FILE, Number, check_apart, check_device, device_option, load_codec, model_option
from mcodec.cli.progress import QUIET
from mcodec.errors import BenchError
from mcodec.files import append_rows

if TYPE_CHECKING:
    from mcodec.api import Codec
    from mcodec.bench.anchors import Published
    from mcodec.bench.rd import Report
    from mcodec.bench.speed import Timing

GROUP_EXAMPLES = """\b
Examples:
  mcodec bench rd --images photos/ --out runs/photos     measures and writes runs/photos/report.html
  mcodec bench report runs/photos --anchors kodak        the report again, with published curves
  mcodec bench speed --image photo.png --batch 1,4
  mcodec bench effort --images photos/
  mcodec bench codecs
"""
RD_EXAMPLES = """\b
Examples:
  mcodec bench rd --images photos/ --out runs/photos
  mcodec bench rd --images photos/ --out runs/photos --codecs mcodec,jpeg,avif --qualities jpeg=20,50,80
  mcodec bench rd --images photos/ --out runs/photos --codecs mcodec:mine.safetensors,mbt2018-mean:checkpoints/
"""
REPORT_EXAMPLES = """\b
Examples:
  mcodec bench report runs/kodak --anchors kodak
  mcodec bench report runs/kodak --anchors kodak --published vtm,elic
"""
CHECK_EXAMPLES = """\b
Examples:
  mcodec bench rd --images kodak/ --out runs/check --codecs jpeg-default,webp-default,avif --metrics psnr
  mcodec bench check runs/check
"""
ANCHORS_EXAMPLES = """\b
Examples:
  mcodec bench anchors
  mcodec bench anchors --against bpg444
"""
SPEED_EXAMPLES = """\b
Examples:
  mcodec bench speed --image photo.png
  mcodec bench speed --image photo.png --sizes 768x512,1920x1080 --batch 1,4 --device cuda --out speed.jsonl
"""
SHEET_EXAMPLES = """\b
Examples:
  mcodec bench sheet --image a.png --image b.png --bpp 0.15 --out sheet.png
"""
EFFORT_EXAMPLES = """\b
Examples:
  mcodec bench effort --images photos/
  mcodec bench effort --images photos/ --efforts 1,3,9 --qualities 20,50,80 --limit 4
"""
README_EXAMPLES = """\b
Examples:
  mcodec bench readme
"""
CODECS_EXAMPLES = """\b
Examples:
  mcodec bench codecs
"""

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
threads_option = click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="CPU threads.")
anchors_option = click.option(
    "--anchors", metavar="FILE|kodak", help="Published curves to show beside; kodak is a file that ships."
)
published_option = click.option("--published", metavar="NAME,...", help="Which of them (default: a selection).")


@click.group(epilog=GROUP_EXAMPLES)
def bench() -> None:
    """Compare codecs on your own pictures: rate, distortion, speed, memory (extra `bench`)."""


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _numbers(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(v) for v in _names(text))
    except ValueError:
        values = ()
    if not values or not all(map(math.isfinite, values)):
        raise click.BadParameter(f"{text!r} is no list of numbers", param_hint="--qualities")
    return values


def _qualities(texts: Sequence[str], names: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """CODEC=Q,... per codec, or Q,... for all."""
    chosen: dict[str, tuple[float, ...]] = {}
    for text in texts:
        name, given, values = text.rpartition("=")
        for codec in [name] if given else names:
            chosen[codec] = _numbers(values)
    return chosen


def _published(anchors: str | None, names: str | None) -> list[Published]:
    from mcodec.bench.anchors import choose, load

    if anchors is None:
        if names:
            raise click.UsageError("--published needs --anchors")
        return []
    return choose(load(anchors), _names(names) or None)


@contextmanager
def _progress() -> Iterator[Report]:
    """A bar with an ETA on a terminal, a line now and then elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    what = TextColumn("{task.description}")
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("ETA"), TimeRemainingColumn(), what)
    began = shown = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("")

        def report(done: int, total: int, what: str) -> None:
            nonlocal shown
            bar.update(task, completed=done, total=total, description=what)
            now = time.monotonic()
            if bar.disable and (now - shown > QUIET or done == total):
                left = (now - began) / done * (total - done)
                console.print(f"{done}/{total}  ETA {left / 60:.1f} min  {what}", soft_wrap=True)
                shown = now

        yield report


def _write(folder: Path, published: list[Published], summary: Path | None) -> None:
    from mcodec.bench import report, results
    from mcodec.files import write_bytes

    found = results.load(folder)
    for path in report.write(found, published, folder):
        click.echo(path)
    if summary is not None:
        write_bytes(summary, results.dumps(results.summary(found, published)).encode())
        click.echo(summary)
    for name, reason in (found.run["skipped"] | found.left_out).items():
        click.echo(f"left out: {name}: {reason}", err=True)


@bench.command(epilog=RD_EXAMPLES)
@click.option("--images", type=FOLDER, required=True, help="Folder of pictures (not its subfolders).")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Where results go.")
@click.option("--codecs", "names", metavar="NAME[:WEIGHTS],...", help="See `mcodec bench codecs`.")
@click.option("--qualities", multiple=True, metavar="[CODEC=]Q,...", help="In order of rising rate; repeatable.")
@click.option("--metrics", default="psnr,ms-ssim", show_default=True, help="Also: lpips, ssimulacra2.")
@click.option("--limit", type=click.IntRange(1), help="Use the first N pictures only.")
@click.option("--crops", type=click.IntRange(0), default=3, show_default=True, help="Pictures in the viewer.")
@click.option("--memory/--no-memory", default=True, show_default=True, help="Peak memory, in processes of their own.")
@device_option
@threads_option
@anchors_option
@published_option
@click.option("--summary", type=FILE, help="Write results.json there as well.")
def rd(
    images: Path,
    out: Path,
    names: str | None,
    qualities: tuple[str, ...],
    metrics: str,
    limit: int | None,
    crops: int,
    memory: bool,
    device: str,
    threads: int,
    anchors: str | None,
    published: str | None,
    summary: Path | None,
) -> None:
    """Measure codecs on a folder of pictures and write a report.

    What is measured already is kept: the same command goes on after an interrupt.
    """
    import torch

    from mcodec.bench import bd, codecs
    from mcodec.bench.pictures import LOSSY, look
    from mcodec.bench.rd import Runner, plan

    check_device(device)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(threads)
    chosen = _names(names) or list(codecs.DEFAULT)
    beside = _published(anchors, published)
    bd.library()  # or it is missed after everything has been measured
    what = plan(chosen, _names(metrics), _qualities(qualities, chosen), device, threads, crops, memory)
    for name, reason in what.skipped.items():
        click.echo(f"skipped: {name}: {reason}", err=True)
    pictures = look(images, limit)
    if lossy := sum(picture.form in LOSSY for picture in pictures):
        told = f"{lossy} of {len(pictures)} pictures were coded with loss before, which favours the codec that did it"
        click.echo(f"note: {told}; take originals, or reduce them to half their size first", err=True)
    with _progress() as report:
        Runner(what, pictures, out, report).run()
    _write(out, beside, summary)


@bench.command(epilog=REPORT_EXAMPLES)
@click.argument("folder", type=FOLDER)
@anchors_option
@published_option
@click.option("--summary", type=FILE, help="Write results.json there as well.")
def report(folder: Path, anchors: str | None, published: str | None, summary: Path | None) -> None:
    """Write the report of a folder that `mcodec bench rd` measured into, without measuring."""
    _write(folder, _published(anchors, published), summary)


@bench.command(epilog=CHECK_EXAMPLES)
@click.argument("folder", type=FOLDER)
@click.option("--anchors", default="kodak", show_default=True, metavar="FILE|kodak")
def check(folder: Path, anchors: str) -> None:
    """Compare measured JPEG, WebP, AVIF and JPEG 2000 with their published Kodak curves; status 1 beyond the bounds."""
    from mcodec.bench import published, results
    from mcodec.bench.anchors import load

    found = published.check(results.load(folder), load(anchors))
    for item in found:
        pair, d = item.pair, item.delta
        verdict = "ok" if item.holds else "BEYOND"
        click.echo(
            f"{pair.codec:<13} against published {pair.published:<9} {d.rate:+6.2f} % (bounds {pair.low:+g} to "
            f"{pair.high:+g}), {d.quality_interval[0]:.1f} to {d.quality_interval[1]:.1f} dB: {verdict}; {pair.why}"
        )
    if not all(item.holds for item in found):
        raise BenchError("a measured curve is not where the published one is")


@bench.command("anchors", epilog=ANCHORS_EXAMPLES)
@click.option("--anchors", default="kodak", show_default=True, metavar="FILE|kodak")
@click.option("--against", default="vtm", show_default=True, help="Name of the curve to compare with.")
def list_anchors(anchors: str, against: str) -> None:
    """List published curves with their sources and their BD-rate (PSNR) against one of them."""
    from mcodec.bench.anchors import choose, load
    from mcodec.bench.bd import NotComparable, delta

    curves = load(anchors)
    anchor = choose(curves, [against])[0].curves["psnr"]
    for curve in curves:
        try:
            d = delta(anchor, curve.curves["psnr"])
            low, high = d.quality_interval
            figures = f"{d.rate:+8.2f} %  {low:.1f} to {high:.1f} dB"
        except NotComparable as error:
            figures = f"not compared: {error}"
        click.echo(f"{curve.name:<40} {figures}  {curve.source}")


def _limited(codec: Codec, threads: int) -> Codec:
    """With so many threads at work: on one tile at a time, as each of two would have its own."""
    import torch

    torch.set_num_threads(threads)
    codec.tile_workers = 1
    return codec


@bench.command(epilog=SPEED_EXAMPLES)
@click.option("--image", type=FILE, required=True, help="A picture, cut or mirrored to the sizes.")
@click.option("--sizes", default="768x512", show_default=True, metavar="WxH,...")
@click.option("--batch", default="1", show_default=True, metavar="N,...")
@click.option("-q", "--quality", type=Number(1, 100), default=50.0, show_default=True)
@click.option("--repeat", type=click.IntRange(1), default=5, show_default=True)
@click.option("--peer/--no-peer", default=True, show_default=True, help="CompressAI's mbt2018-mean beside it.")
@model_option
@device_option
@threads_option
@click.option("--out", type=FILE, help="Append the figures to this file, as JSON lines.")
def speed(
    image: Path,
    sizes: str,
    batch: str,
    quality: float,
    repeat: int,
    peer: bool,
    model: str | None,
    device: str,
    threads: int,
    out: Path | None,
) -> None:
    """Throughput in million pixels a second: whole, by part, and as ratios to CompressAI's mbt2018-mean."""
    from mcodec.bench import machine
    from mcodec.bench.pictures import rgb
    from mcodec.bench.speed import PEER, measure
    from mcodec.image import read_image

    try:
        shapes = [(int(w), int(h)) for w, _, h in (text.partition("x") for text in _names(sizes))]
        batches = [int(text) for text in _names(batch)]
    except ValueError as error:
        raise click.UsageError("--sizes takes WxH,... and --batch takes N,...") from error
    if not shapes or not batches or min(min(shape) for shape in shapes) < 1 or min(batches) < 1:
        raise click.UsageError("--sizes and --batch need numbers of at least 1")
    pixels = rgb(read_image(image))
    codec = _limited(load_codec(model, device), threads)
    where = machine.describe(codec.device.type, threads)
    click.echo(
        f"{image.name} at quality {quality:g}; {where['device']}, {threads} threads of {where['processor']}; "
        f"torch {where['versions']['torch']}; median of {repeat} after a warm-up (20th to 80th percentile)"
    )
    own: dict[tuple[Any, ...], Timing] = {}

    def report(timing: Timing) -> None:
        place = (timing.what, timing.width, timing.height, timing.batch)
        low, middle, high = (1000 * s for s in timing.seconds)
        line = (
            f"{timing.width}x{timing.height} x{timing.batch} {timing.what} {timing.codec}: {timing.mpx_s:.2f} Mpx/s, "
            f"{middle:.1f} ms ({low:.1f} to {high:.1f}), {timing.bpp:.3f} bpp"
        )
        if timing.parts:
            own[place] = timing
            line += "; " + ", ".join(f"{name} {share:.0%}" for name, share in timing.parts.items())
        elif place in own:
            line += f"; mcodec takes {own[place].seconds[1] / timing.seconds[1]:.2f} of its time"
        click.echo(line)
        if out is not None:
            append_rows(out, [timing.row() | {"quality": quality, "repeat": repeat, "machine": where}])

    reason = measure(codec, pixels, shapes, batches, quality, repeat, report, PEER if peer else None)
    if reason:
        click.echo(f"skipped: {reason}", err=True)


@bench.command(epilog=SHEET_EXAMPLES)
@click.option("--image", "images", type=FILE, multiple=True, required=True, help="A picture; repeatable.")
@click.option("--bpp", type=Number(0, min_open=True), default=0.15, show_default=True)
@click.option("--codecs", "names", metavar="NAME,...", default="jpeg,webp,avif,mcodec", show_default=True)
@click.option("--out", type=FILE, required=True, help="The sheet, in a format that Pillow writes.")
@device_option
def sheet(images: tuple[Path, ...], bpp: float, names: str, out: Path, device: str) -> None:
    """Draw the middle crops of pictures side by side, from files of equal size."""
    from mcodec.bench import codecs
    from mcodec.bench.sheet import draw
    from mcodec.image import format_of, write_image

    check_device(device)
    format_of(out)  # what is no format is said before anything is encoded
    for path in images:
        check_apart(path, out)
    chosen = [codecs.make(name, device) for name in _names(names)]
    write_image(draw(images, chosen, bpp, click.echo), out)
    click.echo(out)


@bench.command(epilog=EFFORT_EXAMPLES)
@click.option("--images", type=FOLDER, required=True, help="Folder of pictures (not its subfolders).")
@click.option("--efforts", default="1,3,5,7,9", show_default=True, metavar="N,...", help="Against the first of them.")
@click.option("--qualities", metavar="Q,...", default="10,30,50,70,90", show_default=True)
@click.option("--limit", type=click.IntRange(1), help="Use the first N pictures only.")
@model_option
@device_option
@threads_option
def effort(
    images: Path, efforts: str, qualities: str, limit: int | None, model: str | None, device: str, threads: int
) -> None:
    """What `encode --effort` gives and takes: BD-rate and seconds per million pixels, as a table."""
    from mcodec.bench import machine
    from mcodec.bench.codecs import EFFORTS
    from mcodec.bench.effort import measure, table
    from mcodec.bench.pictures import MIN_SIDE, PixelsOf, look

    chosen = _names(efforts)
    if not chosen or not set(chosen) <= set(EFFORTS):
        raise click.UsageError(f"--efforts takes whole numbers from {EFFORTS[0]} to {EFFORTS[-1]}")
    levels = _numbers(qualities)
    codec = _limited(load_codec(model, device), threads)
    pictures = PixelsOf([picture for picture in look(images, limit) if picture.averaged])
    if not pictures:
        raise BenchError(f"{images} holds no picture with sides of {MIN_SIDE} pixels and more")
    total, done = len(pictures) * len(levels) * len(chosen), 0
    with _progress() as report:

        def advance(effort: int) -> None:
            nonlocal done
            done += 1
            report(done, total, f"effort {effort}")

        found = measure(codec, pictures, [int(name) for name in chosen], levels, advance)
    where = machine.describe(codec.device.type, threads)
    click.echo(table(found))
    click.echo(
        f"\n{len(pictures)} pictures, qualities {qualities}; {where['device']}, {threads} threads of "
        f"{where['processor']}; torch {where['versions']['torch']}"
    )


@bench.command(epilog=README_EXAMPLES)
@click.option("--readme", "path", type=FILE, default=Path("README.md"), show_default=True)
@click.option("--results", type=FOLDER, default=Path("bench/results"), show_default=True)
def readme(path: Path, results: Path) -> None:
    """Write the README's tables from the folder of committed results."""
    from mcodec.bench.readme import fill
    from mcodec.files import write_bytes

    write_bytes(path, fill(path.read_text(encoding="utf-8"), results).encode())


@bench.command("codecs", epilog=CODECS_EXAMPLES)
def list_codecs() -> None:
    """List the codecs that can be compared, with versions, or with the reason why one cannot run here."""
    from mcodec.bench import codecs
    from mcodec.bench.protocol import Unavailable

    check_device("cpu")
    for name in codecs.NAMES:
        try:
            codec = codecs.make(name)
            mark = "*" if name in codecs.DEFAULT else " "
            click.echo(f"{mark} {name:<22} {codec.version}; {codec.settings}")
        except Unavailable as error:
            click.echo(f"- {name:<22} {error}")
