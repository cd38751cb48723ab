"""`mcodec.read`: one call from a path or URL to a picture."""

from __future__ import annotations

from functools import cache
from os import PathLike
from typing import TYPE_CHECKING

from PIL import Image

from mcodec import container, weights
from mcodec.container import MAX_DECODED_PIXELS
from mcodec.files import read_bytes

if TYPE_CHECKING:
    from mcodec.api import Codec


@cache
def _loaded(model: str | None, device: str) -> Codec:
    from mcodec.api import load

    return load(model, device)


def default_codec(model: str | None = None, device: str = "auto") -> Codec:
    """A codec that is loaded once per process; "auto" is the CPU in a data loader's worker: CUDA survives no fork."""
    from torch.utils.data import get_worker_info

    return _loaded(model, "cpu" if device == "auto" and get_worker_info() else device)


def codec_for(data: bytes, model: str | None, device: str, max_pixels: int | None = None) -> Codec:
    """`default_codec` of the weights that are named here, else of the installed ones that the file names."""
    return default_codec(model or weights.named_by(container.unpack(data, max_pixels=max_pixels)), device)


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
    region and max_pixels as in `Codec.decode`. model: where none is named, of the installed weights those that the file
    names; they are loaded once per process. device: "auto" is the CPU in the workers of a data loader.
    """
    data = read_bytes(source)
    return codec_for(data, model, device, max_pixels).decode(data, stages, region, max_pixels=max_pixels)
