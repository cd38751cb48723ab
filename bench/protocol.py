"""What a codec is to the benchmark, and how it says that it cannot run here."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mcodec.errors import BenchError

Pixels = NDArray[np.uint8]


class Unavailable(BenchError):
    """The codec cannot run here; the message says why."""


class Codec(Protocol):
    """What the runner needs of a codec.

    `version` and `settings` identify what is measured: rows with other values belong to another curve.
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str:
        """Encoder library and release, or the weights' hash."""

    @property
    def settings(self) -> str:
        """Everything that is fixed, and what the quality means."""

    @property
    def suffix(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def qualities(self) -> tuple[float, ...]:
        """Default qualities, in order of rising rate."""

    @property
    def whole(self) -> bool:
        """Whether only whole qualities exist."""

    def encode(self, pixels: Pixels, quality: float) -> bytes:
        """uint8 `[H, W, 3]` -> the content of a file."""

    def decode(self, data: bytes) -> Pixels:
        """The content of a file -> uint8 `[H, W, 3]`."""
