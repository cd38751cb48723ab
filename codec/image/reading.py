"""Picture files in: whatever Pillow opens, and 16-bit colour, which Pillow reduces to 8 bits, through imagecodecs."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION

from mcodec.container import Kind
from mcodec.errors import ImageError
from mcodec.image import metadata as meta
from mcodec.image import strips
from mcodec.image.metadata import Metadata
from mcodec.image.raster import Raster, Samples, to_raster, turned

WIDE = "16-bit colour needs imagecodecs and tifffile: pip install 'mcodec[images]'"


@cache
def register() -> None:
    """Have Pillow read and write HEIC where pillow-heif (extra "heic") is installed."""
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()


def read_image(source: str | Path | bytes | BinaryIO) -> Image.Image:
    """A picture file (a path, its bytes or a stream), fully loaded; ImageError with one clear line if it cannot be."""
    with _opened(source) as image:
        image.load()
    return image


def read_raster(source: str | Path | bytes | BinaryIO) -> Raster:
    """A picture file as what is coded, 16 bits of colour included; ImageError with one clear line if it cannot be.

    Of a large one whose format allows it, the samples stay in the file (`mcodec.image.strips`), which must not change.
    """
    with _opened(source) as image:
        bits = _bits(image)  # before loading, which may close the file
        raster = _in_parts(Path(source), image) if isinstance(source, str | Path) else None
        if raster is None:
            narrow = image.mode in ("I", "F") or image.mode.startswith("I;16") or not _is_wide(image)
            raster = to_raster(image) if narrow else _wide(image)
            if raster.kind is Kind.GREY16 and _has_12_bits(image):
                raster = replace(raster, samples=_scaled(np.asarray(raster.samples), 4095))
            if raster.kind is Kind.GREY16 and _is_negative(image):
                raster = replace(raster, samples=65535 - np.asarray(raster.samples))
        left_out = [f"{bits} bits become 8"] if bits > 8 else []
        raster = replace(raster, notes=(*raster.notes, *left_out, *_left_out(image, raster.metadata)))
        if (count := _pictures(image)) > 1:
            raster = replace(raster, notes=(*raster.notes, f"the first of {count} pictures in the file is taken"))
        return raster


@contextmanager
def _opened(source: str | Path | bytes | BinaryIO) -> Iterator[ImageFile]:
    register()
    name = str(source) if isinstance(source, str | Path) else ""
    what = f"the picture {name}".rstrip()
    try:
        if isinstance(source, str | Path):
            with open(source, "rb") as file:  # Pillow leaves its own file open when a picture is damaged
                yield _checked(Image.open(file))
        else:
            yield _checked(Image.open(io.BytesIO(source) if isinstance(source, bytes) else source))
    except ImageError as error:
        raise ImageError(f"{name or what}: {error}") from error
    except FileNotFoundError as error:
        raise ImageError(f"no such file: {name}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name or what}: too many pixels: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"cannot read {what}: unknown format") from error
    except OSError as error:
        raise ImageError(f"cannot read {what}: {error.strerror or error}") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise many types for damaged files
        raise ImageError(f"cannot read {what}: {error}") from error


def _checked(image: ImageFile) -> ImageFile:
    """Pillow warns above its limit and refuses above twice that; here the limit is one."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ImageError(f"too many pixels: {image.width}x{image.height}, the limit is {limit}")
    return image


def _bits(image: ImageFile) -> int:
    """Bits of the samples, of formats of which Pillow and its plugins hand out 8; 0 for others."""
    if image.format == "HEIF":
        return int(image.info.get("bit_depth", 0))
    if image.format not in ("AVIF", "JPEG2000") or image.mode.startswith("I"):
        return 0
    file = cast(BinaryIO, image.fp)
    place = file.tell()
    file.seek(0)
    head = file.read(2**16)
    file.seek(place)
    if image.format == "AVIF":  # the configuration of AV1, section 2.3 of its ISOBMFF binding
        flags = head[head.find(b"av1C") + 6 :][:1] if b"av1C" in head else b""
        return 0 if not flags else 8 if not flags[0] & 64 else 12 if flags[0] & 32 else 10
    depth = head[head.find(b"\xff\x4f\xff\x51") + 42 :][:1] if b"\xff\x4f\xff\x51" in head else b""  # Ssiz
    return (depth[0] & 127) + 1 if depth else 0


def _left_out(image: ImageFile, metadata: Metadata) -> list[str]:
    """What a picture file holds beside samples, profile, EXIF and XMP, and what these point to."""
    found, info = [], image.info
    if image.format == "JPEG" and 0x0404 in info.get("photoshop", {}):
        found.append("its IPTC captions are left out")
    if b"HasExtendedXMP" in (metadata.xmp or b""):
        found.append("the extended part of its XMP is left out")
    gamma = info.get("gamma")  # of a PNG file a number, or a text of this name
    if isinstance(gamma, float) and not metadata.icc and "srgb" not in info and abs(gamma - 1 / 2.2) > 0.01:
        found.append(f"its gamma of {gamma:g} is left out")
    # which Pillow does not count among the pictures
    in_jpeg = image.format == "JPEG" and b"hdrgm:Version" in (metadata.xmp or b"")
    if in_jpeg or (image.format == "HEIF" and any("hdrgainmap" in kind for kind in info.get("aux", {}))):
        found.append("its gain map (HDR) is left out")
    return found


def _pictures(image: ImageFile) -> int:
    """How many the file holds: frames, pages."""
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # what comes after the first may be damaged
        return 1


def _is_wide(image: ImageFile) -> bool:
    """Whether the file holds 16 bits where Pillow's mode has 8."""
    if image.format == "PPM":
        arguments = image.tile[0].args if image.tile else ()
        return isinstance(arguments, tuple) and isinstance(arguments[-1], int) and arguments[-1] > 255
    if image.format == "PNG":
        return bool(image.tile) and ";16" in str(image.tile[0].args)
    tiff: Any = image
    if image.format == "TIFF" and max(tiff.tag_v2.get(BITSPERSAMPLE, (1,))) == 16:
        if tiff.tile and tiff.tile[0].args[0] == "C":  # Pillow takes such planes for planes of 8 bits
            raise ImageError("CMYK of 16 bits in planes cannot be read")
        return image.mode != "CMYK"  # which becomes 8-bit RGB
    return False


def _is_negative(image: ImageFile) -> bool:
    """Whether 0 is white, which Pillow heeds up to 8 bits."""
    tiff: Any = image
    return image.format == "TIFF" and tiff.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0


def _has_12_bits(image: ImageFile) -> bool:
    """Whether samples run to 4095, which Pillow takes for 16 bits as they are."""
    tiff: Any = image
    return image.format == "TIFF" and tiff.tag_v2.get(BITSPERSAMPLE) == (12,)


def _in_parts(path: Path, image: ImageFile) -> Raster | None:
    """A large picture whose samples stay in its file; None where they cannot."""
    # of a PNG file the orientation is found by loading it, which forgets that it has 16 bits
    if image.format not in strips.FORMATS or image.width * image.height < strips.LARGE or meta.orientation(image) != 1:
        return None
    if not path.is_file():  # a pipe, as of a shell's <(...), is read once
        return None
    samples = strips.of_file(path, image)
    if samples is None:
        return None
    colour, wide = len(samples.shape) == 3, samples.dtype == np.uint16
    kind = (Kind.RGB16 if wide else Kind.RGB8) if colour else (Kind.GREY16 if wide else Kind.GREY8)
    return Raster(samples, kind, metadata=meta.of_image(image).upright())


def _wide(image: ImageFile) -> Raster:
    file = cast(BinaryIO, image.fp)
    file.seek(0)
    data = file.read()
    try:
        if image.format == "PPM":
            samples = _ppm(data, image)
        elif image.format == "PNG":
            import imagecodecs

            samples = imagecodecs.png_decode(data)
        else:
            import tifffile

            with tifffile.TiffFile(io.BytesIO(data)) as tiff:
                page: Any = tiff.pages[0]
                samples = page.asarray()
                if page.planarconfig == 2 and samples.ndim == 3:  # one plane after another
                    samples = samples.transpose(1, 2, 0)
                if image.mode == "RGB":
                    samples = samples[..., :3]  # what comes after is not alpha
                elif tifffile.EXTRASAMPLE.ASSOCALPHA in page.extrasamples:
                    samples = _divided(samples)
    except ImportError as error:
        raise ImageError(WIDE) from error
    orientation = meta.orientation(image)
    raster = to_raster(turned(samples, orientation))
    return replace(raster, metadata=meta.of_image(image).upright(orientation != 1))


def _divided(samples: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """`[H, W, 4]` whose colours are multiplied with alpha, without that; where alpha is 0 they stay."""
    colours, alpha = samples[..., :3].astype(np.uint32), samples[..., 3:]
    divisor = np.where(alpha == 0, 65535, alpha)
    straight = np.minimum((colours * 65535 + divisor // 2) // divisor, 65535)
    return np.dstack([straight.astype(np.uint16), alpha])


def _ppm(data: bytes, image: ImageFile) -> Samples:
    """Binary or plain, scaled from the file's maximum to 65535."""
    tile: Any = image.tile[0]
    shape, maximum = (image.height, image.width, 3), int(tile.args[-1])
    count = math.prod(shape)
    array: NDArray[Any]
    if tile.codec_name == "ppm_plain":
        words = re.sub(rb"#[^\r\n]*", b"", data[tile.offset :]).split(maxsplit=count)[:count]
        if len(words) < count:
            raise ImageError("the file is truncated")
        array = np.array(words, np.int64)
        if array.min() < 0 or array.max() > maximum:
            raise ImageError(f"a sample is outside of 0..{maximum}")
    else:
        array = np.frombuffer(data, ">u2", count, tile.offset)
    return _scaled(array, maximum).reshape(shape)


def _scaled(array: NDArray[Any], maximum: int) -> NDArray[np.uint16]:
    """Samples of 0 to a maximum, on the scale of 16 bits."""
    scaled = (array.astype(np.uint32) * 65535 + maximum // 2) // maximum
    return np.minimum(scaled, 65535).astype(np.uint16)
