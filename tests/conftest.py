"""Shared fixtures: a codec with the tiny model, and pictures made from a seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import TINY, lively

from mcodec.api import Codec
from mcodec.model import Cascade


@pytest.fixture(scope="session")
def tiny() -> Codec:
    """A codec with the tiny random model."""
    return Codec(lively(TINY), b"tinytiny")


@pytest.fixture(scope="session")
def plain() -> Codec:
    """A codec with the tiny model before training, calibrated: a block transform that follows the quality."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Cascade(TINY).eval()
        x = torch.linspace(-0.5, 0.5, 64).expand(64, 64)
        sample = torch.stack([torch.stack([x, x.T, -x]), torch.stack([x, x, x])])
        with torch.no_grad():
            for _ in range(3):
                model(sample, torch.full((2,), 255.0), "noise", calibrate=True)
        return Codec(model, b"plainone")


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
