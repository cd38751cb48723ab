"""Samples to padded tensors and back; the one module of pictures that needs torch."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mcodec.container import Kind
from mcodec.image.raster import Raster, Samples
from mcodec.image.strips import TensorSamples
from mcodec.kernels.backend import upload


def to_tensor(samples: Samples, multiple: int) -> Tensor:
    """uint8 or uint16, `[H, W]` or `[H, W, 3]` -> float32 `[1, 3, H', W']` in -0.5..0.5.

    Edges are repeated up to a multiple; grey is the same in all channels.
    """
    height, width = samples.shape[:2]
    margins = ((0, -height % multiple), (0, -width % multiple), (0, 0))
    padded: NDArray[Any] = np.pad(samples.reshape(height, width, -1), margins, mode="edge")
    scaled = padded.astype(np.float32) / np.float32(np.iinfo(samples.dtype).max) - np.float32(0.5)
    tensor = torch.from_numpy(scaled).permute(2, 0, 1)[None]
    return tensor.expand(-1, 3, -1, -1).contiguous()


def window_tensor(raster: Raster, window: tuple[int, int, int, int], multiple: int, device: torch.device) -> Tensor:
    """`to_tensor` of a window (left, top, right, bottom) of a picture, on a device.

    Samples that lie on a GPU stay there; 8-bit ones of the host go there as they are, a quarter of the floats.
    """
    left, top, right, bottom = window
    if isinstance(raster.samples, TensorSamples):
        part = raster.samples.tensor[:, top:bottom, left:right].to(device)
    else:
        samples = raster.crop(left, top, right, bottom)
        if device.type == "cpu" or samples.dtype != np.uint8:
            return upload(to_tensor(samples, multiple), device)
        rows = torch.from_numpy(np.array(samples).reshape(bottom - top, right - left, -1))
        part = upload(rows, device).permute(2, 0, 1)
    scaled = part[None].to(torch.float32) / 255 - 0.5
    padded = F.pad(scaled, (0, -(right - left) % multiple, 0, -(bottom - top) % multiple), mode="replicate")
    return padded.expand(-1, 3, -1, -1).contiguous()


def _levels(picture: Tensor, height: int, width: int, kind: Kind) -> Tensor:
    """float `[3, H', W']`, about -0.5..0.5 -> whole numbers 0..255 or 0..65535 as floats, `[C, height, width]`."""
    values = picture[:, :height, :width].float()
    if kind.grey:
        values = values.mean(0, keepdim=True)
    maximum = 65535 if kind.bits == 16 else 255
    levels = ((values + 0.5) * maximum).round().clamp(0, maximum)
    if kind is Kind.BILEVEL:
        levels = (levels >= 128) * maximum
    return levels


def from_tensor(picture: Tensor, height: int, width: int, kind: Kind = Kind.RGB8) -> Samples:
    """float `[3, H', W']`, about -0.5..0.5 -> samples `[height, width, 3]` or, of grey, `[height, width]`.

    Cropped, rounded and clamped. Grey is the mean of the channels: what was equal in them stays, their errors average.
    """
    # torch has few operations on uint16: that narrowing is numpy's
    levels = _levels(picture, height, width, kind).to(torch.int32 if kind.bits == 16 else torch.uint8)
    array = levels.permute(1, 2, 0).contiguous().cpu().numpy()
    if kind.bits == 16:
        array = array.astype(np.uint16)
    return cast(Samples, np.ascontiguousarray(array[:, :, 0] if kind.grey else array))


def to_uint8(picture: Tensor, height: int, width: int, kind: Kind = Kind.RGB8) -> Tensor:
    """float `[3, H', W']` -> uint8 `[3, height, width]` where it lies, as `from_tensor`.

    16 bits become their upper 8.
    """
    levels = _levels(picture, height, width, kind)
    if kind.bits == 16:
        levels = (levels.to(torch.int32) + 128) // 257
    return levels.to(torch.uint8).expand(3, -1, -1).contiguous()
