"""Training pictures: tar shards or folders, decoded once and held in memory as bytes."""

from __future__ import annotations

import tarfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mcodec.errors import ImageError, LossWarning, TrainingError
from mcodec.image import read_raster

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}


def _streams(source: Path) -> Iterator[tuple[str, bytes]]:
    """(name, file content) of every picture in a tar shard, a file or a folder (tar shards inside included)."""
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            hidden = any(part.startswith(".") for part in path.relative_to(source).parts)  # "._a.jpg" is no picture
            if hidden or path.is_dir() or path.suffix.lower() not in SUFFIXES | {".tar"}:
                continue
            if path.suffix.lower() == ".tar":
                yield from _streams(path)
                continue
            try:
                content = path.read_bytes()
            except OSError as error:  # a link to nothing, or not ours to read
                warnings.warn(f"{path} is left out: {error.strerror or error}", LossWarning, stacklevel=3)
                continue
            yield path.name, content
    elif source.suffix.lower() == ".tar":
        # members are read, never extracted: their names reach no file system
        with tarfile.open(source) as archive:
            for member in archive:
                if member.isfile() and Path(member.name).suffix.lower() in SUFFIXES:
                    stream = archive.extractfile(member)
                    if stream is not None:
                        yield member.name, stream.read()
    else:
        yield source.name, source.read_bytes()


def load_pictures(sources: Iterable[str | Path], limit: int | None = None, side: int | None = None) -> list[Tensor]:
    """Pictures as uint8 `[3, H, W]`, upright, in a fixed order; of larger ones than `side` a window, anywhere in them.

    One that cannot be read is left out of a folder or shard, with a LossWarning; named by itself it is a TrainingError,
    and so is a source without any picture.
    """
    pictures: list[Tensor] = []
    places = np.random.default_rng(0)
    for source in sources:
        before = len(pictures)
        try:
            for name, content in _streams(Path(source)):
                if limit is not None and len(pictures) >= limit:
                    return pictures
                try:
                    array = read_raster(content).rgb8()
                except ImageError as error:
                    if Path(source).name == name:
                        raise TrainingError(f"{source}: {error}") from error
                    warnings.warn(f"{source}: {name} is left out: {error}", LossWarning, stacklevel=2)
                    continue
                if side is not None:
                    top, left = (int(places.integers(max(0, length - side) + 1)) for length in array.shape[:2])
                    array = array[top : top + side, left : left + side]
                pictures.append(torch.from_numpy(array.copy()).permute(2, 0, 1).contiguous())
        except (OSError, EOFError, tarfile.TarError) as error:
            raise TrainingError(f"cannot read training data {source}: {error}") from error
        if len(pictures) == before and (limit is None or before < limit):
            raise TrainingError(f"no pictures in {source}")
    return pictures


def detail(picture: Tensor) -> float:
    """Mean absolute difference between neighbours of the grey picture `[3, H, W]`, in steps of 8 bits.

    About what the picture costs at a given quality: on validation pictures the logarithms of both have a correlation
    of 0.9 and a slope of 1.
    """
    grey = picture.float().mean(0)
    down, across = grey.diff(dim=0).abs(), grey.diff(dim=1).abs()
    return float(down.sum() + across.sum()) / max(1, down.numel() + across.numel())


class Crops:
    """Endless batches of random crops and flips, drawn and cut on the device that holds the pictures.

    Those are uint8 `[3, H, W]`, drawn in proportion to their `detail` to the given power; smaller ones than a crop are
    left out, TrainingError where none is left. Drawn on a CPU from a generator of its own so that a run can be resumed,
    on a GPU from the device's, which graphs replay.
    """

    def __init__(
        self, pictures: list[Tensor], crop: int, batch: int, seed: int, device: torch.device, power: float = 0.0
    ) -> None:
        self.crop, self.batch, self.device = crop, batch, device
        pictures = [p for p in pictures if min(p.shape[1:]) >= crop]
        if not pictures:
            raise TrainingError(f"no training picture is at least {crop}x{crop}")
        places, first = [], 0
        for picture in pictures:
            places.append([first, *picture.shape[1:]])
            first += picture[0].numel()
        self.pixels = torch.cat([p.flatten(1).t().to(device) for p in pictures])  # of all, one after the other
        self.places = torch.tensor(places, device=device)  # first pixel, height and width of each
        # a picture without any detail is drawn now and then, too
        chances = torch.tensor([(detail(p) + 0.1) ** power for p in pictures], dtype=torch.float64, device=device)
        self.below = chances.cumsum(0) / chances.sum()  # chance of a picture up to each
        if device.type == "cuda":
            with torch.cuda.device(device):
                self.generator = torch.cuda.default_generators[torch.cuda.current_device()]
        else:
            self.generator = torch.Generator().manual_seed(seed)

    def next(self, count: int | None = None, generator: torch.Generator | None = None) -> Tensor:
        """`[count, 3, crop, crop]` float in -0.5..0.5, channels_last; a batch if nothing is said."""
        count, generator, device, crop = count or self.batch, generator or self.generator, self.device, self.crop

        def share() -> Tensor:
            return torch.rand(count, 1, 1, generator=generator, device=device, dtype=torch.float64)

        def below(bound: int | Tensor) -> Tensor:
            """Integers in 0..bound-1, `[count, 1, 1]`."""
            return (share() * bound).long()

        picture = torch.searchsorted(self.below, share(), right=True).clamp(max=len(self.below) - 1)
        first, height, width = self.places[picture].unbind(3)
        i = torch.arange(crop, device=device)[:, None]
        i, j = (torch.where(below(2) == 1, crop - 1 - axis, axis) for axis in (i, i.t()))
        turned = below(2) == 1
        row, column = torch.where(turned, j, i), torch.where(turned, i, j)
        top, left = below(height - crop + 1), below(width - crop + 1)
        pixels = self.pixels[first + (top + row) * width + left + column]
        return pixels.movedim(3, 1).float() / 255 - 0.5


def validation_batch(pictures: list[Tensor], crop: int, count: int) -> Tensor:
    """Centre crops of the first `count` pictures, `[count, 3, crop, crop]` float in -0.5..0.5."""
    out = []
    for picture in pictures[:count]:
        top, left = (picture.shape[1] - crop) // 2, (picture.shape[2] - crop) // 2
        if top >= 0 and left >= 0:
            out.append(picture[:, top : top + crop, left : left + crop])
    if not out:
        raise TrainingError(f"no validation picture is at least {crop}x{crop}")
    return torch.stack(out).float() / 255 - 0.5
