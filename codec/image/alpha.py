"""The alpha plane, exactly: a PNG or a lossless WebP, whichever is smaller."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from mcodec.errors import CorruptStream, LimitExceeded

Plane = NDArray[np.uint8] | NDArray[np.uint16]

#: WebP holds sides up to 16383; its lossless coder is slow and hungry on large planes.
WEBP_SIDE = 16383
WEBP_PIXELS = 2**22


def pack(plane: Plane) -> bytes:
    """A plane `[H, W]`, uint8 or uint16, as the payload of the section of alpha."""
    image = Image.fromarray(plane)
    choices = [_saved(image, "PNG", optimize=True)]
    if plane.dtype == np.uint8 and plane.size <= WEBP_PIXELS and max(plane.shape) <= WEBP_SIDE:
        choices.append(_saved(image, "WEBP", lossless=True, exact=True))
    return min(choices, key=len)


def unpack(data: bytes, width: int, height: int, bits: int) -> Plane:
    """Inverse of `pack`; CorruptStream for anything but a plane of this size, of 16 bits only beside such samples;
    LimitExceeded where it is above PIL.Image.MAX_IMAGE_PIXELS and Pillow heeds that.
    """
    png = data.startswith(b"\x89PNG")
    try:
        # Pillow makes room for a WebP's pixels when it opens it
        if not png and _webp_size(data) != (width, height):
            raise CorruptStream(f"the alpha section is no PNG or WebP of {width}x{height}")
        reader = PngImageFile if png else WebPImageFile
        image = reader(io.BytesIO(data))  # not Image.open, whose limit on pixels is not that of the format
        if image.size != (width, height):
            raise CorruptStream(f"alpha of {image.width}x{image.height} for a picture of {width}x{height}")
        if png and image.mode != "L" and not (image.mode == "I;16" and bits == 16):
            raise CorruptStream(f"alpha of mode {image.mode} for a picture of {bits} bits")
        array = np.asarray(image if png else image.convert("L"))
    except (CorruptStream, MemoryError):
        raise
    except Image.DecompressionBombError as error:  # of a WebP, Pillow asks for its own limit
        raise LimitExceeded(f"the alpha section: {error}") from error
    except Exception as error:  # Pillow's plugins raise many types for damaged data
        raise CorruptStream(f"the alpha section cannot be read: {error}") from error
    return array


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that a lossless WebP names; None for other data."""
    if data[12:16] != b"VP8L":
        return None
    size = int.from_bytes(data[21:25], "little")
    return (size & 0x3FFF) + 1, (size >> 14 & 0x3FFF) + 1


def _saved(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
