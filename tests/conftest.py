"""Shared fixtures: a codec with the tiny model, and pictures made from a seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray
from tiny import TINY, lively

from mcodec.api import Codec

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


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
