"""Shared fixtures: a tiny model whose every branch is alive, and pictures made from a seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from mcodec.api import Codec
from mcodec.model import Cascade, ModelConfig, StageConfig
from numpy.typing import NDArray

TINY = ModelConfig(
    name="tiny",
    stages=(
        StageConfig(32, groups=4, codewords=21 * 21),
        StageConfig(16, groups=4, codewords=15 * 15),
        StageConfig(8, groups=3, codewords=15 * 15),
        StageConfig(8, groups=5, codewords=9 * 9),
    ),
    channels={32: 24, 16: 24, 8: 32, 4: 48},
    analysis_blocks={4: 1, 8: 1},
    synthesis_blocks={4: 1},
    context_channels=24,
    context_blocks=1,
)


def lively(config: ModelConfig, seed: int = 0) -> Cascade:
    """A model with random values in the parameters that start at zero, so that no path is idle."""
    torch.manual_seed(seed)
    model = Cascade(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("film", "outer.weight", "correct.weight")) and ".context." not in name:
                parameter.normal_(0, 0.02)
            elif "log_weights" in name:
                parameter.normal_(0, 0.3)
            elif name.endswith("context.offset.weight"):
                parameter.mul_(4)
    return model


@pytest.fixture(scope="session")
def tiny() -> Codec:
    """A codec with the tiny random model."""
    return Codec(lively(TINY), b"tinytiny")


@pytest.fixture
def picture() -> Callable[..., NDArray[np.uint8]]:
    """Smooth random pictures with some texture, `picture(height, width, seed)`."""

    def make(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[0:height, 0:width] / 32
        waves = [
            np.sin(a * x + b * y + c) for a, b, c in rng.normal(0, 1.5, (3, 3))
        ]
        noise = rng.normal(0, 6, (height, width, 3))
        return np.clip(128 + 60 * np.stack(waves, 2) + noise, 0, 255).astype(np.uint8)

    return make
