"""`mcodec encode` and `mcodec decode`."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import click

from mcodec.cli.options import FILE, device_option, force_option, load_codec, model_option, output_path

ENCODE_EXAMPLES = """\b
Examples:
  mcodec encode photo.jpg
  mcodec encode photo.png -q 80 small.mci
  mcodec encode photo.png --device cuda --force
"""
DECODE_EXAMPLES = """\b
Examples:
  mcodec decode photo.mci
  mcodec decode photo.mci copy.jpg
"""


class _Quality(click.FloatRange):
    """1..100; click's range lets "nan" through, which is neither below nor above."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        number = super().convert(value, parameter, context)
        if math.isnan(number):
            self.fail("nan is not a quality.", parameter, context)
        return number


@click.command(epilog=ENCODE_EXAMPLES)
@click.argument("source", metavar="IN", type=FILE)
@click.argument("target", metavar="[OUT.mci]", type=FILE, required=False)
@click.option(
    "-q",
    "--quality",
    type=_Quality(1, 100),
    default=50.0,
    show_default=True,
    help="1 is the smallest file, 100 the best picture.",
)
@model_option
@device_option
@force_option
def encode(
    source: Path, target: Path | None, quality: float, model: str | None, device: str, force: bool
) -> None:
    """Encode the picture IN into a .mci file (default: IN with the suffix .mci).

    Prints bytes, bits per pixel and the time of the coding itself, without loading weights.
    """
    from mcodec.image import read_image, write_bytes

    target = output_path(source, target, ".mci", force)
    image = read_image(source)
    codec = load_codec(model, device)
    began = time.perf_counter()
    data = codec.encode(image, quality)
    seconds = time.perf_counter() - began
    write_bytes(target, data)
    bpp = 8 * len(data) / (image.width * image.height)
    click.echo(f"{target}: {len(data):,} bytes, {bpp:.2f} bpp, {seconds:.2f} s")


@click.command(epilog=DECODE_EXAMPLES)
@click.argument("source", metavar="IN.mci", type=FILE)
@click.argument("target", metavar="[OUT]", type=FILE, required=False)
@model_option
@device_option
@force_option
def decode(source: Path, target: Path | None, model: str | None, device: str, force: bool) -> None:
    """Decode a .mci file into a picture (default: IN with the suffix .png).

    The suffix of OUT chooses the picture format: .png, .jpg, .webp or another that Pillow writes.
    """
    from mcodec.container import describe
    from mcodec.image import write_image

    target = output_path(source, target, ".png", force)
    data = source.read_bytes()
    describe(data)  # a foreign or damaged file is named before weights are loaded
    codec = load_codec(model, device)
    began = time.perf_counter()
    image = codec.decode(data)
    seconds = time.perf_counter() - began
    write_image(image, target)
    click.echo(f"{target}: {image.width} x {image.height}, {target.stat().st_size:,} bytes, {seconds:.2f} s")
