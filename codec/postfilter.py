"""A filter behind the synthesis, fitted to each picture by its encoder.

The synthesis is one network for all pictures. How smooth this one is, and how its colours go together, the encoder
sees: it solves for the weights that bring the decoded picture nearest to the original, and the file carries them, as
adaptive loop filters of video codecs do (Tsai et al., IEEE J. Sel. Topics in Signal Processing, 2013).

A weight belongs to a mean of differences between neighbours and the sample itself: of two opposite neighbours; of a
ring of four, each difference clipped, so that edges stay (as in VVC: Karczewicz et al., IEEE Trans. CSVT, 2021); of
the four nearest in another channel. `mcodec.kernels.pixel_filter` applies it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mcodec.container import FILTER_BYTES
from mcodec.kernels.pixel_filter import PAIRS, RINGS, neighbours, pair_mean, pixel_filter, ring_sum, strips
from mcodec.model.window import Box

#: Steps of a weight of 1.
UNIT = 128
#: Differences are clipped at this share of the quantization step that suits lambda (see Stage._start). On validation
#: pictures 0.06 and 0.15 gain 3 and 2 % less, 0.35 a tenth less.
CLIP = 0.1
#: Bytes of weights: one per mean, alike in all channels; those of each channel; these, and two for other channels.
ALIKE, OWN, ALL = FILTER_BYTES
_MEANS = len(PAIRS) + len(RINGS)
#: Bytes of a section's tag and length.
_HEAD = 2


def clipping(lam: float) -> float:
    """Where differences are clipped, in the unit of pictures (their range is 1)."""
    return float(CLIP * (26 / lam) ** 0.5 / 255)


def _weights(payload: bytes) -> tuple[Tensor, Tensor]:
    """Of a section: (of the means of each channel `[3, 13]`, of its two other channels `[3, 2]`)."""
    values = torch.from_numpy(np.frombuffer(payload, np.int8).astype(np.float32)) / UNIT
    own, others = values[:OWN], values[OWN:]
    return own.view(-1, _MEANS).expand(3, -1), others.view(3, 2) if len(others) else own.new_zeros(3, 2)


def apply(picture: Tensor, payload: bytes | None, grey: bool, limit: float) -> Tensor:
    """The filtered picture, float `[3, H, W]`; itself without a payload.

    grey: of the mean of its channels; limit: of `clipping`. Beyond the picture its edges are repeated.
    """
    if not payload:
        return picture
    if grey:
        picture = picture.mean(0, keepdim=True).expand(3, -1, -1)
    return pixel_filter(picture, *_weights(payload), limit)


def statistics(picture: Tensor, original: Tensor, part: Box, grey: bool, limit: float) -> Tensor:
    """What `fit` needs of a part of a picture, float64 `[3, 15, 16]`: products of means, and with the error.

    picture: as synthesized, and original: float `[3, H, W]` each. Those of several parts add up.
    """
    if grey:
        picture = picture.mean(0, keepdim=True).expand(3, -1, -1)
    count = _MEANS + 2
    total = torch.zeros(3, count, count + 1, dtype=torch.float64, device=picture.device)
    for rows, around in strips(picture, part.top, part.bottom, part.left, part.right):
        rings = (ring_sum(around, ring, limit).div_(4) for ring in RINGS)
        means = torch.stack([*(pair_mean(around, pair) for pair in PAIRS), *rings], 1).flatten(2)  # [3, 13, n]
        nearest = means[:, :2].mean(1)
        error = (original[:, rows, part.left : part.right] - neighbours(around, 0, 0)).flatten(1)
        for channel in range(3):
            values = torch.cat([means[channel], nearest[:channel], nearest[channel + 1 :]])
            total[channel] += values @ torch.cat([values, error[channel : channel + 1]]).T
    return total


def fit(sums: Tensor, weight: float, grey: bool) -> bytes:
    """The section that lowers weight * squared error + bits most; empty where none does.

    sums: of `statistics` over the whole picture; weight: bits per squared error of a sample.
    """
    sums = sums.cpu()
    own = torch.cat([sums[:, :_MEANS, :_MEANS], sums[:, :_MEANS, -1:]], 2)
    best, most = b"", 0.0
    for systems in [own.sum(0, keepdim=True)] + ([] if grey else [own, sums]):
        product, target = systems[:, :, :-1], systems[:, :, -1]
        ridge = 1e-6 * product.diagonal(dim1=1, dim2=2).mean() + 1e-12
        exact = torch.linalg.solve(product + ridge * torch.eye(product.shape[1]).to(product), target)
        steps = (exact * UNIT).round().clamp(-127, 127)
        w = steps / UNIT
        gain = float(2 * (w * target).sum() - torch.einsum("ci,cij,cj->", w, product, w))
        payload = torch.cat([steps[:, :_MEANS].flatten(), steps[:, _MEANS:].flatten()]).to(torch.int8).numpy().tobytes()
        saved = weight * gain - 8 * (len(payload) + _HEAD)
        if saved > most:
            best, most = payload, saved
    return best
