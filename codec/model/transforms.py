"""Analysis and synthesis: pixels to features at every stride, and the finest state back to pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mcodec.model import dct
from mcodec.model.config import ModelConfig
from mcodec.model.layers import Blocks, Exact1x1, Lapped


def coefficients(config: ModelConfig, stride: int) -> int:
    """How many leading channels of a feature start as DCT coefficients (stride 4: as pixels)."""
    if stride == 4:
        return 48
    widths = [s.width for s in config.stages if s.stride == stride]
    return min(sum(widths) or 64, config.channels[stride])


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
                layer = Exact1x1(4 * finer, channels)
                if config.start == "dct":
                    n, m = coefficients(config, stride // 2), coefficients(config, stride)
                    layer.start_linear(dct.down(stride // 2, n, m))
            self.down[str(stride)] = layer
            self.blocks[str(stride)] = Blocks(config, channels, config.analysis_blocks.get(stride, 0))

    def forward(self, x: Tensor, level: Tensor) -> dict[int, Tensor]:
        features: dict[int, Tensor] = {}
        if self.lapped:
            x = self.lapped(x)
        x = F.pixel_unshuffle(x, 4).contiguous(memory_format=torch.channels_last)  # see layers.pointwise
        for stride in self.strides:
            if stride != 4:
                x = F.pixel_unshuffle(x, 2)
            x = self.blocks[str(stride)](self.down[str(stride)](x), level)
            features[stride] = x
        return features


class Up(nn.Module):
    """Synthesis state at a stride -> state at half the stride."""

    def __init__(self, config: ModelConfig, stride: int) -> None:
        super().__init__()
        finer = config.channels[stride // 2]
        self.project = Exact1x1(config.channels[stride], 4 * finer)
        if config.start == "dct":
            n, m = coefficients(config, stride), coefficients(config, stride // 2)
            self.project.start_linear(dct.up(stride, n, m))

    def forward(self, state: Tensor) -> Tensor:
        return F.pixel_shuffle(self.project(state), 2)


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
