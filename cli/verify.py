"""`mcodec verify`: whether files are whole, one line for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from mcodec.cli import many
from mcodec.cli.options import (
    FILE,
    Codecs,
    check_device,
    device_option,
    max_pixels_option,
    model_option,
    read,
    reason,
)
from mcodec.errors import CodecError

VERIFY_EXAMPLES = """\b
Examples:
  mcodec verify photo.mci
  mcodec verify --deep *.mci
  mcodec verify --recursive photos
"""


@click.command(epilog=VERIFY_EXAMPLES)
@click.argument("paths", metavar="FILE|FOLDER...", type=FILE, nargs=-1, required=True)
@click.option("--deep", is_flag=True, help="Decode the pixels too.")
@click.option("--recursive", is_flag=True, help="Take the folders within a folder too.")
@max_pixels_option
@model_option
@device_option
def verify(
    paths: tuple[Path, ...], deep: bool, recursive: bool, max_pixels: int, model: str | None, device: str
) -> None:
    """Check .mci files, or those in folders: structure, checksum, and that the codes decode.

    One line per file; exit status 1 if any is not whole. Of the installed weights, those that a file names are used.
    """
    check_device(device)
    codecs = Codecs(model, device)
    failed = False
    for path in _files(paths, recursive):
        try:
            report = "ok, " + _check(path, deep, max_pixels, codecs)
        except Exception as error:
            if (text := reason(error)) is None:
                raise
            failed = True
            report = "FAILED, " + " ".join(text.removeprefix(f"{path}: ").split())
        click.echo(f"{path}: {report}")
    if failed:
        click.get_current_context().exit(1)


def _files(paths: tuple[Path, ...], recursive: bool) -> Iterator[Path]:
    """Files as they are named, whatever their suffix, and the .mci files of folders."""
    for path in paths:
        found = [file for file in many.files(path, recursive) if many.coded(file)] if path.is_dir() else []
        yield from found or [path]


def _check(path: Path, deep: bool, max_pixels: int, codecs: Codecs) -> str:
    """What was found of a file that is whole; raises what is wrong with it."""
    from mcodec.container import unpack

    if path.is_dir():
        raise CodecError("there is no .mci file in it")
    data = read(path)
    file = unpack(data, max_pixels=max_pixels)
    codec = codecs.of(file)
    codes = codec.decode_with_codes(data, max_pixels)[1] if deep else codec.codes(data, max_pixels)
    symbols = sum(stage.numel() for stage in codes)
    report = f"{file.header.width} x {file.header.height}, {len(data):,} bytes, {symbols:,} codes"
    return report + ", pixels" if deep else report
