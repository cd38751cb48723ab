"""The integer context network: from decoded codes to the parameters of the prior.

Everything here is integer arithmetic with 8-bit operands (see mcodec.kernels.context_layer), so that an encoder
and a decoder on different machines compute the same probabilities. Training holds the same integers in float32
and passes gradients straight through the roundings (fake quantization), so nothing is lost at export: a weight w
is the integer round(w * 2^shift) in both.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mcodec.kernels import context_layer as kernel
from mcodec.kernels.residual_block import affine_depthwise, pointwise
from mcodec.model.config import LEVELS, ModelConfig, StageConfig
from mcodec.model.layers import ANCHORS, interpolate

LIMIT = 127  # activations and weights
POINTWISE_SHIFT = 7
DEPTHWISE_SHIFT = 6
BIAS_UNIT = 16.0  # a bias parameter of 1 is 16 activation units: brings it to the scale of the other weights

#: Units of the prior's offsets and of codewords: 1/16 of a quantization step.
OFFSET_UNIT = 16
#: Scale indices 0..127 of the prior; see mcodec.model.prior.
SCALES = 128


class _Rounded(torch.autograd.Function):
    """round(value * factor), clamped; backward as the product alone."""

    @staticmethod
    def forward(ctx, value: Tensor, factor: float, limit: int) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.factor = factor
        return (value * factor).round_().clamp_(-limit, limit)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        return grad * ctx.factor, None, None


def _rounded(value: Tensor, factor: float, limit: int = LIMIT) -> Tensor:
    out: Tensor = _Rounded.apply(value, factor, limit)  # type: ignore[no-untyped-call]
    return out


class IntegerLayer(nn.Module):
    """Pointwise or depthwise layer on integers."""

    def __init__(self, shape: tuple[int, ...], shift: int, low: int = -LIMIT, high: int = LIMIT) -> None:
        super().__init__()
        self.shift, self.low, self.high = shift, low, high
        fan_in = math.prod(shape[1:])
        self.weight = nn.Parameter(torch.randn(shape) * (2 / fan_in) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(shape[0]))
        self._kept: tuple[tuple[object, ...], tuple[Tensor, Tensor]] | None = None

    def integers(self) -> tuple[Tensor, Tensor]:
        """(weight, bias) as integer-valued float32; what an export stores."""
        factor = 2.0**self.shift
        return _rounded(self.weight, factor), _rounded(self.bias, BIAS_UNIT * factor, 2**22)

    def frozen(self) -> tuple[Tensor, Tensor]:
        """`integers` as int8 and int32, kept where no training changes them: seven launches less per layer on a GPU."""
        if self.weight.requires_grad or self.bias.requires_grad:
            return self.integers()
        state = self.weight.device, self.weight.data_ptr(), self.weight._version, self.bias._version
        if self._kept is None or self._kept[0] != state:
            weight, bias = self.integers()
            self._kept = state, (weight.to(torch.int8).contiguous(), bias.to(torch.int32))
        return self._kept[1]

    @torch.no_grad()
    def load_integers(self, weight: Tensor, bias: Tensor) -> None:
        """Inverse of `integers`; exact, the factors being powers of two."""
        self.weight.copy_(weight.float() * 2.0**-self.shift)
        self.bias.copy_(bias.float() / (BIAS_UNIT * 2.0**self.shift))

    def forward(self, x: Tensor) -> Tensor:
        depthwise = self.weight.dim() == 3
        if not torch.is_grad_enabled():
            weight, bias = self.frozen()
            layer = kernel.depthwise if depthwise else kernel.pointwise
            with torch.autocast(x.device.type, enabled=False):  # it would round accumulators to bfloat16
                return layer(x, weight, bias, self.shift, self.low, self.high)
        weight, bias = self.integers()
        with torch.autocast(x.device.type, enabled=False):
            acc = affine_depthwise(x, weight[:, None], bias) if depthwise else pointwise(x, weight, bias)
        out: Tensor = kernel.Requantize.apply(acc, self.shift, self.low, self.high)  # type: ignore[no-untyped-call]
        return out


class ContextBlock(nn.Module):
    """u + pw(relu(pw(dw(u)))), clamped."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial = IntegerLayer((channels, 3, 3), DEPTHWISE_SHIFT)
        self.inner = IntegerLayer((channels, channels), POINTWISE_SHIFT, low=0)
        self.outer = IntegerLayer((channels, channels), POINTWISE_SHIFT)
        with torch.no_grad():
            self.outer.weight.mul_(0.25)

    def forward(self, u: Tensor) -> Tensor:
        return (u + self.outer(self.inner(self.spatial(u)))).clamp(-LIMIT, LIMIT)


class QualityTable(nn.Module):
    """Integer embedding of the quality level, `[LEVELS, C]`."""

    rows: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.anchors = nn.Parameter(torch.randn(ANCHORS, channels) * 0.5)
        # Filled by an export: interpolation is float arithmetic, which a released model must not depend on.
        self.register_buffer("rows", torch.zeros(0, channels, dtype=torch.int8))

    @torch.no_grad()
    def thaw(self) -> None:
        """Trainable again after a release was loaded: anchors read off the table, to a rounding."""
        at = torch.linspace(0, LEVELS - 1, ANCHORS).round().long()
        self.anchors.copy_(self.rows[at].float() / BIAS_UNIT)
        self.rows = self.rows[:0]

    def table(self) -> Tensor:
        """All rows as integer-valued float32."""
        levels = torch.arange(LEVELS, device=self.anchors.device)
        return self._rounded(levels)

    def _rounded(self, level: Tensor) -> Tensor:
        return _rounded(interpolate(self.anchors, level), BIAS_UNIT)

    def forward(self, level: Tensor) -> Tensor:
        if len(self.rows):
            return self.rows[level.long()].float()
        return self._rounded(level)


class StageContext(nn.Module):
    """One step of the context network: state u -> (offset, scale) of the stage, and codes -> next u."""

    def __init__(self, config: ModelConfig, stage: StageConfig) -> None:
        super().__init__()
        channels = config.context_channels
        self.width = stage.width
        self.quality = QualityTable(channels)
        self.blocks = nn.Sequential(*(ContextBlock(channels) for _ in range(config.context_blocks)))
        self.offset = IntegerLayer((stage.width, channels), POINTWISE_SHIFT)
        self.scale = IntegerLayer((stage.width, channels), POINTWISE_SHIFT, low=0)
        # magnitudes of neighbours say most about scales, and signed sums would cancel them
        self.embed = IntegerLayer((channels, 2 * stage.width), POINTWISE_SHIFT)
        with torch.no_grad():
            self.embed.weight.mul_(3)  # one step must move the state by more than a rounding
            self.offset.weight.mul_(0.05)
            self.scale.weight.mul_(0.25)
            # sigma 0.64: in the middle of what occurs
            self.scale.bias.fill_(round(16 * math.log2(0.64 / config.sigma_min)) / BIAS_UNIT)

    def parameters_of(self, u: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """u `[B, C, h, w]`, level `[B]` -> (u, offset, scale), the last two `[B, M * d, h, w]` integers."""
        if torch.is_grad_enabled():  # what convolutions and matrix products like; the kernels do not
            u = u.contiguous(memory_format=torch.channels_last)
        quality = self.quality(level)[:, :, None, None].to(u.dtype)
        u = self.blocks((u + quality).clamp(-LIMIT, LIMIT))
        return u, self.offset(u), self.scale(u)

    def absorb(self, u: Tensor, coordinates: Tensor) -> Tensor:
        """u and the coordinates of the chosen codewords (integers, |.| <= 127) -> u for the next stage."""
        signed = coordinates.to(u.dtype)
        return (u + self.embed(torch.cat([signed, signed.abs()], 1))).clamp(-LIMIT, LIMIT)


def upsample(u: Tensor) -> Tensor:
    """Nearest neighbour, factor 2 (exact)."""
    return u.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)
