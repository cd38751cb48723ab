"""`mcodec encode` and `mcodec decode`: one file, a stream, or many files."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mcodec.cli import many
from mcodec.cli.options import (
    FILE,
    STREAM,
    Codecs,
    Folder,
    Number,
    device_option,
    exists,
    force_option,
    load_codec,
    max_pixels_option,
    model_option,
    output_path,
    read,
)
from mcodec.errors import CodecError, CorruptStream, FormatError

if TYPE_CHECKING:
    from mcodec.api import Codec

F = TypeVar("F", bound=Callable[..., Any])

ENCODE_EXAMPLES = """\b
Examples:
  mcodec encode photo.jpg
  mcodec encode photo.png -q 80 --effort 5 small.mci
  mcodec encode photo.png --target-bytes 50000 --strip-gps
  mcodec encode - - < photo.jpg > photo.mci
  mcodec encode photos/ coded/ --recursive --jobs 4
"""
DECODE_EXAMPLES = """\b
Examples:
  mcodec decode photo.mci
  mcodec decode photo.mci copy.jpg
  mcodec decode photo.mci preview.png --stages 2
  mcodec decode map.mci part.png --region 4096,2048,512,512
  mcodec decode - - --format jpg < photo.mci > photo.jpg
  mcodec decode coded/ pictures/ --format webp
"""


def _region(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        region = tuple(int(part) for part in value.split(","))
    except ValueError:
        region = ()
    if len(region) != 4:
        raise click.BadParameter("four whole numbers are needed, X,Y,WIDTH,HEIGHT: 0,0,512,512")
    return region


def _suffix(_: click.Context, __: click.Parameter, value: str) -> str:
    from PIL import Image

    from mcodec.image import register

    register()
    suffix = f".{value.removeprefix('.')}"
    if Image.registered_extensions().get(suffix.lower()) not in Image.SAVE:
        raise click.BadParameter(f"{value!r} is no picture format")
    return suffix


def _many_options(function: F) -> F:
    """Options of both commands for many files."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print one line of JSON per file."),
        click.option("--jobs", type=click.IntRange(1), help="Files worked on at a time. [default: up to 4]"),
        click.option("--recursive", is_flag=True, help="Take folders with all that is below them."),
        click.option(
            "--relative-to",
            metavar="DIR",
            type=FILE,
            help="DIR/x/a.jpg goes to OUT/x/a.jpg.mci, whatever else is named: for work in parts.",
        ),
    ):
        function = option(function)
    return function


def _allow_large() -> None:
    """Pillow's limit on pixels guards programs that have none; here the format's own holds."""
    from PIL import Image

    from mcodec.container import MAX_PIXELS

    Image.MAX_IMAGE_PIXELS = MAX_PIXELS


#: Of a file, at most: `Codec.lane_share` for decoding on a GPU.
GPU_LANE_SHARE = 0.01


@click.command(epilog=ENCODE_EXAMPLES)
@click.argument("paths", metavar="IN... [OUT]", type=FILE, nargs=-1, required=True)
@click.option(
    "-q",
    "--quality",
    type=Number(1, 100),
    help="1 is the smallest file, 100 the best picture.  [default: 50]",
)
@click.option("--target-bytes", type=Number(1), metavar="N", help="Choose the quality by the size of the file.")
@click.option("--target-bpp", type=Number(0, min_open=True), metavar="N", help="... by its bits per pixel.")
@click.option("--target-psnr", type=Number(0, min_open=True), metavar="DB", help="... by the PSNR.")
@click.option(
    "--target-ms-ssim", type=Number(0, 1, min_open=True, max_open=True), metavar="X", help="... by the MS-SSIM."
)
@click.option(
    "--effort",
    type=click.IntRange(1, 9),
    default=1,
    show_default=True,
    help="Search for better codes: 1 does not, 9 takes longest. Decoding takes the same time.",
)
@click.option("--strip", is_flag=True, help="Leave out colour profile, EXIF and XMP.")
@click.option("--strip-gps", is_flag=True, help="Leave out the GPS position, or its block where it cannot be cut out.")
@click.option("--for-gpu", is_flag=True, help="Files that decode faster on a GPU, by 1 % larger at most.")
@click.option("--verify", is_flag=True, help="Decode what was written and compare before it takes its name.")
@_many_options
@model_option
@device_option
@force_option
def encode(
    paths: tuple[Path, ...],
    quality: float | None,
    target_bytes: float | None,
    target_bpp: float | None,
    target_psnr: float | None,
    target_ms_ssim: float | None,
    effort: int,
    strip: bool,
    strip_gps: bool,
    for_gpu: bool,
    verify: bool,
    recursive: bool,
    relative_to: Path | None,
    jobs: int | None,
    as_json: bool,
    model: str | None,
    device: str,
    force: bool,
) -> int:
    """Encode the picture IN into a .mci file (default: IN with the suffix .mci).

    Prints bytes, bits per pixel and seconds (loading the weights is not counted). The name - stands for standard input
    or output. A folder, several files or a pattern go into the folder OUT; files that are there already are skipped,
    unless --force is given.
    """
    targets = {"bytes": target_bytes, "bpp": target_bpp, "psnr": target_psnr, "ms-ssim": target_ms_ssim}
    wanted = {name: value for name, value in targets.items() if value is not None}
    if len(wanted) + (quality is not None) > 1:
        raise click.UsageError("choose one of --quality and the targets.")
    metadata = "none" if strip else "no-gps" if strip_gps else "all"

    def prepare(jobs: int) -> many.Work:
        _allow_large()
        codec = load_codec(model, device, jobs)
        if for_gpu:
            codec.lane_share = GPU_LANE_SHARE
        return functools.partial(
            _encode_file, codec, quality=quality, wanted=wanted, metadata=metadata, effort=effort, verify=verify,
            force=force,
        )  # fmt: skip

    # where the plugin is registered, Pillow reads .mci files, too
    misnamed = len(paths) == 2 and many.pictures(paths[1]) and not many.coded(paths[1])
    if misnamed and not many.wanted(paths) and not (isinstance(paths[1], Folder) or paths[1].is_dir()):
        raise CodecError(f"{paths[1]} is named like a picture, but would hold a .mci file")
    return _run(paths, ".mci", many.pictures, prepare, recursive, relative_to, jobs, as_json, force)


def _encode_file(
    codec: Codec,
    source: Path,
    target: Path,
    quality: float | None,
    wanted: dict[str, float],
    metadata: str,
    effort: int,
    verify: bool,
    force: bool,
) -> dict[str, Any]:
    from mcodec import verification
    from mcodec.files import write_bytes
    from mcodec.image import read_raster, writes_to
    from mcodec.rate import Target, find

    raster = read_raster(read(source) if source == STREAM else source)
    asked = effort
    began = time.perf_counter()
    check: Callable[[bytes], None] | None = None
    if wanted:
        ((measure, value),) = wanted.items()
        data, quality, effort, reached = find(codec, raster, Target(measure, value), metadata, effort)
    else:
        quality = 50.0 if quality is None else quality
    if verify:  # a target's quality is encoded once more, for its codes
        data, codes = codec.encode_with_codes(raster, quality, metadata, effort)
        check = functools.partial(verification.verify, codec, raster, codes, metadata, made=data)
    elif not wanted:
        data = codec.encode(raster, quality, metadata, effort)
    seconds = time.perf_counter() - began
    if target == STREAM:
        if check is not None:
            check(data)
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        with writes_to(target):
            write_bytes(target, data, check, replace=force)
    width, height = raster.size
    bpp = 8 * len(data) / (width * height)
    report: dict[str, Any] = {"bytes": len(data), "bpp": bpp, "seconds": seconds, "quality": quality}
    text = f"{len(data):,} bytes, {bpp:.2f} bpp, "
    if wanted:
        report[measure] = reached
        report["effort"] = effort
        text += f"{measure} {reached:.5g}, " if measure in ("psnr", "ms-ssim") else ""
        text += f"quality {quality:.4g}, "
    text += f"{seconds:.2f} s"
    if verify:
        report["verified"] = True
        text += ", verified"
    notes = [*raster.notes, *raster.metadata.dropped(metadata)]
    if effort < asked:
        notes.append(f"effort {effort}: with effort {asked} no quality that was tried reaches the target")
    return {**report, "notes": notes, "text": text}


@click.command(epilog=DECODE_EXAMPLES)
@click.argument("paths", metavar="IN.mci... [OUT]", type=FILE, nargs=-1, required=True)
@click.option(
    "--format",
    "suffix",
    metavar="SUFFIX",
    default="png",
    show_default=True,
    callback=_suffix,
    help="Picture format where no OUT names one.",
)
@click.option("--stages", type=click.IntRange(1), metavar="N", help="Decode the first N stages: a coarser picture.")
@click.option("--partial", is_flag=True, help="Take a file that is cut off, as far as it goes; nothing is verified.")
@click.option("--region", metavar="X,Y,W,H", callback=_region, help="Decode this part of the picture only.")
@max_pixels_option
@_many_options
@model_option
@device_option
@force_option
def decode(
    paths: tuple[Path, ...],
    suffix: str,
    stages: int | None,
    partial: bool,
    region: tuple[int, int, int, int] | None,
    max_pixels: int,
    recursive: bool,
    relative_to: Path | None,
    jobs: int | None,
    as_json: bool,
    model: str | None,
    device: str,
    force: bool,
) -> int:
    """Decode a .mci file into a picture (default: IN with the suffix .png).

    The suffix of OUT chooses the picture format: .png, .jpg, .webp or another that Pillow writes. The name - stands
    for standard input or output. A folder, several files or a pattern go into the folder OUT; files that are there
    already are skipped, unless --force is given. Of the installed weights, those that a file names are used.
    """

    def prepare(jobs: int) -> many.Work:
        _allow_large()
        codecs = Codecs(model, device, jobs)

        def work(source: Path, target: Path) -> dict[str, Any]:
            from mcodec.container import unpack
            from mcodec.image import format_of

            data = read(source)
            try:  # what is wrong with a file is said before weights are loaded
                file = unpack(data, partial, max_pixels)
            except CorruptStream as error:
                hint = "; --partial decodes as far as it goes" if "truncated" in str(error) and not partial else ""
                raise CorruptStream(f"{error}{hint}") from error
            picture_format = format_of(Path(f"output{suffix}") if target == STREAM else target)
            codec = codecs.of(file)
            return _decode_file(codec, data, target, picture_format, stages, region, partial, max_pixels, force)

        return work

    return _run(paths, suffix, many.coded, prepare, recursive, relative_to, jobs, as_json, force)


def _decode_file(
    codec: Codec,
    data: bytes,
    target: Path,
    form: str,
    stages: int | None,
    region: tuple[int, int, int, int] | None,
    partial: bool,
    max_pixels: int,
    force: bool,
) -> dict[str, Any]:
    import io

    from mcodec.image import IN_BANDS, Strips, save, write_image, writes_to

    began = time.perf_counter()
    try:
        raster = codec.decode_raster(data, stages, region, partial, max_pixels, lazy=form in IN_BANDS)
    except ValueError as error:  # stages or region that this file does not have
        raise CodecError(str(error)) from error
    seconds = time.perf_counter() - began
    width, height = raster.size
    if target == STREAM:
        buffer = io.BytesIO()
        with writes_to("standard output"):
            lost = save(raster, buffer, form)
        size = sys.stdout.buffer.write(buffer.getvalue())
        sys.stdout.buffer.flush()
    else:
        lost = write_image(raster, target, replace=force)
        size = target.stat().st_size
    if isinstance(raster.samples, Strips):  # decoded as it was written
        seconds = time.perf_counter() - began
    text = f"{width} x {height}, {size:,} bytes, {seconds:.2f} s"
    report = {"width": width, "height": height, "bytes": size, "seconds": seconds, "lost": lost}
    return {**report, "notes": list(raster.notes), "text": text}


def _run(
    paths: tuple[Path, ...],
    suffix: str,
    choose: Callable[[Path], bool],
    prepare: many.Prepare,
    recursive: bool,
    relative_to: Path | None,
    jobs: int | None,
    as_json: bool,
    force: bool,
) -> int:
    """One file or many, by what the paths are; returns the exit status."""
    if relative_to is not None or many.wanted(paths):
        plan = many.plan(paths, suffix, choose, recursive, relative_to)
        return many.run(plan, prepare, jobs, as_json, force)
    source, target = paths[0], paths[1] if len(paths) > 1 else None
    if source == STREAM and target is None:
        target = STREAM
    nameless = isinstance(target, Folder) or (target is not None and target != STREAM and target.is_dir())
    if source == STREAM and nameless:
        raise click.UsageError("- has no name to take in a folder.")
    if target != STREAM:
        target = output_path(source, target, suffix, force)
    work = prepare(1)
    try:
        report = work(source, target)
    except FileExistsError as error:
        raise exists(target) from error
    except FormatError as error:
        raise CodecError(many.named(str(error), "standard input" if source == STREAM else source)) from error
    text = report.pop("text")
    many.tell(source, report)
    if as_json:
        click.echo(many.line(source, target, "done", report), err=target == STREAM)
    else:
        click.echo(f"{target}: {text}", err=target == STREAM)
    return 0
