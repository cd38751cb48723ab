"""`mcodec verify`: whether files are whole, one line for each."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

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
  mcodec verify --recursive --quick --json archive
"""


@click.command(epilog=VERIFY_EXAMPLES)
@click.argument("paths", metavar="FILE|FOLDER...", type=FILE, nargs=-1, required=True)
@click.option("--deep", is_flag=True, help="Decode the pixels too.")
@click.option("--quick", is_flag=True, help="Structure and checksum only, for which no weights are needed.")
@click.option("--recursive", is_flag=True, help="Take the folders within a folder too.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Files worked on at a time.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON per file.")
@max_pixels_option
@model_option
@device_option
def verify(
    paths: tuple[Path, ...],
    deep: bool,
    quick: bool,
    recursive: bool,
    jobs: int,
    as_json: bool,
    max_pixels: int,
    model: str | None,
    device: str,
) -> None:
    """Check .mci files, or those in folders: structure, checksum, and that the codes decode.

    One line per file; exit status 1 if any is not whole. Of the installed weights, those that a file names are used.
    """
    if deep and quick:
        raise click.UsageError("choose one of --deep and --quick.")
    codecs: Codecs | None = None
    threads: AbstractContextManager[None] = nullcontext()
    if not quick:  # structure takes no torch
        check_device(device)
        codecs, threads = Codecs(model, device, jobs), many.shared_threads(jobs)
    work = functools.partial(_check, deep, max_pixels, codecs)
    failed = False
    with threads:
        for path, report in many.each(_files(paths, recursive), work, jobs):
            failed |= report["status"] == "failed"
            click.echo(json.dumps({"file": str(path), **report}) if as_json else f"{path}: {_text(report)}")
    if failed:
        click.get_current_context().exit(1)


def _files(paths: tuple[Path, ...], recursive: bool) -> Iterator[Path]:
    """Files as they are named, whatever their suffix, and the .mci files of folders."""
    for path in paths:
        found = [file for file in many.files(path, recursive) if many.coded(file)] if path.is_dir() else []
        yield from found or [path]


def _check(deep: bool, max_pixels: int, codecs: Codecs | None, path: Path) -> dict[str, Any]:
    """What was found of a file: its `status`, "ok" or "failed", and what is known of it or wrong with it."""
    from mcodec.container import unpack

    found: dict[str, Any] = {"status": "ok"}
    try:
        if path.is_dir():
            raise CodecError("there is no .mci file in it")
        data = read(path)
        file = unpack(data, max_pixels=max_pixels)
        header = file.header
        found |= {"width": header.width, "height": header.height, "bytes": len(data)}
        found["weights"] = header.fingerprint.hex()
        if codecs is None:
            _ = file.streams  # the table of tiles: CorruptStream where it does not fit
        else:
            codec = codecs.of(file)
            codes = codec.decode_with_codes(data, max_pixels)[1] if deep else codec.codes(data, max_pixels)
            found |= {"codes": sum(stage.numel() for stage in codes), "pixels": deep}
    except Exception as error:
        if (text := reason(error)) is None:
            raise
        found |= {"status": "failed", "error": " ".join(text.removeprefix(f"{path}: ").split())}
    return found


def _text(found: dict[str, Any]) -> str:
    if found["status"] == "failed":
        return f"FAILED, {found['error']}"
    text = f"ok, {found['width']} x {found['height']}, {found['bytes']:,} bytes"
    text += f", {found['codes']:,} codes" if "codes" in found else ""
    return f"{text}, pixels" if found.get("pixels") else text
