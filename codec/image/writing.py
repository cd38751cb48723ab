"""Pictures out: to files of the formats that Pillow writes, with what each of them can hold."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, PngImagePlugin

from mcodec.container import Kind
from mcodec.errors import ImageError, LossWarning
from mcodec.files import atomic
from mcodec.files import write_bytes as _write_bytes
from mcodec.image.metadata import Metadata
from mcodec.image.raster import Raster, eight_bits, to_raster
from mcodec.image.reading import WIDE

JPEG_QUALITY = 95
#: What formats hold beyond 8-bit grey and RGB. Those that are not named hold neither.
_ALPHA = {"PNG", "TIFF", "WEBP", "AVIF", "JPEG2000", "TGA", "ICO"}
_GREY16 = {"PNG", "TIFF", "JPEG2000"}
_RGB16 = {"PNG", "TIFF"}
_METADATA = {
    "PNG": ("icc", "exif", "xmp"),
    "JPEG": ("icc", "exif", "xmp"),
    "WEBP": ("icc", "exif", "xmp"),
    "AVIF": ("icc", "exif", "xmp"),
    "TIFF": ("icc", "exif", "xmp"),
}
_TIFF_XMP = 700


def format_of(path: str | Path) -> str:
    """Pillow's name of the format that the suffix names; ImageError where none is written."""
    suffix = Path(path).suffix.lower()
    form = Image.registered_extensions().get(suffix)
    if form is None or form not in Image.SAVE:
        raise ImageError(f"cannot write {path}: {suffix or 'no suffix'} is no picture format")
    return form


def write_image(picture: Image.Image | Raster, path: str | Path, **options: Any) -> None:
    """Write a picture in the format of the path's suffix, whole or not at all; ImageError says why not.

    Metadata goes along. What the format cannot hold is left out, with a LossWarning. options: of Pillow.
    """
    form = format_of(path)
    try:
        with atomic(path) as file:
            save(picture, file, form, **options)
    except (OSError, ValueError, KeyError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ImageError(f"cannot write {path}: {reason}") from error


def save(picture: Image.Image | Raster, file: BinaryIO, form: str, **options: Any) -> None:
    """Write a picture to a stream in a format of Pillow's."""
    raster = to_raster(picture)
    raster, lost = _fitted(raster, form)
    if lost:
        warnings.warn(f"{form} cannot hold {', '.join(lost)}", LossWarning, stacklevel=3)
    if form == "JPEG":
        options = {"quality": JPEG_QUALITY, **options}
    wide = raster.kind is Kind.RGB16 or (raster.kind is Kind.GREY16 and raster.alpha is not None)
    if wide:
        _save_wide(raster, file, form)
    else:
        image = raster.image()
        image.info.clear()  # Pillow would write some of it by itself, differing from format to format
        image.save(file, form, **_options(raster.metadata, form), **options)


def write_bytes(path: str | Path, data: bytes, check: Callable[[bytes], None] | None = None) -> None:
    """A file, whole or not at all; ImageError where the folder or disk refuses.

    check: gets what the file holds, read back, before the file takes its name; it may raise.
    """
    try:
        _write_bytes(path, data, check)
    except OSError as error:
        raise ImageError(f"cannot write {path}: {error.strerror or error}") from error


def _fitted(raster: Raster, form: str) -> tuple[Raster, list[str]]:
    """What the format can hold of it, and what it cannot."""
    lost = []
    if raster.alpha is not None and form not in _ALPHA:
        raster = replace(raster, alpha=None)
        lost.append("alpha")
    if (raster.kind is Kind.GREY16 and form not in (_GREY16 if raster.alpha is None else _RGB16)) or (
        raster.kind is Kind.RGB16 and form not in _RGB16
    ):
        kind = Kind.GREY8 if raster.kind is Kind.GREY16 else Kind.RGB8
        alpha = None if raster.alpha is None else eight_bits(raster.alpha)
        raster = replace(raster, samples=eight_bits(np.asarray(raster.samples)), kind=kind, alpha=alpha)
        lost.append("16 bits")
    held = _METADATA.get(form, ())
    missing = [name for name in ("icc", "exif", "xmp") if getattr(raster.metadata, name) and name not in held]
    if missing:
        raster = replace(raster, metadata=replace(raster.metadata, **dict.fromkeys(missing)))
        lost += [{"icc": "the colour profile", "exif": "EXIF", "xmp": "XMP"}[name] for name in missing]
    return raster, lost


def _options(metadata: Metadata, form: str) -> dict[str, Any]:
    info = metadata.info()
    xmp = info.pop("xmp", None)
    options: dict[str, Any] = dict(info)
    if xmp is not None and form == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
        options["pnginfo"] = text
    elif form == "TIFF":
        tags = Image.Exif()
        with contextlib.suppress(Exception):  # a damaged block has no place among the file's own tags
            tags.load(info.get("exif", b""))
        if xmp is not None:
            tags[_TIFF_XMP] = xmp
        options |= {"exif": tags, "compression": "tiff_adobe_deflate"}
    elif xmp is not None:
        options["xmp"] = xmp
    return options


def _save_wide(raster: Raster, file: BinaryIO, form: str) -> None:
    """16 bits of colour, or of grey with alpha: PNG or TIFF."""
    array = np.ascontiguousarray(raster.array())
    try:
        if form == "PNG":
            import imagecodecs

            file.write(_with_chunks(bytes(imagecodecs.png_encode(array)), raster.metadata))
            return
        import tifffile
    except ImportError as error:
        raise ImageError(WIDE) from error
    tags = [(_TIFF_XMP, 1, len(raster.metadata.xmp), raster.metadata.xmp, True)] if raster.metadata.xmp else []
    buffer = io.BytesIO()  # a file without a name has a number for one, which tifffile does not expect
    tifffile.imwrite(
        buffer,
        array,
        photometric="rgb" if array.shape[2] >= 3 else "minisblack",
        extrasamples=["unassalpha"] if raster.alpha is not None else None,
        compression="zlib",
        iccprofile=raster.metadata.icc,
        extratags=tags,
        metadata=None,
    )
    file.write(buffer.getvalue())


def _with_chunks(png: bytes, metadata: Metadata) -> bytes:
    """Profile, EXIF and XMP put behind the header of a PNG file, as Pillow writes them for a picture of 1x1."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "PNG", **_options(metadata, "PNG"))
    donor = buffer.getvalue()
    header, place, chunks = 33, 33, b""  # signature and IHDR take 33 bytes
    while donor[place + 4 : place + 8] != b"IEND":
        end = place + 12 + int.from_bytes(donor[place : place + 4], "big")
        if donor[place + 4 : place + 8] != b"IDAT":
            chunks += donor[place:end]
        place = end
    return png[:header] + chunks + png[header:]
