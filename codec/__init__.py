"""Learned image codec: photographs to small `.mci` files and back.

::

    import mcodec
    codec = mcodec.load()
    data = codec.encode(image, quality=50)   # PIL of any mode, numpy [H, W, C] or torch [C, H, W] -> bytes
    picture = codec.decode(data)             # -> PIL.Image
    picture = mcodec.read("photo.mci")       # a path or URL -> PIL.Image
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mcodec._version import __version__
from mcodec.errors import (
    BenchError,
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
    VerificationError,
    WrongModel,
)

if TYPE_CHECKING:
    from mcodec import rate, verification
    from mcodec.api import Codec, load
    from mcodec.reading import read

__all__ = [
    "BenchError",
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
    "VerificationError",
    "WrongModel",
    "__version__",
    "load",
    "rate",
    "read",
    "verification",
]


def __getattr__(name: str) -> Any:
    # These bring in torch, which takes seconds: only when they are asked for.
    if name in ("Codec", "load"):
        from mcodec import api

        return getattr(api, name)
    if name == "read":
        from mcodec.reading import read

        return read
    if name in ("rate", "verification"):
        return importlib.import_module(f"mcodec.{name}")
    raise AttributeError(f"module 'mcodec' has no attribute {name!r}")
