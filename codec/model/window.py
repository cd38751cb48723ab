"""Which part of each stage a region of the picture needs.

The synthesis is convolutional: a region depends on codes around it, up to its reach. Going from the pixels back to
the first stage, a box grows by the reach of each layer and is halved where the stride doubles. Computing the stages
on these boxes alone gives the same picture as computing them whole: what lies beyond a box is cut off again before it
matters, and at the picture's own border there is nothing beyond.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from mcodec.model.cascade import Cascade


class Box(NamedTuple):
    """Rows top..bottom and columns left..right of a grid, ends excluded."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.bottom - self.top, self.right - self.left

    def grown(self, reach: int, height: int, width: int) -> Box:
        """With a margin of `reach`, within a grid of height x width."""
        return Box(
            max(0, self.top - reach),
            max(0, self.left - reach),
            min(height, self.bottom + reach),
            min(width, self.right + reach),
        )

    def coarser(self, factor: int) -> Box:
        """The smallest box that covers this one on a grid of `factor` times the stride."""
        return Box(self.top // factor, self.left // factor, -(-self.bottom // factor), -(-self.right // factor))

    def finer(self, factor: int) -> Box:
        """The same area on a grid of 1 / `factor` of the stride."""
        return Box(*(factor * side for side in self))

    def crop(self, grid: Tensor, origin: Box) -> Tensor:
        """This box of `grid` `[..., h, w]`, which covers the box `origin`."""
        top, left = self.top - origin.top, self.left - origin.left
        return grid[..., top : top + self.bottom - self.top, left : left + self.right - self.left]


@dataclass(frozen=True)
class Window:
    """What to compute of each stage, on the stage's own grid, for one region of the picture."""

    around: tuple[Box, ...]  # codes that are needed, and where the update is computed
    inside: tuple[Box, ...]  # where its result is right


def reach(*modules: nn.Module) -> int:
    """How many positions away a sequence of convolutional layers looks; parallel branches are counted as a row."""
    convolutions = [m for module in modules for m in module.modules() if isinstance(m, nn.Conv2d)]
    return sum(max(c.kernel_size) // 2 * max(c.dilation) for c in convolutions)


def window(model: Cascade, region: Box, height: int, width: int) -> Window:
    """The stages' parts that `region` (pixels) of a padded picture of height x width needs."""
    stages = [model.stage(index) for index in range(len(model.stages))]
    stride = stages[-1].stride
    pixels, at = model.synthesis.lapped.size - 1 if model.synthesis.lapped else 0, stride
    for up, blocks in zip(model.synthesis.up, model.synthesis.blocks, strict=True):
        pixels += at * reach(up) + at // 2 * reach(blocks)
        at //= 2
    pixels += at * reach(model.synthesis.out)
    box = region.coarser(stride).grown(-(-pixels // stride), height // stride, width // stride)
    around: list[Box] = []
    inside: list[Box] = []
    for stage in reversed(stages):
        while stride < stage.stride:
            stride *= 2
            margin = reach(model.ups[str(stride)])
            box = box.coarser(2).grown(margin, height // stride, width // stride)
        inside.append(box)
        box = box.grown(reach(stage.out, stage.refine), height // stride, width // stride)
        around.append(box)
    return Window(tuple(reversed(around)), tuple(reversed(inside)))


def stitched(parts: Sequence[Sequence[Tensor]]) -> Tensor:
    """Rows of tensors `[B, C, h, w]` that lie side by side, as one."""
    return torch.cat([torch.cat(tuple(row), 3) for row in parts], 2)
