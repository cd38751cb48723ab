"""One form for pictures of any kind: samples that the networks see, the alpha plane, metadata."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Union, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from mcodec.container import Kind
from mcodec.errors import ImageError
from mcodec.image import metadata as meta
from mcodec.image.alpha import Plane
from mcodec.image.metadata import Metadata
from mcodec.image.strips import Strips, TensorSamples

if TYPE_CHECKING:
    import torch

Samples = Union["NDArray[np.uint8]", "NDArray[np.uint16]"]

#: PIL image of any mode; numpy `[H, W]`, `[H, W, 1..4]` or torch `[1..4, H, W]`, uint8 or uint16; or a Raster.
Picture = Union[Image.Image, Samples, "torch.Tensor", "Raster"]

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Raster:
    """A picture: upright, grey or RGB, without loss against what it came from unless `notes` says so."""

    samples: Image.Image | Samples | Strips  # PIL "L" or "RGB", or `[H, W]` or `[H, W, 3]` of the kind's depth
    kind: Kind
    alpha: Plane | None = None  # `[H, W]`, uint8, or uint16 beside samples of 16 bits
    metadata: Metadata = field(default_factory=Metadata)
    notes: tuple[str, ...] = field(default=(), compare=False)  # what this form does not keep

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        if isinstance(self.samples, Image.Image):
            return self.samples.size
        return self.samples.shape[1], self.samples.shape[0]

    def crop(self, left: int, top: int, right: int, bottom: int) -> Samples:
        """Samples of a part, `[h, w]` or `[h, w, 3]`; nothing of the rest is copied."""
        if isinstance(self.samples, Image.Image):
            return np.asarray(self.samples.crop((left, top, right, bottom)))
        if isinstance(self.samples, Strips):
            return self.samples.crop(left, top, right, bottom)
        return self.samples[top:bottom, left:right]

    def bands(self, rows: int) -> Iterator[Samples]:
        """All of it from top to bottom, as `array` but `rows` at a time."""
        width, height = self.size
        for top in range(0, height, rows):
            band = self.crop(0, top, width, min(top + rows, height))
            yield band if self.alpha is None else _joined(band, self.alpha[top : top + rows])

    def array(self) -> Samples:
        """All of it: `[H, W]`, or `[H, W, C]` with C = 2 (grey, alpha), 3 or 4."""
        samples = cast(Samples, np.asarray(self.samples))
        return samples if self.alpha is None else _joined(samples, self.alpha)

    def rgb8(self) -> NDArray[np.uint8]:
        """uint8 `[H, W, 3]` of any kind, without alpha: grey is the same in all channels, 16 bits are rounded to 8."""
        samples = eight_bits(cast(Samples, np.asarray(self.samples)))
        return samples if samples.ndim == 3 else np.dstack([samples] * 3)

    def image(self) -> Image.Image:
        """As a PIL image, metadata in its `info`. Pillow has 16 bits for grey alone: others keep their upper 8."""
        image = self._image()
        image.info.update(self.metadata.info())
        return image

    def _image(self) -> Image.Image:
        if self.kind is Kind.GREY16 and self.alpha is None:
            return Image.fromarray(np.asarray(self.samples))
        image = self.samples
        if not isinstance(image, Image.Image):
            image = Image.fromarray(eight_bits(cast(Samples, np.asarray(image))))
        if self.alpha is not None:
            image = image.convert("RGBA" if image.mode == "RGB" else "LA")
            image.putalpha(Image.fromarray(eight_bits(self.alpha)))
        elif self.kind is Kind.BILEVEL:
            image = image.convert("1", dither=Image.Dither.NONE)
        return image


def eight_bits(samples: Samples) -> NDArray[np.uint8]:
    """16-bit samples rounded to 8; samples of 8 bits as they are."""
    if samples.dtype == np.uint8:
        return cast("NDArray[np.uint8]", samples)
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _joined(samples: Samples, alpha: Plane) -> Samples:
    """Both in one array `[H, W, C]`; 8 bits beside 16 are widened, so that opaque stays opaque."""
    if samples.dtype != alpha.dtype:
        samples, alpha = (a if a.dtype == np.uint16 else a.astype(np.uint16) * 257 for a in (samples, alpha))
    return cast(Samples, np.dstack([samples, alpha]))


def turned(samples: Samples, orientation: int) -> Samples:
    """An array `[H, W, ...]` that an EXIF orientation describes, upright."""
    if orientation >= 5:
        samples = samples.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return samples


def to_raster(picture: Picture) -> Raster:
    """Any picture; ValueError names a shape or type that is none, or a depth of alpha. May share memory with it.

    PIL images are turned upright by their EXIF orientation. Palettes become RGB or grey; CMYK, YCbCr, HSV and LAB
    become RGB (CMYK by its profile where it has one); "I" is taken for 16 bits and "F" for 8, both clipped. ValueError,
    too, for floats that are no numbers, or on a scale of 0 to 1.
    """
    if isinstance(picture, Raster):
        if picture.alpha is not None and picture.alpha.dtype == np.uint16 and picture.kind.bits != 16:
            raise ValueError("alpha of 16 bits needs samples of 16 bits")
        if picture.alpha is not None and picture.alpha.shape != picture.size[::-1]:
            raise ValueError(f"alpha has shape {list(picture.alpha.shape)}, not {list(picture.size[::-1])}")
        return picture
    if isinstance(picture, Image.Image):
        return _from_image(picture)
    if isinstance(picture, np.ndarray):
        return _from_array(picture)
    if is_tensor(picture):
        tensor = cast(Any, picture)
        if tensor.ndim != 3 or not 1 <= tensor.shape[0] <= 4:
            raise ValueError(f"a torch picture must have shape [C, H, W] with C from 1 to 4, got {list(tensor.shape)}")
        if str(tensor.dtype) not in ("torch.uint8", "torch.uint16"):  # numpy() refuses some types in its own way
            raise ValueError(f"a picture must be uint8 or uint16, got {str(tensor.dtype).removeprefix('torch.')}")
        tensor = tensor.detach()
        if tensor.device.type != "cpu" and str(tensor.dtype) == "torch.uint8" and tensor.numel():
            return _from_device(tensor)
        return _from_array(tensor.cpu().permute(1, 2, 0).numpy())
    raise ValueError(f"not a picture: {type(picture).__name__}; PIL, numpy or torch is needed")


def taken(picture: Picture) -> Raster:
    """`to_raster`; ImageError where the file of a PIL image, whose pixels may be read only now, is damaged."""
    try:
        return to_raster(picture)
    except (OSError, SyntaxError) as error:  # Pillow has both
        raise ImageError(f"cannot read the picture: {error}") from error


def is_tensor(item: object) -> bool:
    """Whether it is a tensor of torch or of a class derived from it, as torchvision has; without importing it."""
    return any((kind.__module__, kind.__name__) == ("torch", "Tensor") for kind in type(item).__mro__)


def _from_array(array: NDArray[Any]) -> Raster:
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or not 1 <= array.shape[2] <= 4:
        raise ValueError(
            f"a numpy picture must have shape [H, W] or [H, W, C] with C from 1 to 4, got {list(array.shape)}"
        )
    if array.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"a picture must be uint8 or uint16, got {array.dtype}")
    if array.size == 0:
        raise ValueError(f"a picture needs at least one pixel, got shape {list(array.shape)}")
    alpha = array[:, :, -1] if array.shape[2] in (2, 4) else None
    wide = array.dtype == np.uint16
    if array.shape[2] < 3:
        return Raster(array[:, :, 0], Kind.GREY16 if wide else Kind.GREY8, alpha)
    return Raster(array[:, :, :3], Kind.RGB16 if wide else Kind.RGB8, alpha)


def _from_device(tensor: torch.Tensor) -> Raster:
    """As `_from_array`, of uint8 `[C, H, W]`; only alpha, which is not for the networks, comes to the host."""
    colours = 1 if len(tensor) < 3 else 3
    alpha = tensor[-1].cpu().numpy() if len(tensor) > colours else None
    return Raster(TensorSamples(tensor[:colours]), Kind.GREY8 if colours == 1 else Kind.RGB8, alpha)


def _from_image(image: Image.Image) -> Raster:
    if image.width < 1 or image.height < 1:
        raise ValueError(f"a picture needs at least one pixel, got {image.width}x{image.height}")
    image.load()
    metadata = meta.of_image(image)
    turn = _TURNS.get(meta.orientation(image))
    if turn is not None:
        # before conversions, which keep it
        transparency = image.info.get("transparency")
        image = image.transpose(turn)
        if transparency is not None:
            image.info["transparency"] = transparency
    metadata = metadata.upright(turn is not None)
    mode, notes = image.mode, []
    if mode == "1" and "transparency" not in image.info:
        return Raster(image.convert("L"), Kind.BILEVEL, metadata=metadata)
    if mode == "I" or mode.startswith("I;16"):
        wide = np.asarray(image)
        if mode == "I" and (wide.min() < 0 or wide.max() > 65535):
            notes.append("values outside of 0..65535 are clipped")
        key = image.info.get("transparency")  # the level that a PNG file declares transparent
        alpha = np.where(wide == key, 0, 255).astype(np.uint8) if isinstance(key, int) else None
        return Raster(np.clip(wide, 0, 65535).astype(np.uint16), Kind.GREY16, alpha, metadata, tuple(notes))
    if mode == "F":
        return Raster(image.convert("L"), Kind.GREY8, metadata=metadata, notes=(_of_floats(np.asarray(image)),))
    if mode in ("CMYK", "LAB"):
        image, metadata = _managed(image, metadata)
    # to a profile of RGB colours a grey picture would be none
    of_colours = (metadata.icc or b"")[16:20] == b"RGB "
    grey = mode in ("1", "L", "LA", "La") or (mode == "P" and not of_colours and _is_grey(image))
    if mode not in ("1", "L", "LA", "La", "RGB", "RGBA", "RGBa", "RGBX"):
        notes.append(f"{'a palette' if mode in ('P', 'PA') else mode} becomes {'grey' if grey else 'RGB'}")
    alpha = None
    if image.has_transparency_data:
        image = image.convert("LA" if grey else "RGBA")
        alpha = np.asarray(image.getchannel("A"))
    samples = image.convert("L" if grey else "RGB")
    return Raster(samples, Kind.GREY8 if grey else Kind.RGB8, alpha, metadata, tuple(notes))


def _of_floats(values: NDArray[np.float32]) -> str:
    """What becomes of them; ValueError where they are on another scale."""
    if np.isnan(values).any():
        raise ValueError("some samples are no numbers")
    if 0 < values.max() <= 1:
        raise ValueError("floats are taken as 0 to 255, and none of these is above 1: scale them first")
    outside = float(((values < 0) | (values > 255)).mean())
    return "floats become 8-bit grey" + (f", {outside:.1%} of them clipped to 0 to 255" if outside else "")


def _is_grey(image: Image.Image) -> bool:
    """Whether a palette has greys only, as those of grey GIF files do."""
    palette = np.asarray(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    return bool((palette == palette[:, :1]).all())


def _managed(image: Image.Image, metadata: Metadata) -> tuple[Image.Image, Metadata]:
    """CMYK or LAB as RGB, by the profile where it is one of these colours; the profile goes, as it names them."""
    try:
        source: Any
        if image.mode == "LAB":
            source = ImageCms.createProfile("LAB")
        elif metadata.icc:
            source = ImageCms.ImageCmsProfile(io.BytesIO(metadata.icc))
        else:
            return image, metadata
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        converted = image if image.mode == "CMYK" else image.getchannel("L")
    return converted or image, replace(metadata, icc=None)
