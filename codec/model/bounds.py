"""What the integer context network can reach: a bound on every accumulator, computed from the weights.

docs/DETERMINISM.md says why the bound matters: a sum of integers whose absolute values add up to less than 2^24 is
exact in float32, in whatever order it is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mcodec.errors import ModelError
from mcodec.model.cascade import Cascade
from mcodec.model.config import LEVELS
from mcodec.model.context import LIMIT, IntegerLayer, StageContext

#: Up to here float32 represents every integer.
EXACT = 2**24


@dataclass(frozen=True)
class Bound:
    """What one layer can reach."""

    layer: str
    fan_in: int
    input: int  # largest |x|
    weight: int  # largest |w|
    bias: int  # largest |b|
    accumulator: int  # largest sum |w| |x| + |b| + rounding term over the outputs: bounds every partial sum

    @property
    def holds(self) -> bool:
        """Whether every order of summation is exact in float32."""
        return self.accumulator < EXACT


def layer_bound(name: str, layer: IntegerLayer, reach: Tensor) -> Bound:
    """Bound of a layer whose input channels have absolute values of at most `reach`, `[C]` integers."""
    weight, bias = (value.detach().cpu().to(torch.int64) for value in layer.integers())
    reach = reach.to(torch.int64)
    # depthwise [C, 3, 3]: nine products of one channel; pointwise [O, C]: one product of each channel
    products = weight.abs() * (reach[:, None, None] if weight.dim() == 3 else reach)
    sums = products.flatten(1).sum(1) + bias.abs() + (1 << (layer.shift - 1))
    return Bound(
        layer=name,
        fan_in=weight[0].numel(),
        input=int(reach.max()),
        weight=int(weight.abs().max()),
        bias=int(bias.abs().max()),
        accumulator=int(sums.max()),
    )


def bounds(model: Cascade) -> Iterator[Bound]:
    """Bounds of all layers of the context network; none for a static prior."""
    if model.config.prior != "mixture":
        return
    for index in range(len(model.stages)):
        stage = model.stage(index)
        coordinates = stage.codebooks.integers()[2].cpu().to(torch.int64).abs().amax(1).flatten()  # [M * d]
        for name, layer in stage.context.named_modules():
            if isinstance(layer, IntegerLayer):
                channels = layer.weight.shape[0 if layer.weight.dim() == 3 else 1]
                # every state and every layer's output is clamped to +-LIMIT; only `embed` sees something else
                reach = coordinates.repeat(2) if layer is stage.context.embed else torch.full((channels,), LIMIT)
                yield layer_bound(f"stage {index} {name}", layer, reach)


def check(model: Cascade) -> None:
    """ModelError where the weights of a release could make a probability depend on the machine."""
    for bound in bounds(model):
        if not bound.holds:
            raise ModelError(f"weights: {bound.layer} can reach {bound.accumulator}, {EXACT} would not be exact")
    for index in range(len(model.stages)):
        stage = model.stage(index)
        coordinates = stage.codebooks.integers()[2]
        try:
            model.tables(index)
        except ValueError as error:
            raise ModelError(f"weights: stage {index}: {error}") from error
        if not stage.mixture:
            continue
        if coordinates.dtype != torch.int8:
            raise ModelError(f"weights: stage {index}: coordinates must be int8, got {coordinates.dtype}")
        if coordinates.eq(-128).any():  # its magnitude is no int8, which GPUs multiply
            raise ModelError(f"weights: stage {index}: coordinates must be from -127 to 127")
        _check_rows(index, stage.context)


def _check_rows(index: int, context: StageContext) -> None:
    rows, wanted = context.quality.rows, (LEVELS, context.quality.anchors.shape[1])
    if rows.dtype != torch.int8 or rows.shape != wanted:
        found = f"{str(rows.dtype).removeprefix('torch.')} {list(rows.shape)}"
        raise ModelError(f"weights: stage {index}: the quality table must be int8 {list(wanted)}, got {found}")
