"""Crops of pictures side by side, every codec's file at the same size: one picture to look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mcodec import rate
from mcodec.bench.pictures import rgb
from mcodec.bench.protocol import Codec
from mcodec.bench.rd import CROP_HEIGHT, CROP_WIDTH, matched, middle
from mcodec.image import read_image

#: Pixels between crops, and above each for its label.
GAP, LABEL = 8, 38


def draw(
    paths: Sequence[Path], codecs: Sequence[Codec], bpp: float, report: Callable[[str], None] = lambda line: None
) -> Image.Image:
    """A row per picture: the middle crop of the original, then of every codec's file nearest to `bpp`.

    Labels give the true rate and the PSNR in RGB of the whole picture. ImageError for a picture that cannot be read.
    """
    font = ImageFont.load_default(14)
    width = (len(codecs) + 1) * (CROP_WIDTH + GAP) + GAP
    sheet = Image.new("RGB", (width, len(paths) * (CROP_HEIGHT + LABEL + GAP) + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for row, path in enumerate(paths):
        pixels = rgb(read_image(path))
        cells = [(f"{path.name}, {pixels.shape[1]} x {pixels.shape[0]}", pixels)]
        for codec in codecs:
            size = bpp * pixels.shape[0] * pixels.shape[1] / 8
            quality, data = matched(codec, pixels, codec.qualities, size)
            decoded = codec.decode(data)
            true = len(data) * 8 / (pixels.shape[0] * pixels.shape[1])
            label = f"{codec.name} q{quality:g}: {true:.3f} bpp, {rate.psnr(pixels, decoded, 255):.2f} dB"
            cells.append((label, decoded))
            report(f"{path.name} {label}")
        top = GAP + row * (CROP_HEIGHT + LABEL + GAP)
        for column, (label, picture) in enumerate(cells):
            left = GAP + column * (CROP_WIDTH + GAP)
            pen.text((left, top), label.replace(": ", "\n", 1), "black", font)  # or names run into each other
            sheet.paste(Image.fromarray(middle(picture)), (left, top + LABEL))
    return sheet
