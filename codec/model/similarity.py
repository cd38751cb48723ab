"""MS-SSIM (Wang, Simoncelli, Bovik, 2003): a distortion to train and to search for, and a measure of pictures.

By pytorch-msssim, which is imported when it is first needed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from mcodec.errors import CodecError

#: The shortest side that MS-SSIM takes: it halves the picture four times under a window of 11, and wants more than 160.
SIDE = 161


def ms_ssim(a: Tensor, b: Tensor, peak: float) -> Tensor:
    """MS-SSIM of pictures `[B, C, H, W]` of values from 0 to `peak`, `[B]`, the mean over channels.

    AssertionError for sides below SIDE; CodecError where pytorch-msssim is missing.
    """
    if a.is_cuda:  # variances are small differences; TF32, which a GPU may take for float32, would lose them
        a, b = a.double(), b.double()
    with torch.autocast(a.device.type, enabled=False):
        return library()(a, b, data_range=peak, size_average=False).float()


def library() -> Callable[..., Tensor]:
    """The function of pytorch-msssim; CodecError where it is missing."""
    try:
        from pytorch_msssim import ms_ssim as function
    except ImportError as error:
        raise CodecError("MS-SSIM needs pytorch-msssim: pip install pytorch-msssim") from error
    found: Callable[..., Tensor] = function
    return found


def dissimilarity(a: Tensor, b: Tensor) -> Tensor:
    """1 - MS-SSIM of pictures `[B, C, H, W]` of values from -0.5 to 0.5, `[B]`.

    Of pictures with sides below SIDE, it is that of their continuation by the pixels of the edge.
    """
    missing = [max(0, SIDE - side) for side in a.shape[2:]]
    if any(missing):
        a, b = (F.pad(x, (0, missing[1], 0, missing[0]), mode="replicate") for x in (a, b))
    return 1 - ms_ssim(a + 0.5, b + 0.5, 1.0)
