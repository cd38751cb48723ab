"""Samples to padded tensors and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from mcodec.container import Kind
from mcodec.image.raster import Samples

if TYPE_CHECKING:
    import torch


def to_tensor(samples: Samples, multiple: int) -> torch.Tensor:
    """uint8 or uint16, `[H, W]` or `[H, W, 3]` -> float32 `[1, 3, H', W']` in -0.5..0.5.

    Edges are repeated up to a multiple; grey is the same in all channels.
    """
    import torch

    height, width = samples.shape[:2]
    margins = ((0, -height % multiple), (0, -width % multiple), (0, 0))
    padded: NDArray[Any] = np.pad(samples.reshape(height, width, -1), margins, mode="edge")
    scaled = padded.astype(np.float32) / np.float32(np.iinfo(samples.dtype).max) - np.float32(0.5)
    tensor = torch.from_numpy(scaled).permute(2, 0, 1)[None]
    return tensor.expand(-1, 3, -1, -1).contiguous()


def from_tensor(tensor: torch.Tensor, height: int, width: int, kind: Kind = Kind.RGB8) -> Samples:
    """float `[1, 3, H', W']`, about -0.5..0.5 -> samples `[height, width, 3]` or, of grey, `[height, width]`.

    Cropped, rounded and clamped. Grey is the mean of the channels: what was equal in them stays, their errors average.
    """
    import torch

    values = tensor[0, :, :height, :width].float()
    if kind.grey:
        values = values.mean(0, keepdim=True)
    maximum = 65535 if kind.bits == 16 else 255
    levels = ((values + 0.5) * maximum).round().clamp(0, maximum)
    if kind is Kind.BILEVEL:
        levels = (levels >= 128) * maximum
    # torch has few operations on uint16: the narrowing is numpy's
    array = levels.to(torch.int32).permute(1, 2, 0).cpu().numpy().astype(np.uint16 if kind.bits == 16 else np.uint8)
    return cast(Samples, np.ascontiguousarray(array[:, :, 0] if kind.grey else array))
