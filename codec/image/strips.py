"""Samples that are not held in memory: read from their file, or decoded, where they are asked for.

Pictures that lie in their file row by row (PPM, uncompressed TIFF) or in strips and tiles (TIFF) are read in parts. Of
other formats, and of what must be converted, turned or composed, the picture is held as a whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL.ImageFile import ImageFile

from mcodec.container import TILE
from mcodec.errors import ImageError

if TYPE_CHECKING:
    import torch

    from mcodec.image.raster import Samples

#: Smaller pictures are read as a whole: it is simpler and what damage they have shows at once.
LARGE = 2**24
#: Pillow's names of the formats that are read in parts.
FORMATS = ("PPM", "TIFF")
#: Higher strips and tiles of a TIFF file are no parts worth the name.
MAX_ROWS = TILE


class Strips(ABC):
    """Samples of a picture of which parts can be had: `[H, W]` or `[H, W, 3]`, uint8 or uint16."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any] | type) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype).newbyteorder("=")

    @abstractmethod
    def crop(self, left: int, top: int, right: int, bottom: int) -> Samples:
        """A part, `[h, w]` or `[h, w, 3]`. Safe to call from several threads."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self.crop(0, 0, self.shape[1], self.shape[0]), dtype)


class TensorSamples(Strips):
    """Samples in a torch tensor `[C, H, W]` of uint8, C = 1 or 3: a codec on its device reads them there."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__((*tensor.shape[1:], 3)[: 2 if len(tensor) == 1 else 3], np.uint8)
        self.tensor = tensor

    def crop(self, left: int, top: int, right: int, bottom: int) -> Samples:
        """Copies the part to the host."""
        part: Samples = self.tensor[:, top:bottom, left:right].permute(1, 2, 0).cpu().numpy()
        return part[:, :, 0] if len(self.shape) == 2 else part


class Rows(Strips):
    """Samples that lie in a file as they are, row by row from `offset` on."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int) -> None:
        super().__init__(shape, dtype)
        self.path, self.offset, self.stored = path, offset, dtype
        if path.stat().st_size < offset + dtype.itemsize * int(np.prod(shape)):
            raise ImageError("the file is truncated")

    def crop(self, left: int, top: int, right: int, bottom: int) -> Samples:
        """Reads the rows' parts one by one: nothing beside them comes into memory."""
        out = np.empty((bottom - top, right - left, *self.shape[2:]), self.stored)
        pixel = self.stored.itemsize * int(np.prod(self.shape[2:]))
        with _explained(self.path), open(self.path, "rb") as file:
            for y, row in enumerate(out, top):
                file.seek(self.offset + (y * self.shape[1] + left) * pixel)
                if file.readinto(row.data) < row.nbytes:
                    raise ImageError(f"cannot read the picture {self.path}: the file is truncated")
        return out.astype(self.dtype, copy=False)


class Segments(Strips):
    """A page of a TIFF file in strips or tiles, which tifffile decodes one by one.

    Those of the rows that were asked for last are kept: the codec goes through a picture row of tiles by row of tiles.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], page: Any) -> None:
        super().__init__(shape, page.dtype)
        self.path, self.page, self.decode = path, page, page.decode
        self.height: int = page.tilelength if page.is_tiled else page.rowsperstrip
        self.width: int = page.tilewidth if page.is_tiled else shape[1]
        self.across = -(-shape[1] // self.width)
        self._kept: dict[int, NDArray[Any]] = {}
        self._lock = Lock()

    def crop(self, left: int, top: int, right: int, bottom: int) -> Samples:
        """Decodes the segments that it meets."""
        out = np.zeros((bottom - top, right - left, *self.shape[2:]), self.dtype)  # segments may be left out
        rows = range(top // self.height, -(-bottom // self.height))
        with self._lock, _explained(self.path), open(self.path, "rb") as file:
            self._kept = {index: kept for index, kept in self._kept.items() if index // self.across in rows}
            for row in rows:
                for column in range(left // self.width, -(-right // self.width)):
                    segment = self._segment(file, row * self.across + column)
                    y, x = row * self.height, column * self.width
                    part = segment[max(0, top - y) : bottom - y, max(0, left - x) : right - x]
                    y, x = max(0, y - top), max(0, x - left)
                    out[y : y + part.shape[0], x : x + part.shape[1]] = part
        return out

    def _segment(self, file: Any, index: int) -> NDArray[Any]:
        if index not in self._kept:
            file.seek(self.page.dataoffsets[index])
            data = file.read(self.page.databytecounts[index]) or None  # left out where all is zero
            segment, _, size = self.decode(data, index, jpegtables=self.page.jpegtables)
            if segment is None:
                segment = np.zeros(size, self.dtype)
            self._kept[index] = segment.reshape(*segment.shape[1:3], *self.shape[2:])
        return self._kept[index]


def of_file(path: Path, image: ImageFile) -> Strips | None:
    """The samples of an opened picture file where they can be read in parts and taken as they are, else None."""
    if image.format == "PPM":
        return _ppm(path, image)
    if image.format == "TIFF" and image.mode in ("L", "RGB", "I;16", "I;16B"):
        return _tiff(path, image)
    return None


def _ppm(path: Path, image: ImageFile) -> Strips | None:
    """Binary PGM and PPM whose maximum is that of the samples' type."""
    tile: Any = image.tile[0]
    plain = {("raw", "L"): "u1", ("raw", "RGB"): "u1", ("raw", "I;16B"): ">u2", ("ppm", ("RGB", 65535)): ">u2"}
    dtype = plain.get((tile.codec_name, tile.args))
    if dtype is None:
        return None
    shape = (image.height, image.width, 3) if image.mode == "RGB" else (image.height, image.width)
    return Rows(path, shape, np.dtype(dtype), tile.offset)


def _tiff(path: Path, image: ImageFile) -> Strips | None:
    """Grey from black to white and RGB, 8 or 16 bits, pixel by pixel; without tifffile None."""
    try:
        import tifffile
    except ImportError:
        return None
    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
        channels = {1: 1, 2: 3}.get(page.photometric)  # MINISBLACK, RGB
        if (
            page.samplesperpixel != channels
            or page.planarconfig != 1
            or page.fillorder != 1  # `is_contiguous` says nothing of it
            or (page.compression == 1 and page.predictor != 1)  # which Pillow, as libtiff, does not heed there
            or page.dtype not in (np.uint8, np.uint16)
            or page.bitspersample != 8 * page.dtype.itemsize
            or (page.imagelength, page.imagewidth) != (image.height, image.width)
        ):
            return None
        shape = (image.height, image.width, 3) if channels == 3 else (image.height, image.width)
        if page.is_contiguous:
            return Rows(path, shape, page.dtype.newbyteorder(file.byteorder), page.dataoffsets[0])
        rows = page.tilelength if page.is_tiled else page.rowsperstrip
        return Segments(path, shape, page) if rows <= MAX_ROWS else None


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """ImageError for whatever reading raises."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except OSError as error:
        raise ImageError(f"cannot read the picture {path}: {error.strerror or error}") from error
    except Exception as error:  # decoders raise many types for damaged files
        raise ImageError(f"cannot read the picture {path}: {error}") from error
