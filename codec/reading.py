"""`mcodec.read`: one call from a path or URL to a picture."""

from __future__ import annotations

from functools import cache
from os import PathLike, fspath
from typing import TYPE_CHECKING

from PIL import Image

from mcodec.container import MAX_DECODED_PIXELS
from mcodec.errors import CodecError

if TYPE_CHECKING:
    from mcodec.api import Codec


@cache
def default_codec(model: str | None = None, device: str = "auto") -> Codec:
    """A codec that is loaded once per process."""
    from mcodec.api import load

    return load(model, device)


def read_bytes(source: str | PathLike[str]) -> bytes:
    """The content of a path or, through fsspec, of a URL. Raises OSError; CodecError where fsspec is missing."""
    place = fspath(source)
    if "://" not in place:
        with open(place, "rb") as file:
            return file.read()
    try:
        import fsspec
    except ImportError as error:
        raise CodecError("URLs need fsspec: pip install 'mcodec[url]'") from error
    with fsspec.open(place, "rb") as file:
        data: bytes = file.read()
    return data


def read(
    source: str | PathLike[str],
    stages: int | None = None,
    region: tuple[int, int, int, int] | None = None,
    model: str | None = None,
    device: str = "auto",
    max_pixels: int | None = MAX_DECODED_PIXELS,
) -> Image.Image:
    """The picture of a .mci file; source: a path, or a URL that fsspec opens (https://, s3://, memory://, ...).

    Fits where torchvision takes a loader: `ImageFolder(root, loader=mcodec.read, extensions=(".mci",))`. stages,
    region and max_pixels as in `Codec.decode`; the codec is loaded once per process.
    """
    return default_codec(model, device).decode(read_bytes(source), stages, region, max_pixels=max_pixels)
