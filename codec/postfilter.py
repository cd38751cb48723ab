"""A filter behind the synthesis, fitted to each picture by its encoder.

The synthesis is one network for all pictures. How smooth this one is, and how its colours go together, the encoder
sees: it solves for the weights that bring the decoded picture nearest to the original, and the file carries them, as
adaptive loop filters of video codecs do (Tsai et al., IEEE J. Sel. Topics in Signal Processing, 2013).

A weight belongs to a mean of differences between neighbours and the sample itself: of two opposite neighbours; of a
ring of four, each difference clipped, so that edges stay (as in VVC: Karczewicz et al., IEEE Trans. CSVT, 2021); of
the four nearest in another channel. On a GPU `mcodec.kernels.pixel_filter` applies it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mcodec.container import FILTER_BYTES
from mcodec.kernels.backend import upload, use_triton
from mcodec.kernels.pixel_filter import filtered
from mcodec.model.window import Box

#: One of two opposite neighbours (rows, columns); the first two make the ring of the nearest.
PAIRS = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0), (0, 3), (3, 0))
#: Two of the four neighbours of a ring, none the other's opposite.
RINGS = (((0, 1), (1, 0)), ((1, 1), (1, -1)), ((0, 2), (2, 0)), ((2, 2), (2, -2)), ((0, 3), (3, 0)))
#: How many pixels away the filter looks.
REACH = 3
#: Steps of a weight of 1.
UNIT = 128
#: Differences are clipped at this share of the quantization step that suits lambda (see Stage._start). On validation
#: pictures 0.06 and 0.15 gain 3 and 2 % less, 0.35 a tenth less.
CLIP = 0.1
#: Bytes of weights: one per mean, alike in all channels; those of each channel; these, and two for other channels.
ALIKE, OWN, ALL = FILTER_BYTES
_MEANS = len(PAIRS) + len(RINGS)
#: Of each channel the two others.
_OTHERS = ((1, 2), (0, 2), (0, 1))
#: Bytes of a section's tag and length.
_HEAD = 2
#: Rows of a picture that are worked on at once: what a cache holds, or few launches on a GPU.
_ROWS, _GPU_ROWS = 64, 4096


def clipping(lam: float) -> float:
    """Where differences are clipped, in the unit of pictures (their range is 1)."""
    return float(CLIP * (26 / lam) ** 0.5 / 255)


def _weights(payload: bytes) -> tuple[Tensor, Tensor]:
    """Of a section: (of the means of each channel `[3, 13]`, of its two other channels `[3, 2]`)."""
    values = torch.from_numpy(np.frombuffer(payload, np.int8).astype(np.float32)) / UNIT
    own, others = values[:OWN], values[OWN:]
    return own.view(-1, _MEANS).expand(3, -1), others.view(3, 2) if len(others) else own.new_zeros(3, 2)


def _strips(picture: Tensor, part: Box) -> Iterator[tuple[slice, Tensor]]:
    """(rows, the picture there with a margin of REACH) of a part of a picture `[3, H, W]`; edges are repeated."""
    padded = F.pad(picture[None], (REACH,) * 4, mode="replicate")[0, :, :, part.left : part.right + 2 * REACH]
    step = _ROWS if picture.device.type == "cpu" else _GPU_ROWS
    for top in range(part.top, part.bottom, step):
        bottom = min(top + step, part.bottom)
        yield slice(top, bottom), padded[:, top : bottom + 2 * REACH]


def _shifted(around: Tensor, row: int, column: int) -> Tensor:
    """The neighbours at (row, column) of all samples of a strip."""
    height, width = around.shape[1] - 2 * REACH, around.shape[2] - 2 * REACH
    return around[:, REACH + row : REACH + row + height, REACH + column : REACH + column + width]


def _pair(around: Tensor, pair: tuple[int, int]) -> Tensor:
    """The mean of two opposite neighbours, less the sample: `[3, h, w]`."""
    row, column = pair
    mean = (_shifted(around, row, column) + _shifted(around, -row, -column)).mul_(0.5)
    return mean.sub_(_shifted(around, 0, 0))


def _ring(around: Tensor, half: tuple[tuple[int, int], ...], limit: float) -> Tensor:
    """The sum of clipped differences to neighbours and their opposites, `[3, h, w]`."""
    total = torch.zeros_like(_shifted(around, 0, 0))
    for row, column in half:
        # from each sample to the neighbour behind it: what the neighbour sees is the negative
        height, width = around.shape[1] - row, around.shape[2] - abs(column)
        left = max(0, -column)
        here, there = around[:, :height, left : left + width], around[:, row:, left + column : left + column + width]
        difference = (there - here).clamp_(-limit, limit)
        rows, columns = total.shape[1:]
        at = REACH - left
        total += difference[:, REACH : REACH + rows, at : at + columns]
        total -= difference[:, REACH - row : REACH - row + rows, at - column : at - column + columns]
    return total


def apply(picture: Tensor, payload: bytes | None, grey: bool, limit: float) -> Tensor:
    """The filtered picture, float `[3, H, W]`; itself without a payload.

    grey: of the mean of its channels; limit: of `clipping`. Beyond the picture its edges are repeated.
    """
    if not payload:
        return picture
    if grey:
        picture = picture.mean(0, keepdim=True).expand(3, -1, -1)
    weights = _weights(payload)
    if use_triton(picture.device) and picture.numel():
        return filtered(picture.float(), upload(torch.cat(weights, 1), picture.device), limit)
    crossed = bool(weights[1].any())  # before they leave the host
    own, others = (upload(part.contiguous(), picture.device)[:, :, None, None] for part in weights)
    out = picture.clone()
    for rows, around in _strips(picture, Box(0, 0, picture.shape[1], picture.shape[2])):
        result, nearest = out[:, rows], torch.zeros_like(_shifted(around, 0, 0))
        for place, pair in enumerate(PAIRS):
            mean = _pair(around, pair)
            if place < 2 and crossed:
                nearest += mean
            result += mean.mul_(own[:, place])
        for place, ring in enumerate(RINGS, len(PAIRS)):
            result += _ring(around, ring, limit).mul_(own[:, place] / 4)
        if crossed:
            for place in (0, 1):
                other = torch.stack([nearest[others_of[place]] for others_of in _OTHERS])  # no index to upload
                result += other.mul_(others[:, place] / 2)
    return out


def statistics(picture: Tensor, original: Tensor, part: Box, grey: bool, limit: float) -> Tensor:
    """What `fit` needs of a part of a picture, float64 `[3, 15, 16]`: products of means, and with the error.

    picture: as synthesized, and original: float `[3, H, W]` each. Those of several parts add up.
    """
    if grey:
        picture = picture.mean(0, keepdim=True).expand(3, -1, -1)
    count = _MEANS + 2
    total = torch.zeros(3, count, count + 1, dtype=torch.float64, device=picture.device)
    for rows, around in _strips(picture, part):
        rings = (_ring(around, ring, limit).div_(4) for ring in RINGS)
        means = torch.stack([*(_pair(around, pair) for pair in PAIRS), *rings], 1).flatten(2)  # [3, 13, n]
        nearest = means[:, :2].mean(1)
        error = (original[:, rows, part.left : part.right] - _shifted(around, 0, 0)).flatten(1)
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
        exact = torch.linalg.solve(product + ridge * torch.eye(product.shape[1], dtype=product.dtype), target)
        steps = (exact * UNIT).round().clamp(-127, 127)
        w = steps / UNIT
        gain = float(2 * (w * target).sum() - torch.einsum("ci,cij,cj->", w, product, w))
        payload = torch.cat([steps[:, :_MEANS].flatten(), steps[:, _MEANS:].flatten()]).to(torch.int8).numpy().tobytes()
        saved = weight * gain - 8 * (len(payload) + _HEAD)
        if saved > most:
            best, most = payload, saved
    return best
