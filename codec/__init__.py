"""Learned image codec: photographs to small `.mci` files and back.

::

    import mcodec
    codec = mcodec.load()
    data = codec.encode(image, quality=50)   # PIL, numpy [H, W, 3] uint8 or torch [3, H, W] uint8 -> bytes
    picture = codec.decode(data)             # -> PIL.Image
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mcodec._version import __version__
from mcodec.errors import (
    CodecError,
    CorruptStream,
    FormatError,
    ImageError,
    LimitExceeded,
    LossWarning,
    ModelError,
    NotAnMciFile,
    TargetError,
    TrainingError,
    UnsupportedVersion,
    WrongModel,
)

if TYPE_CHECKING:
    from mcodec.api import Codec, load

__all__ = [
    "Codec",
    "CodecError",
    "CorruptStream",
    "FormatError",
    "ImageError",
    "LimitExceeded",
    "LossWarning",
    "ModelError",
    "NotAnMciFile",
    "TargetError",
    "TrainingError",
    "UnsupportedVersion",
    "WrongModel",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    # `Codec` and `load` bring in torch, which takes seconds: only when they are asked for.
    if name in ("Codec", "load"):
        from mcodec import api

        return getattr(api, name)
    raise AttributeError(f"module 'mcodec' has no attribute {name!r}")
