"""The pictures of a folder, with what is odd about each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mcodec.errors import BenchError, ImageError
from mcodec.image import read_image, register, to_raster

#: Pictures with a shorter side are measured but left out of the means: there, headers outweigh pixels.
MIN_SIDE = 16
#: Formats that are lossy as a rule: what has been through one is easy for it, and holds its errors for all others.
LOSSY = {"JPEG", "MPO", "AVIF", "HEIF", "JXL"}


@dataclass(frozen=True)
class Picture:
    """One file of the folder. A picture with a `problem` cannot be read; a `note` says what is unusual."""

    path: Path
    sha256: str
    width: int = 0
    height: int = 0
    note: str = ""
    problem: str = ""
    form: str = ""  # Pillow's name of the file's format

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def averaged(self) -> bool:
        """Whether the picture takes part in means."""
        return not self.problem and min(self.width, self.height) >= MIN_SIDE

    def pixels(self) -> NDArray[np.uint8]:
        """uint8 `[H, W, 3]`, upright, converted to RGB."""
        return rgb(read_image(self.path))


class PixelsOf(Sequence[NDArray[np.uint8]]):
    """Those of pictures, read each time one is asked for: a folder of photographs does not fit in memory."""

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: Any) -> Any:
        return self._pictures[index].pixels()


def rgb(image: Image.Image) -> NDArray[np.uint8]:
    """uint8 `[H, W, 3]`, upright; ImageError where it cannot be."""
    try:
        return to_raster(image).rgb8()
    except ValueError as error:  # floats on another scale
        raise ImageError(f"cannot read the picture: {error}") from error


def _look(path: Path) -> Picture:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        image = read_image(path)
        height, width = rgb(image).shape[:2]
    except ImageError as error:
        return Picture(path, sha256, problem=str(error).replace(str(path), path.name))
    notes = [] if image.mode == "RGB" else [f"mode {image.mode}, coded as RGB"]
    if min(width, height) < MIN_SIDE:
        notes.append(f"a side below {MIN_SIDE} px, not in the means")
    return Picture(path, sha256, width, height, "; ".join(notes), form=str(image.format))


def look(folder: Path, limit: int | None = None) -> list[Picture]:
    """Every file of the folder whose suffix is that of a picture, by name (not of subfolders), at most `limit`.

    Raises BenchError where there is none that can be read.
    """
    register()  # HEIC is a picture, too
    known = set(Image.registered_extensions())
    paths = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in known and p.is_file()]
    pictures = [_look(path) for path in paths[:limit]]
    if all(p.problem for p in pictures):
        raise BenchError(f"{folder} holds no picture that can be read")
    return pictures
