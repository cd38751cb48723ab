"""The two states that a cascade carries from stage to stage, each for itself.

The context state decides what the bytes mean and is exact; the synthesis state makes pixels. An encoder carries both
at once, a decoder first the one, tile by tile, then the other, over any part of the picture.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mcodec.model.context import upsample
from mcodec.model.window import Box, Window, stitched

if TYPE_CHECKING:
    from mcodec.model.cascade import Cascade

#: Rows and columns (pixels, within the window) that the context network does not look across.
Seams = tuple[tuple[int, ...], tuple[int, ...]]


class ContextState:
    """u: from the codes so far to the prior of the next stage. Integers throughout."""

    def __init__(
        self, model: Cascade, height: int, width: int, level: Tensor, seams: Seams | None = None
    ) -> None:
        """height, width: a multiple of the coarsest stride; level `[B]`; seams: where tiles meet, if they do."""
        self.model, self.level = model, level
        self.size = height, width
        self.rows, self.columns = seams or ((), ())
        self.stride = model.stage(0).stride
        self.u = torch.zeros(
            len(level),
            model.config.context_channels,
            height // self.stride,
            width // self.stride,
            device=model.precision.device,
            dtype=model.context_dtype,
        )

    def parameters(self, index: int) -> tuple[Tensor | None, Tensor | None]:
        """(offset, scale) of a stage, `[B, M * d, h, w]` integers; None and None for a static prior."""
        stage = self.model.stage(index)
        while self.stride > stage.stride:
            if stage.mixture:
                self.u = upsample(self.u)
            self.stride //= 2
        if not stage.mixture:
            return None, None
        if not (self.rows or self.columns):
            self.u, offset, scale = stage.context.parameters_of(self.u, self.level)
            return offset, scale
        rows, columns = (
            [slice(a // self.stride, b // self.stride) for a, b in pairwise((0, *cuts, end))]
            for cuts, end in zip((self.rows, self.columns), self.size, strict=True)
        )
        parts = [
            [stage.context.parameters_of(self.u[:, :, row, column], self.level) for column in columns] for row in rows
        ]
        self.u, offset, scale = (stitched([[part[i] for part in row] for row in parts]) for i in range(3))
        return offset, scale

    def absorb(self, index: int, coordinates: Tensor) -> None:
        """Take a stage's codes, as integer coordinates `[B, M * d, h, w]`."""
        stage = self.model.stage(index)
        if stage.mixture and index + 1 < len(self.model.stages):
            self.u = stage.context.absorb(self.u, coordinates)


class SynthesisState:
    """s: from the codewords so far to the picture. Floats."""

    def __init__(self, model: Cascade, height: int, width: int, level: Tensor, window: Window | None = None) -> None:
        """As ContextState; level: also as `shares`; window: compute these parts of the stages only."""
        self.model, self.level, self.window = model, level, window
        self.stride = model.stage(0).stride
        whole = Box(0, 0, height // self.stride, width // self.stride)
        self.box = window.around[0] if window else whole
        channels = model.config.channels[self.stride]
        shape = len(level), channels, *self.box.size
        s = torch.zeros(shape, device=model.precision.device, dtype=torch.float32)  # whatever the default is
        self.s = s.contiguous(memory_format=torch.channels_last)  # see kernels.residual_block.pointwise

    def at(self, index: int) -> Tensor:
        """s at the stride of a stage, before its update."""
        stage = self.model.stage(index)
        while self.stride > stage.stride:
            self.s = self.model.ups[str(self.stride)](self.s)
            self.box = self.box.finer(2)
            self.stride //= 2
        if self.window:
            self._cut(self.window.around[index])
        return self.s

    def update(self, index: int, value: Tensor) -> None:
        """Take the dequantized codes of a stage, `[B, M * d, h, w]`, in steps."""
        self.s = self.model.stage(index).update(self.s, value, self.level)
        if self.window:
            self._cut(self.window.inside[index])

    def _cut(self, box: Box) -> None:
        self.s, self.box = box.crop(self.s, self.box), box
