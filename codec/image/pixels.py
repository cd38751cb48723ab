"""Pixels in and out: pictures of any kind to arrays, arrays to padded tensors and back."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from mcodec.errors import ImageError
from mcodec.files import write_bytes as _write_bytes

if TYPE_CHECKING:
    import torch

#: PIL image of any mode, numpy `[H, W, 3]` uint8 or torch `[3, H, W]` uint8.
Picture = Union[Image.Image, "NDArray[np.uint8]", "torch.Tensor"]

JPEG_QUALITY = 95


def to_array(image: Picture) -> NDArray[np.uint8]:
    """Any picture as C-contiguous uint8 `[H, W, 3]`.

    PIL images are turned upright by their EXIF orientation and converted to RGB: alpha is dropped, and 16-bit grey
    (modes I;16 and I, which Pillow uses for 16-bit files) keeps its upper 8 bits. The result may share memory with
    the picture. ValueError names a shape or type that is no picture.
    """
    if isinstance(image, Image.Image):
        upright = _upright(image)
        if upright.mode == "I" or upright.mode.startswith("I;16"):
            upright = Image.fromarray((np.clip(np.asarray(upright), 0, 65535) >> 8).astype(np.uint8))
        if upright.mode == "P" and "transparency" in upright.info:
            upright = upright.convert("RGBA")  # the same colours; Pillow warns where this step is missing
        array = np.asarray(upright.convert("RGB"))
    elif isinstance(image, np.ndarray):
        array = image
    elif type(image).__module__.split(".")[0] == "torch":
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"a torch picture must have shape [3, H, W], got {list(image.shape)}")
        if str(image.dtype) != "torch.uint8":  # before numpy(), which refuses some types in its own way
            raise ValueError(f"a picture must be uint8, got {str(image.dtype).removeprefix('torch.')}")
        array = image.detach().cpu().permute(1, 2, 0).numpy()
    else:
        raise ValueError(f"not a picture: {type(image).__name__}; PIL, numpy or torch is needed")
    if array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"a numpy picture must have shape [H, W, 3], got {list(array.shape)}")
    if array.dtype != np.uint8:
        raise ValueError(f"a picture must be uint8, got {array.dtype}")
    if array.size == 0:
        raise ValueError(f"a picture needs at least one pixel, got shape {list(array.shape)}")
    return np.ascontiguousarray(array)


def _upright(image: Image.Image) -> Image.Image:
    """The image turned by its EXIF orientation; damaged EXIF is no reason to refuse the pixels."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow's EXIF parser raises many types
        return image


def to_tensor(array: NDArray[np.uint8], multiple: int) -> torch.Tensor:
    """uint8 `[H, W, 3]` -> float32 `[1, 3, H', W']` in -0.5..0.5, its edges repeated up to a multiple."""
    import torch

    height, width = array.shape[:2]
    padded = np.pad(array, ((0, -height % multiple), (0, -width % multiple), (0, 0)), mode="edge")
    return torch.from_numpy(padded).permute(2, 0, 1)[None].to(torch.float32) / 255 - 0.5


def from_tensor(tensor: torch.Tensor, height: int, width: int) -> NDArray[np.uint8]:
    """float `[1, 3, H', W']`, about -0.5..0.5 -> uint8 `[height, width, 3]`, cropped, rounded and clamped."""
    import torch

    pixels = ((tensor[0, :, :height, :width].float() + 0.5) * 255).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())


def read_image(path: str | Path) -> Image.Image:
    """A picture file, fully loaded; ImageError with one clear line where it cannot be."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with open(path, "rb") as file:  # Pillow leaves its own file open when a picture is damaged
                image = Image.open(file)
                image.load()
    except FileNotFoundError as error:
        raise ImageError(f"no such file: {path}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{path}: too many pixels: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"cannot read the picture {path}: unknown format") from error
    except OSError as error:
        raise ImageError(f"cannot read the picture {path}: {error.strerror or error}") from error
    except Exception as error:  # Pillow's plugins raise many types for damaged files
        raise ImageError(f"cannot read the picture {path}: {error}") from error
    return image


def write_image(image: Image.Image, path: str | Path, **options: Any) -> None:
    """Write a picture in the format of the path's suffix, whole or not at all; ImageError says why not."""
    path = Path(path)
    form = Image.registered_extensions().get(path.suffix.lower())
    if form is None or form not in Image.SAVE:
        raise ImageError(f"cannot write {path}: {path.suffix or 'no suffix'} is no picture format")
    if form == "JPEG":
        options = {"quality": JPEG_QUALITY, **options}
    buffer = io.BytesIO()
    try:
        image.save(buffer, form, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ImageError(f"cannot write {path}: {error}") from error
    write_bytes(path, buffer.getvalue())


def write_bytes(path: str | Path, data: bytes) -> None:
    """A file, whole or not at all; ImageError where the folder or disk refuses."""
    try:
        _write_bytes(path, data)
    except OSError as error:
        raise ImageError(f"cannot write {path}: {error.strerror or error}") from error
