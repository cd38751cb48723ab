"""Model configurations: the shape of a cascade, and the presets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from mcodec.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

Level = TypeVar("Level", float, "Tensor")

#: Quality levels stored in a file (one byte). Users see 1..100.
LEVELS = 256


#: Distortions and their weights. Mean squared error is of values from 0 to 1; of 1 - MS-SSIM, 1250 gives about the same
#: bits: CompressAI trains its eight qualities at 0.0018 to 0.18 for the one, at 2.4 to 220 for the other.
DISTORTIONS = {"mse": 255.0**2, "ms-ssim": 1250.0}


def level_of(quality: float) -> int:
    """Quality 1..100 as users give it -> level 0..255 as files store it."""
    try:
        number = math.nan if isinstance(quality, str | bytes) else float(quality)
    except (TypeError, ValueError):  # of no number
        number = math.nan
    if not 1 <= number <= 100:
        raise ValueError(f"quality must be from 1 to 100, got {quality}")
    return round((number - 1) * (LEVELS - 1) / 99)


def quality_of(level: int) -> float:
    """Level 0..255 -> quality 1..100."""
    return 1 + level * 99 / (LEVELS - 1)


@dataclass(frozen=True)
class StageConfig:
    """One stage of the cascade: M sub-codebooks of K codewords of dimension d at a stride."""

    stride: int
    groups: int  # M
    codewords: int  # K; with the lattice start the square of an odd number (d = 2) or the odd number (d = 1)
    dim: int = 2  # d
    refine: int = 1  # residual blocks after the stage, in the synthesis state

    @property
    def width(self) -> int:
        """Latent channels M * d."""
        return self.groups * self.dim


@dataclass(frozen=True)
class ModelConfig:
    """A cascade. Strides are relative to the image and fall from stage to stage."""

    name: str
    stages: tuple[StageConfig, ...]
    channels: dict[int, int]  # feature and synthesis-state channels per stride, from 4 upwards
    analysis_blocks: dict[int, int]  # residual blocks per stride
    synthesis_blocks: dict[int, int]  # residual blocks at strides without a stage (4)
    block: str = "separable"  # kind of the residual blocks; see mcodec.model.layers.BODIES
    context_channels: int = 96
    context_blocks: int = 2
    prior: str = "mixture"  # "mixture": conditional, "static": one histogram per sub-codebook (`umgm`)
    assignment: str = "entropy"  # "entropy": rate-aware nearest codeword, "gumbel": Gumbel-softmax (`umgm`)
    start: str = "dct"  # "dct": linear paths start as a block-DCT pyramid, "random"
    lapped: bool = False  # a learned filter across the borders of 8x8 blocks, before analysis and after synthesis
    # what bodies add is multiplied by a learned function of quality that starts as lambda^-response; 0: by nothing
    response: float = 0.0
    # smallest sigma of the prior, in steps; what has it is not coded. With 0.16 one value in 550 is more than half a
    # step from the mean, and four symbols of five are of that kind: coding them would cost time
    sigma_min: float = 0.08
    # codewords so many bits less probable than the likeliest cannot be coded; 0: all can. Each that can takes 2^-16 of
    # the probability of all others, and of 961 a few dozen ever occur; 32 would cut off values that do
    reach: int = 0
    distortion: str = "mse"  # or "ms-ssim": what the weights are trained for; see `distortion_weight`
    lambda_min: float = 0.0006  # loss is lambda * 255^2 * MSE + bpp; about 0.1 bpp ...
    lambda_max: float = 0.2  # ... and about 2 bpp on photographs
    version: int = 1

    def __post_init__(self) -> None:
        if self.version != 1:
            raise ModelError(f"version {self.version} of a model is not one that this release knows (1)")
        strides = [s.stride for s in self.stages]
        if not strides or strides != sorted(strides, reverse=True):
            raise ModelError(f"stage strides must fall from coarse to fine, got {strides}")
        powers = [4 << i for i in range(max(strides).bit_length())]
        if not set(strides) <= set(powers) or sorted(self.channels) != powers[: powers.index(strides[0]) + 1]:
            raise ModelError(f"strides {strides} need channels of 4, 8 and so on, got those of {sorted(self.channels)}")
        if self.lapped and strides[-1] < 8:  # a window begins at a position of the last stage
            raise ModelError("overlapping blocks of 8 need a last stage of stride 8 or more")
        if self.prior not in ("mixture", "static") or self.assignment not in ("entropy", "gumbel"):
            raise ModelError(f"unknown prior {self.prior!r} or assignment {self.assignment!r}")
        if self.prior == "static" and self.reach:
            raise ModelError("a static prior reaches all codewords: its choice does not look at frequencies")
        if self.distortion not in DISTORTIONS:
            raise ModelError(f"unknown distortion {self.distortion!r}; known: {', '.join(DISTORTIONS)}")
        if self.block not in ("dense", "separable"):
            raise ModelError(f"unknown block {self.block!r}")
        if self.context_channels > 512:
            raise ModelError("context_channels above 512 would overflow 24-bit accumulators")
        if self.prior == "mixture" and max(2 * s.width for s in self.stages) > 512:
            raise ModelError("more than 256 latents in a stage would overflow 24-bit accumulators")

    @property
    def strides(self) -> list[int]:
        """All strides with features, coarse to fine, 4 last."""
        return sorted(self.channels, reverse=True)

    @property
    def multiple(self) -> int:
        """Images are padded to a multiple of the coarsest stride."""
        return self.stages[0].stride

    def lam(self, level: Level) -> Level:
        """Lagrangian weight of quality levels, a number or a float tensor: geometric from lambda_min to lambda_max."""
        weight: Level = self.lambda_min * (self.lambda_max / self.lambda_min) ** (level / (LEVELS - 1))
        return weight

    def sample_weight(self, level: Level) -> Level:
        """Bits per squared error of a sample, one of three in a pixel, where the distortion is squared error."""
        weight: Level = self.lam(level) * DISTORTIONS["mse"] / 3
        return weight

    @property
    def distortion_weight(self) -> float:
        """What lambda times the distortion is multiplied by, for a loss in bits per pixel."""
        return DISTORTIONS[self.distortion]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> ModelConfig:
        """Inverse of `to_dict` (JSON turns integer keys into strings)."""
        try:
            fields = dict(data)
            fields["stages"] = tuple(StageConfig(**s) for s in fields["stages"])
            for key in ("channels", "analysis_blocks", "synthesis_blocks"):
                fields[key] = {int(k): int(v) for k, v in fields[key].items()}
            return ModelConfig(**fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"not a model configuration: {error}") from error


#: Coarse stages have few symbols and wide supports: large codebooks cost nothing there. At stride 8 the stages take
#: 160 of the 192 coefficients of an 8x8 block: with 64, textured pictures do not pass 31 dB whatever the rate.
_STAGES = (
    StageConfig(64, groups=12, codewords=41**2),
    StageConfig(32, groups=12, codewords=41**2),
    StageConfig(16, groups=24, codewords=31**2),
    StageConfig(8, groups=8, codewords=31**2),
    StageConfig(8, groups=16, codewords=21**2),
    StageConfig(8, groups=24, codewords=15**2),
    StageConfig(8, groups=32, codewords=11**2),
)


def _stages(*refine: int) -> tuple[StageConfig, ...]:
    return tuple(replace(stage, refine=count) for stage, count in zip(_STAGES, refine, strict=True))


_CASCADE = ModelConfig(
    name="cascade",
    stages=_stages(1, 2, 3, 1, 1, 1, 2),
    channels={64: 128, 32: 192, 16: 192, 8: 192, 4: 96},
    analysis_blocks={4: 4, 8: 2, 16: 3, 32: 2, 64: 1},
    synthesis_blocks={4: 5},
    lapped=True,
    response=0.5,  # errors fall with the square root of lambda; 1 diverges after some hundred steps
    sigma_min=0.16,
    reach=64,
)

PRESETS: dict[str, ModelConfig] = {
    "cascade": _CASCADE,
    "cascade-small": ModelConfig(
        name="cascade-small",
        stages=_stages(1, 1, 1, 0, 0, 0, 1),
        channels={64: 96, 32: 128, 16: 128, 8: 160, 4: 48},
        analysis_blocks={4: 1, 8: 1, 16: 1, 32: 1, 64: 1},
        synthesis_blocks={4: 1},
        context_channels=64,
        context_blocks=1,
        sigma_min=0.16,
        reach=64,
    ),
    # For whom trains on a GPU.
    "cascade-large": replace(
        _CASCADE, name="cascade-large", channels={64: 192, 32: 256, 16: 256, 8: 224, 4: 128}
    ),
    # To go on from weights of `cascade`: what looks alike for what is near.
    "cascade-ms-ssim": replace(_CASCADE, name="cascade-ms-ssim", distortion="ms-ssim"),
    # The method of McQuic as published: one histogram per sub-codebook, Gumbel-softmax, no rate term.
    "umgm": ModelConfig(
        name="umgm",
        stages=(
            StageConfig(64, groups=2, codewords=512, dim=48),
            StageConfig(32, groups=2, codewords=2048, dim=48),
            StageConfig(16, groups=2, codewords=8192, dim=48, refine=2),
        ),
        channels={64: 96, 32: 96, 16: 96, 8: 96, 4: 48},
        analysis_blocks={4: 1, 8: 1, 16: 1, 32: 1, 64: 1},
        synthesis_blocks={8: 1, 4: 1},
        block="dense",
        prior="static",
        assignment="gumbel",
        start="random",
    ),
}


def preset(name: str) -> ModelConfig:
    """Configuration by name; ModelError names the known ones."""
    if name not in PRESETS:
        raise ModelError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
