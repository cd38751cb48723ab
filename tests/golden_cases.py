"""What golden files are made of: tiny models of every layout of stages, a picture for each feature of the format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from unittest import mock

import numpy as np
import torch
from fuzz.mutations import seal
from numpy.typing import NDArray
from tiny import lively

from mcodec import container, leb128
from mcodec.api import Codec
from mcodec.container import Kind
from mcodec.entropy import coder
from mcodec.image import Metadata, Raster
from mcodec.model import Cascade, ModelConfig, StageConfig

#: Name -> configuration. Together: strides 64 to 8, several stages of one stride, one stage, dimensions 1 to 6, both
#: priors, both kinds of blocks, with and without a reach, a lapped filter and a response.
MODELS = {
    config.name: config
    for config in (
        ModelConfig(
            name="five-stages",
            stages=(
                StageConfig(64, groups=2, codewords=9 * 9),
                StageConfig(32, groups=2, codewords=9 * 9),
                StageConfig(16, groups=4, codewords=7 * 7),
                StageConfig(8, groups=6, codewords=7 * 7),
                StageConfig(8, groups=6, codewords=5 * 5),
            ),
            channels={64: 8, 32: 8, 16: 8, 8: 12, 4: 48},
            analysis_blocks={8: 1},
            synthesis_blocks={4: 1},
            context_channels=12,
        ),
        ModelConfig(
            name="one-stage",
            stages=(StageConfig(8, groups=12, codewords=31, dim=1),),
            channels={8: 12, 4: 48},
            analysis_blocks={8: 1},
            synthesis_blocks={4: 0},
            context_channels=8,
            context_blocks=1,
        ),
        ModelConfig(
            name="static",
            stages=(StageConfig(32, groups=2, codewords=16, dim=6), StageConfig(16, groups=2, codewords=32, dim=4)),
            channels={32: 8, 16: 8, 8: 8, 4: 48},
            analysis_blocks={8: 1},
            synthesis_blocks={8: 1, 4: 0},
            block="dense",
            prior="static",
            assignment="gumbel",
            start="random",
        ),
        ModelConfig(
            name="reach",
            stages=(
                StageConfig(32, groups=2, codewords=21 * 21),
                StageConfig(8, groups=4, codewords=15 * 15),
                StageConfig(8, groups=3, codewords=41, dim=1, refine=0),
            ),
            channels={32: 8, 16: 8, 8: 12, 4: 48},
            analysis_blocks={8: 1},
            synthesis_blocks={4: 1},
            context_channels=12,
            lapped=True,
            response=0.5,
            sigma_min=0.16,
            reach=16,
        ),
    )
}


def build(config: ModelConfig) -> Cascade:
    """A model with every path alive whose pictures are neither flat nor all clipped."""
    model = lively(config)
    x = torch.linspace(-0.5, 0.5, 128).expand(128, 128)
    sample = torch.stack([torch.stack([x, x.T, -x]), torch.stack([x, x, x])])
    with torch.no_grad():
        if config.prior == "static":
            model.synthesis.out.weight.mul_(3)
        else:
            for _ in range(3):
                model(sample, torch.full((2,), 255.0), "noise", calibrate=True)
    return model.eval()


def picture(height: int, width: int, seed: int) -> NDArray[np.uint16]:
    """Waves and a little noise, `[height, width, 4]`, 16 bits."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / 32
    waves = np.stack([np.sin(a * x + b * y + c) for a, b, c in rng.normal(0, 1.5, (4, 3))], 2)
    noise = rng.normal(0, 400, (height, width, 4))
    return np.clip(32768 + 20000 * waves + noise, 0, 65535).astype(np.uint16)


METADATA = Metadata(
    icc=b"a colour profile",
    exif=b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\1\0\0\0\0\0\0\0",  # little-endian, one entry: orientation 1
    xmp=b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>",
)


@dataclass(frozen=True)
class Case:
    """A golden file to be made."""

    model: str
    size: tuple[int, int]  # height, width
    kind: Kind = Kind.RGB8
    quality: float = 50
    alpha: bool = False
    metadata: bool = False
    tile: int = container.TILE
    lanes: bool = False  # more than one, which such small pictures would not get
    afterwards: Callable[[bytes], bytes] = bytes  # what a later release may add

    def raster(self) -> Raster:
        """The picture."""
        pixels = picture(*self.size, seed=sum(self.size))
        if self.kind is Kind.BILEVEL:
            pixels = np.where(pixels > 32768, np.uint16(65535), np.uint16(0))
        samples = pixels if self.kind.bits == 16 else (pixels // 257).astype(np.uint8)
        return Raster(
            samples[..., 0] if self.kind.grey else samples[..., :3],
            self.kind,
            samples[..., 3] if self.alpha else None,
            METADATA if self.metadata else Metadata(),
        )

    def encode(self, codec: Codec) -> bytes:
        """The file."""
        codec.tile = self.tile
        surprise = (1 << 16) if self.lanes else coder.SURPRISE_PER_LANE
        with mock.patch.object(coder, "SURPRISE_PER_LANE", surprise):
            return self.afterwards(codec.encode(self.raster(), self.quality))


def longer_header(data: bytes) -> bytes:
    """With fields behind those of today, which a reader skips."""
    end = 6 + data[5]
    return seal(data[:5] + bytes([data[5] + 3]) + data[6:end] + b"new" + data[end : -container.CRC_BYTES])


def more_sections(data: bytes) -> bytes:
    """With sections of tags that a reader skips."""
    file = container.unpack(data)
    return container.pack(replace(file, sections=((128, b"later"), *file.sections, (255, b""), (255, b"twice"))))


def reversed_sections(data: bytes) -> bytes:
    """With the sections in an order that no writer uses."""
    file = container.unpack(data)
    sections = ((container.TAG_CODES, file.codes), *file.sections)[::-1]
    written = (bytes([tag]) + leb128.encode(len(payload)) + payload for tag, payload in sections)
    return seal(data[: 6 + data[5]] + b"".join(written))


FIVE, ONE, STATIC, REACH = MODELS
#: Name of the file -> what it is made of. Files of older formats stay when this list changes.
CASES = {
    "pixel": Case(FIVE, (1, 1)),
    "pixel-worst": Case(FIVE, (1, 1), quality=1),
    "pixel-best": Case(FIVE, (1, 1), quality=100),
    "pixel-bilevel-alpha-metadata": Case(ONE, (1, 1), Kind.BILEVEL, alpha=True, metadata=True),
    "row": Case(FIVE, (1, 130), quality=20),
    "column": Case(ONE, (97, 1), quality=80),
    "exact": Case(FIVE, (64, 64), quality=70),
    "odd": Case(FIVE, (63, 65), quality=100),
    "worst": Case(FIVE, (50, 90), quality=1),
    "grey": Case(FIVE, (40, 52), Kind.GREY8),
    "grey-alpha": Case(ONE, (40, 52), Kind.GREY8, alpha=True),
    "grey16": Case(FIVE, (40, 52), Kind.GREY16, quality=90),
    "grey16-alpha": Case(ONE, (40, 52), Kind.GREY16, quality=90, alpha=True),
    "bilevel": Case(ONE, (40, 52), Kind.BILEVEL, quality=100),
    "rgb-alpha": Case(FIVE, (40, 52), alpha=True),
    "rgb16": Case(ONE, (40, 52), Kind.RGB16, quality=90),
    "rgb16-alpha": Case(FIVE, (17, 23), Kind.RGB16, quality=90, alpha=True),
    "metadata": Case(FIVE, (30, 30), metadata=True),
    "all-sections": Case(ONE, (30, 30), alpha=True, metadata=True),
    "one-stage": Case(ONE, (70, 100)),
    "static": Case(STATIC, (70, 100)),
    "static-pixel": Case(STATIC, (1, 1)),
    "lanes": Case(ONE, (64, 80), quality=60, lanes=True),
    "static-lanes": Case(STATIC, (160, 160), quality=60, lanes=True),
    "tiles": Case(FIVE, (150, 200), quality=10, tile=64),
    "tiles-in-a-row": Case(FIVE, (9, 300), quality=30, tile=128),
    "tiles-one-stage": Case(ONE, (130, 70), quality=40, tile=64),
    "tiles-static": Case(STATIC, (140, 129), tile=64),
    "tiles-grey16-alpha-metadata": Case(ONE, (65, 66), Kind.GREY16, alpha=True, metadata=True, tile=64),
    "tiles-lanes": Case(ONE, (90, 110), tile=64, lanes=True),
    "reach": Case(REACH, (70, 100), quality=30),
    "reach-best": Case(REACH, (33, 40), quality=100),
    "reach-lanes": Case(REACH, (64, 80), quality=60, lanes=True),
    "reach-tiles": Case(REACH, (70, 130), quality=20, tile=64),
    "filter": Case(FIVE, (60, 75), quality=80),
    "filter-grey16": Case(ONE, (40, 50), Kind.GREY16, quality=70),
    "filter-tiles": Case(FIVE, (70, 130), quality=60, tile=64),
    "shifts": Case(REACH, (90, 120), quality=50),
    "shifts-tiles": Case(FIVE, (100, 150), quality=80, tile=64),
    "shifts-lanes": Case(ONE, (64, 80), quality=60, lanes=True),
    "large-tile-side": Case(ONE, (20, 20), tile=65536),
    "later-header": Case(ONE, (20, 20), afterwards=longer_header),
    "later-sections": Case(ONE, (20, 20), metadata=True, afterwards=more_sections),
    "sections-reversed": Case(ONE, (20, 20), alpha=True, metadata=True, afterwards=reversed_sections),
}
