"""Analysis and synthesis: pixels to features at every stride, and the finest state back to pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mcodec.kernels.residual_block import pointwise
from mcodec.model import dct
from mcodec.model.config import ModelConfig
from mcodec.model.layers import Blocks, Exact1x1, Lapped


def coefficients(config: ModelConfig, stride: int) -> int:
    """How many leading channels of a feature start as DCT coefficients (stride 4: as pixels)."""
    if stride == 4:
        return 48
    widths = [s.width for s in config.stages if s.stride == stride]
    return min(sum(widths) or 64, config.channels[stride])


class Down(Exact1x1):
    """Linear in patches of 2x2 positions, to half the size; columns in the order of `pixel_unshuffle`."""

    def forward(self, x: Tensor, reads: Tensor | None = None, writes: Tensor | None = None) -> Tensor:
        """x `[B, C, H, W]`, H and W even -> `[B, O, H / 2, W / 2]`."""
        b, c, h, w = x.shape
        # whole channel vectors are moved, not single values, and the weight's columns follow them
        patches = x.movedim(1, -1).reshape(b, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(b, h // 2, w // 2, 4 * c)
        weight = self.weight.unflatten(1, (c, 4)).transpose(1, 2).flatten(1)
        with torch.autocast(x.device.type, enabled=False):
            return pointwise(patches.movedim(-1, 1).float(), weight, self.bias)


class Rise(Exact1x1):
    """Linear from a position to a patch of 2x2, at twice the size; rows in the order of `pixel_shuffle`."""

    def forward(self, x: Tensor, reads: Tensor | None = None, writes: Tensor | None = None) -> Tensor:
        """x `[B, C, h, w]` -> `[B, O / 4, 2 h, 2 w]`."""
        b, _, h, w = x.shape
        weight = self.weight.unflatten(0, (-1, 4)).transpose(0, 1).flatten(0, 1)
        bias = self.bias.unflatten(0, (-1, 4)).t().flatten()
        with torch.autocast(x.device.type, enabled=False):
            patches = pointwise(x.float(), weight, bias).movedim(1, -1).unflatten(3, (2, 2, -1))
        return patches.transpose(2, 3).reshape(b, 2 * h, 2 * w, -1).movedim(-1, 1)


class Analysis(nn.Module):
    """x `[B, 3, H, W]` in -0.5..0.5 -> features per stride, `{r: [B, C_r, H/r, W/r]}`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.strides = config.strides[::-1]  # fine to coarse
        self.lapped = Lapped(dct.lapping()) if config.lapped else None
        self.down = nn.ModuleDict()
        self.blocks = nn.ModuleDict()
        for stride in self.strides:
            channels = config.channels[stride]
            if stride == 4:
                layer = Exact1x1(48, channels)
                layer.start_linear(torch.eye(48))
            else:
                finer = config.channels[stride // 2]
                layer = Down(4 * finer, channels)
                if config.start == "dct":
                    n, m = coefficients(config, stride // 2), coefficients(config, stride)
                    layer.start_linear(dct.down(stride // 2, n, m))
            self.down[str(stride)] = layer
            self.blocks[str(stride)] = Blocks(config, channels, config.analysis_blocks.get(stride, 0))

    def forward(self, x: Tensor, level: Tensor) -> dict[int, Tensor]:
        features: dict[int, Tensor] = {}
        if self.lapped:
            x = self.lapped(x)
        # see kernels.residual_block.pointwise
        x = F.pixel_unshuffle(x, 4).contiguous(memory_format=torch.channels_last)
        for stride in self.strides:
            x = self.blocks[str(stride)](self.down[str(stride)](x), level)
            features[stride] = x
        return features


class Up(nn.Module):
    """Synthesis state at a stride -> state at half the stride."""

    def __init__(self, config: ModelConfig, stride: int) -> None:
        super().__init__()
        finer = config.channels[stride // 2]
        self.project = Rise(config.channels[stride], 4 * finer)
        if config.start == "dct":
            n, m = coefficients(config, stride), coefficients(config, stride // 2)
            self.project.start_linear(dct.up(stride, n, m))

    def forward(self, state: Tensor) -> Tensor:
        out: Tensor = self.project(state)
        return out


class Synthesis(nn.Module):
    """State at the last stage's stride -> picture `[B, 3, H, W]`, about -0.5..0.5, not clamped."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.ModuleList()
        self.blocks = nn.ModuleList()
        stride = config.stages[-1].stride
        while stride > 4:
            self.up.append(Up(config, stride))
            stride //= 2
            self.blocks.append(Blocks(config, config.channels[stride], config.synthesis_blocks.get(stride, 0)))
        self.out = Exact1x1(config.channels[4], 48)
        self.out.start_linear(torch.eye(48))
        self.lapped = Lapped(torch.linalg.inv(dct.lapping())) if config.lapped else None

    def forward(self, state: Tensor, level: Tensor) -> Tensor:
        for up, blocks in zip(self.up, self.blocks, strict=True):
            state = blocks(up(state), level)
        picture = F.pixel_shuffle(self.out(state), 4)
        return self.lapped(picture) if self.lapped else picture
