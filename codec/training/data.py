"""Training pictures: tar shards or folders, decoded once and held in memory as bytes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mcodec.errors import TrainingError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}


def _streams(source: Path) -> Iterator[tuple[str, bytes]]:
    """(name, file content) of every picture in a tar shard, a file or a folder (tar shards inside included)."""
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.suffix.lower() in SUFFIXES | {".tar"}:
                yield from _streams(path)
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


def load_pictures(sources: Iterable[str | Path], limit: int | None = None) -> list[Tensor]:
    """Pictures as uint8 `[3, H, W]`, in a fixed order. TrainingError where a source has none or is unreadable."""
    pictures: list[Tensor] = []
    for source in sources:
        before = len(pictures)
        try:
            for name, content in _streams(Path(source)):
                if limit is not None and len(pictures) >= limit:
                    return pictures
                try:
                    array = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
                except OSError as error:
                    raise TrainingError(f"{source}: cannot read {name}: {error}") from error
                pictures.append(torch.from_numpy(array.copy()).permute(2, 0, 1).contiguous())
        except (OSError, tarfile.TarError) as error:
            raise TrainingError(f"cannot read training data {source}: {error}") from error
        if len(pictures) == before and (limit is None or before < limit):
            raise TrainingError(f"no pictures in {source}")
    return pictures


class Crops:
    """Endless batches of random crops and flips, from its own generator so that a run can be resumed."""

    def __init__(self, pictures: list[Tensor], crop: int, batch: int, seed: int, device: torch.device) -> None:
        self.pictures = [p.to(device) for p in pictures if min(p.shape[1:]) >= crop]
        if not self.pictures:
            raise TrainingError(f"no training picture is at least {crop}x{crop}")
        self.crop, self.batch = crop, batch
        self.generator = torch.Generator().manual_seed(seed)

    def _random(self, bound: int) -> int:
        return int(torch.randint(bound, (), generator=self.generator))

    def _one(self) -> Tensor:
        picture = self.pictures[self._random(len(self.pictures))]
        top = self._random(picture.shape[1] - self.crop + 1)
        left = self._random(picture.shape[2] - self.crop + 1)
        out = picture[:, top : top + self.crop, left : left + self.crop]
        flips = self._random(8)
        if flips & 1:
            out = out.flip(2)
        if flips & 2:
            out = out.flip(1)
        if flips & 4:
            out = out.transpose(1, 2)
        return out

    def next(self) -> Tensor:
        """`[batch, 3, crop, crop]` float in -0.5..0.5."""
        return torch.stack([self._one() for _ in range(self.batch)]).float() / 255 - 0.5


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
