"""Pictures out: to files of the formats that Pillow writes, with what each of them can hold.

PPM and TIFF are written band by band: of samples that are not held (`mcodec.image.strips`) no more than a band is.
"""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, PngImagePlugin, TiffTags
from PIL import TiffImagePlugin as tiff

from mcodec.container import TILE, Kind
from mcodec.errors import ImageError, LossWarning
from mcodec.files import atomic
from mcodec.image.metadata import Metadata
from mcodec.image.raster import Raster, eight_bits, to_raster
from mcodec.image.reading import WIDE, register

#: Options without which Pillow would lose more than a decoded picture already has.
QUALITY: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95},
    "MPO": {"quality": 95},
    "AVIF": {"quality": 95},
    "HEIF": {"quality": 95, "chroma": 444},
    "WEBP": {"lossless": True, "exact": True},
}
#: Formats whose colours Pillow halves in both directions unless told otherwise.
_SUBSAMPLED = {"JPEG", "MPO", "AVIF"}
#: Formats that are written band by band.
IN_BANDS = ("PPM", "TIFF")
#: What formats hold beyond 8-bit grey and RGB. Those that are not named hold neither.
_ALPHA = {"PNG", "TIFF", "WEBP", "AVIF", "JPEG2000", "TGA", "ICO"}
_GREY16 = {"PNG", "TIFF", "PPM", "JPEG2000"}
_RGB16 = {"PNG", "TIFF", "PPM"}
_METADATA = {"PNG", "JPEG", "WEBP", "AVIF", "TIFF", "HEIF"}
#: Formats for which Pillow or its plugin parses EXIF rather than writing it as it is.
_PARSED = {"TIFF", "AVIF", "HEIF"}
#: (least, greatest) side of icons: to others Pillow scales the picture.
_SIDES = {"ICO": (1, 256), "ICNS": (1024, 1024)}
#: Bytes of EXIF and XMP that one segment of a JPEG file holds, without the names they begin with.
_SEGMENT = {"exif": 65533 - 6, "xmp": 65533 - 29}
GIF_COLOURS = 256
#: Tags that say how a TIFF file stores its picture, and those that have a place of their own in Metadata.
_STORAGE = {
    *(tiff.IMAGEWIDTH, tiff.IMAGELENGTH, tiff.BITSPERSAMPLE, tiff.COMPRESSION, tiff.PHOTOMETRIC_INTERPRETATION),
    *(tiff.STRIPOFFSETS, tiff.SAMPLESPERPIXEL, tiff.ROWSPERSTRIP, tiff.STRIPBYTECOUNTS, tiff.PLANAR_CONFIGURATION),
    *(tiff.PREDICTOR, tiff.TILEWIDTH, tiff.TILELENGTH, tiff.TILEOFFSETS, tiff.TILEBYTECOUNTS, tiff.SUBIFD),
    *(tiff.EXTRASAMPLES, tiff.SAMPLEFORMAT, tiff.ICCPROFILE, tiff.XMP),
}
_TIFF_ROWS = 64  # per strip; what is decoded at a time is a multiple of them


def format_of(path: str | Path) -> str:
    """Pillow's name of the format that the suffix names; ImageError where none is written."""
    register()
    suffix = Path(path).suffix.lower()
    form = Image.registered_extensions().get(suffix)
    if form is None or form not in Image.SAVE:
        raise ImageError(f"cannot write {path}: {suffix or 'no suffix'} is no picture format")
    return form


def write_image(
    picture: Image.Image | Raster, path: str | Path, replace: bool = True, **options: Any
) -> list[str]:
    """Write a picture in the format of the path's suffix, whole or not at all; ImageError says why not.

    Metadata goes along. What the format cannot hold is left out, with a LossWarning, and returned in words.
    replace: False for a FileExistsError where there is a file. options: of Pillow.
    """
    form = format_of(path)
    with writes_to(path), atomic(path, replace) as file:
        lost = _save(picture, file, form, f"{path}: ", options)
    return lost


@contextmanager
def writes_to(target: str | Path) -> Iterator[None]:
    """ImageError, with the target's name, for whatever Pillow or the system has against what is written."""
    try:
        yield
    except FileExistsError:
        raise
    except (OSError, ValueError, KeyError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ImageError(f"cannot write {target}: {reason}") from error


def save(picture: Image.Image | Raster, file: BinaryIO, form: str, **options: Any) -> list[str]:
    """Write a picture to a stream in a format of Pillow's; what it cannot hold, as of `write_image`."""
    return _save(picture, file, form, "", options)


def _save(
    picture: Image.Image | Raster, file: BinaryIO, form: str, name: str, options: dict[str, Any]
) -> list[str]:
    """name: what warnings begin with, so that each file has its own."""
    raster = to_raster(picture)
    raster, lost = _fitted(raster, form)
    if lost:
        warnings.warn(f"{name}{form} cannot hold {', '.join(lost)}", LossWarning, stacklevel=4)
    options = {**QUALITY.get(form, {}), **options}
    if form in _SUBSAMPLED and not raster.kind.grey:  # by default colours have a quarter of the samples
        options = {"subsampling": "4:4:4", **options}
    if form == "ICO":
        options = {"sizes": [raster.size], **options}  # else Pillow takes smaller ones
    if form in IN_BANDS:
        (_save_ppm if form == "PPM" else _save_tiff)(raster, file)
    elif raster.kind is Kind.RGB16 or (raster.kind is Kind.GREY16 and raster.alpha is not None):
        _save_wide_png(raster, file)
    else:
        image = raster.image()
        image.info.clear()  # Pillow would write some of it by itself, differing from format to format
        image.save(file, form, **_options(raster.metadata, form), **options)
    return lost


def _fitted(raster: Raster, form: str) -> tuple[Raster, list[str]]:
    """What the format can hold of it, and what it cannot; ImageError where it cannot hold a picture of this size."""
    width, height = raster.size
    least, greatest = _SIDES.get(form, (1, max(width, height)))
    if min(width, height) < least or max(width, height) > greatest:
        raise ImageError(f"{form} has sides of {least} to {greatest} pixels, got {width}x{height}")
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
    if form == "GIF" and not raster.kind.grey and raster.image().getcolors(GIF_COLOURS) is None:
        lost.append(f"more than {GIF_COLOURS} colours")
    if form not in _METADATA:
        said = {"icc": "the colour profile", "exif": "EXIF", "xmp": "XMP"}
        lost += [text for name, text in said.items() if getattr(raster.metadata, name)]
        raster = replace(raster, metadata=Metadata())
    as_rgb = form == "WEBP" or (form == "TIFF" and raster.kind is Kind.GREY16 and raster.alpha is not None)
    if raster.kind.grey and as_rgb and (raster.metadata.icc or b"")[16:20] == b"GRAY":
        raster = replace(raster, metadata=replace(raster.metadata, icc=None))
        lost.append("a colour profile of greys")
    for name, most in _SEGMENT.items() if form == "JPEG" else ():
        if len(getattr(raster.metadata, name) or b"") > most:
            raster = replace(raster, metadata=replace(raster.metadata, **{name: None}))
            lost.append(f"{name.upper()} of more than {most} bytes")
    if raster.metadata.exif and form in _PARSED and not _is_parsed(raster.metadata.exif):
        raster = replace(raster, metadata=replace(raster.metadata, exif=None))
        lost.append("EXIF that cannot be parsed")
    return raster, lost


def _options(metadata: Metadata, form: str) -> dict[str, Any]:
    info = metadata.info()
    xmp = info.pop("xmp", None)
    options: dict[str, Any] = dict(info)
    if xmp is not None and form == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
        options["pnginfo"] = text
    elif xmp is not None:
        options["xmp"] = xmp
    return options


def _save_ppm(raster: Raster, file: BinaryIO) -> None:
    """Binary PBM, PGM or PPM, up to 16 bits."""
    bits = raster.kind.bits
    magic = "P4" if bits == 1 else "P5" if raster.kind.grey else "P6"
    maximum = "" if bits == 1 else f"{2**bits - 1}\n"
    file.write(f"{magic}\n{raster.size[0]} {raster.size[1]}\n{maximum}".encode())
    for band in raster.bands(TILE):
        if bits == 1:
            file.write(np.packbits(band == 0, axis=1).tobytes())  # 1 is black
        else:
            file.write(band.astype(band.dtype.newbyteorder(">"), copy=False).tobytes())


def _save_tiff(raster: Raster, file: BinaryIO) -> None:
    """Strips with horizontal differences, deflated."""
    repeated = raster.kind is Kind.GREY16 and raster.alpha is not None  # as RGB: Pillow reads no such grey
    colours, bits = 1 if raster.kind.grey and not repeated else 3, raster.kind.bits
    channels = colours if raster.alpha is None else colours + 1
    if channels > colours:
        bits = max(8, bits)
    width, height = raster.size
    directory = _tiff_directory(raster.metadata)
    directory[tiff.IMAGEWIDTH], directory[tiff.IMAGELENGTH] = width, height
    directory[tiff.BITSPERSAMPLE], directory[tiff.SAMPLESPERPIXEL] = (bits,) * channels, channels
    directory[tiff.PHOTOMETRIC_INTERPRETATION] = 1 if colours == 1 else 2  # grey from black on, RGB
    directory[tiff.COMPRESSION], directory[tiff.PREDICTOR] = 8, 1 if bits == 1 else 2
    directory[tiff.PLANAR_CONFIGURATION], directory[tiff.ROWSPERSTRIP] = 1, _TIFF_ROWS
    if channels > colours:
        directory[tiff.EXTRASAMPLES] = 2  # alpha that the colours are not multiplied with
    for tag in (tiff.STRIPOFFSETS, tiff.STRIPBYTECOUNTS):
        directory.tagtype[tag] = TiffTags.LONG  # the size of the directory then does not depend on them
        directory[tag] = (0,) * -(-height // _TIFF_ROWS)
    file.write(bytes(directory.save(io.BytesIO())))  # its place
    lengths = []
    for band in raster.bands(TILE):
        if repeated:
            band = band[..., [0, 0, 0, 1]]
        for top in range(0, len(band), _TIFF_ROWS):
            strip = band[top : top + _TIFF_ROWS].copy()
            if bits == 1:
                strip = np.packbits(strip > 0, axis=1)
            else:
                strip[:, 1:] = strip[:, 1:] - strip[:, :-1]
            data = zlib.compress(strip.astype(strip.dtype.newbyteorder("<"), copy=False).tobytes())
            file.write(data)
            lengths.append(len(data))
    directory[tiff.STRIPOFFSETS] = tuple(accumulate(lengths[:-1], initial=0))  # to which it adds its own size
    directory[tiff.STRIPBYTECOUNTS] = tuple(lengths)
    file.seek(0)
    directory.save(file)
    file.seek(0, io.SEEK_END)


def _is_parsed(exif: bytes) -> bool:
    try:
        _described(exif).tobytes()
    except Exception:  # Pillow's EXIF parser raises many types
        return False
    return True


def _described(exif: bytes | None) -> Any:
    """EXIF as Pillow's directory of a TIFF file."""
    found, directory = Image.Exif(), tiff.ImageFileDirectory_v2()
    found.load(exif or b"")
    for tag in set(found) - _STORAGE:
        directory[tag] = found.get_ifd(tag) if tag in TiffTags.TAGS_V2_GROUPS else found[tag]
    return directory


def _tiff_directory(metadata: Metadata) -> Any:
    """All of the metadata, EXIF included, which can be parsed."""
    directory = _described(metadata.exif)
    for tag, payload in ((tiff.ICCPROFILE, metadata.icc), (tiff.XMP, metadata.xmp)):
        if payload:
            directory[tag] = payload
    return directory


def _save_wide_png(raster: Raster, file: BinaryIO) -> None:
    """16 bits of colour, or of grey with alpha."""
    try:
        import imagecodecs
    except ImportError as error:
        raise ImageError(WIDE) from error
    png = imagecodecs.png_encode(np.ascontiguousarray(raster.array()))
    file.write(_with_chunks(bytes(png), raster.metadata))


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
