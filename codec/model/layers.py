"""Small float layers shared by the transforms and the stages."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mcodec.model.config import LEVELS

#: Learned functions of quality are piecewise linear between this many anchors.
ANCHORS = 9


def interpolate(anchors: Tensor, level: Tensor) -> Tensor:
    """Rows of a quality table.

    anchors: `[ANCHORS, C]`; level: `[B]` float, 0..255. Returns `[B, C]`.
    """
    place = level.to(anchors.dtype) * ((ANCHORS - 1) / (LEVELS - 1))
    low = place.floor().clamp(0, ANCHORS - 2)
    index, fraction = low.long(), (place - low)[:, None]
    return anchors[index] * (1 - fraction) + anchors[index + 1] * fraction


def straight_through(value: Tensor, surrogate: Tensor) -> Tensor:
    """`value` forward, gradient of `surrogate` backward."""
    return surrogate + (value - surrogate).detach()


class Exact1x1(nn.Conv2d):
    """1x1 convolution kept in float32: the linear paths carry the picture itself."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__(cin, cout, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())

    @torch.no_grad()
    def start_linear(self, matrix: Tensor, row: int = 0, col: int = 0) -> None:
        """Set `weight[row:, col:]` to `matrix`; its rows read nothing else and have no bias."""
        rows, cols = matrix.shape
        assert self.bias is not None
        self.weight[row : row + rows] = 0
        self.weight[row : row + rows, col : col + cols, 0, 0] = matrix
        self.bias[row : row + rows] = 0


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(scale(q) * x + shift(q)))); starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.film = nn.Parameter(torch.zeros(ANCHORS, 2 * channels))
        self.inner = nn.Conv2d(channels, channels, 3, padding=1)
        self.outer = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.outer.weight)
        assert self.outer.bias is not None
        nn.init.zeros_(self.outer.bias)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        scale, shift = interpolate(self.film, level)[:, :, None, None].chunk(2, dim=1)
        out: Tensor = x + self.outer(F.relu(self.inner(torch.addcmul(x + shift, x, scale))))
        return out


class Blocks(nn.ModuleList):
    """Residual blocks in a row."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__(ResidualBlock(channels) for _ in range(count))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        for block in self:
            x = block(x, level)
        return x
