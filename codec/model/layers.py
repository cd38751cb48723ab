"""Small float layers shared by the transforms and the stages."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mcodec.kernels.residual_block import affine_depthwise, pointwise, scaled_add
from mcodec.model.config import LEVELS, ModelConfig

#: Learned functions of quality are piecewise linear between this many anchors.
ANCHORS = 9


def shares(level: Tensor) -> Tensor:
    """Weights of the anchors at quality levels `[B]`, float 0..255: `[B, ANCHORS]`, for many `interpolate`."""
    place = level.float()[:, None] * ((ANCHORS - 1) / (LEVELS - 1))
    return (1 - (place - torch.arange(ANCHORS, device=level.device)).abs()).clamp(min=0)


def interpolate(anchors: Tensor, level: Tensor) -> Tensor:
    """Rows of a quality table.

    anchors: `[ANCHORS, C]`; level: `[B]` float, 0..255, or their `shares`. Returns `[B, C]`.
    """
    weights = level if level.dim() == 2 else shares(level)
    return (weights.to(anchors.dtype)[:, :, None] * anchors).sum(1)


def straight_through(value: Tensor, surrogate: Tensor) -> Tensor:
    """`value` forward, gradient of `surrogate` backward."""
    return surrogate + (value - surrogate).detach()


class Pointwise(nn.Module):
    """1x1 convolution; its weight is a matrix, `[O, I]`, which is what matrix-wise optimizers take."""

    def __init__(self, cin: int, cout: int, zero: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(cout, cin) if zero else torch.randn(cout, cin) * cin**-0.5)
        self.bias = nn.Parameter(torch.zeros(cout))

    def forward(self, x: Tensor, reads: Tensor | None = None, writes: Tensor | None = None) -> Tensor:
        """reads `[I]` divides what comes in, writes multiplies what goes out: on the matrix, not on the picture."""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if reads is not None:
            weight = weight / reads
        if writes is not None:
            weight, bias = weight * writes, bias * writes
        return pointwise(x, weight, bias)


class Exact1x1(Pointwise):
    """1x1 convolution kept in float32: the linear paths carry the picture itself."""

    def forward(self, x: Tensor, reads: Tensor | None = None, writes: Tensor | None = None) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float(), reads, writes)

    @torch.no_grad()
    def start_linear(self, matrix: Tensor, row: int = 0, col: int = 0) -> None:
        """Set `weight[row:, col:]` to `matrix`; its rows read nothing else and have no bias."""
        rows, cols = matrix.shape
        self.weight[row : row + rows] = 0
        self.weight[row : row + rows, col : col + cols] = matrix
        self.bias[row : row + rows] = 0


class Lapped(nn.Module):
    """Filter of the samples around the borders of square blocks, rows and columns apart; exact in float32.

    At the picture's own border blocks stay as they are. Starts as `matrix`, `[size, size]`.
    """

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.size = len(matrix)
        self.rows, self.columns = nn.Parameter(matrix.float()), nn.Parameter(matrix.float())

    def forward(self, x: Tensor) -> Tensor:
        """x `[B, C, H, W]`, H and W multiples of the size."""
        half = self.size // 2
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            top, inner, bottom = x.split([half, x.shape[2] - self.size, half], 2)
            inner = torch.einsum("ij,bcnjw->bcniw", self.rows, inner.unflatten(2, (-1, self.size)))
            x = torch.cat([top, inner.flatten(2, 3), bottom], 2)
            left, inner, right = x.split([half, x.shape[3] - self.size, half], 3)
            inner = F.linear(inner.unflatten(3, (-1, self.size)), self.columns)
            return torch.cat([left, inner.flatten(3), right], 3)


class Spatial(nn.Conv2d):
    """Depthwise 3x3 convolution; starts as the identity plus noise."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1, groups=channels)
        with torch.no_grad():
            self.weight.mul_(0.5)[:, 0, 1, 1] += 1

    def forward(self, x: Tensor, factor: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Of x * factor + shift."""
        assert self.bias is not None
        return affine_depthwise(x, self.weight, self.bias, factor, shift)


#: Share of the gradient that a closed position of a gate passes on.
LEAK = 0.05


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        out = F.relu(x)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        (out,) = ctx.saved_tensors
        back: Tensor = torch.ops.aten.leaky_relu_backward(grad, out, LEAK, True)
        return back


class Gate(nn.ReLU):
    """ReLU; in training, closed positions pass a small share of the gradient.

    Noisy steps close units (a closed one adds no noise), and without a gradient none opens again.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):  # an encoder's search wants true gradients
            return super().forward(x)
        out: Tensor = _Gate.apply(x)  # type: ignore[no-untyped-call]
        return out


class Body(nn.Sequential):
    """Layers that read channels of size `reads` and write in units of `writes`.

    Pixels and coefficients are far below 1: an optimizer's step of a bias is as large as what the bias is added to,
    so that most ReLUs end up closed for good, and the few large channels drown the others. Sizes are set when
    training starts (`mcodec.training.units`) and folded into the layers for a release.
    """

    reads: Tensor
    writes: Tensor

    def __init__(self, cin: int, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.register_buffer("reads", torch.ones(cin))
        self.register_buffer("writes", torch.ones(()))

    def forward(self, x: Tensor, scale: Tensor | float = 0.0, shift: Tensor | None = None) -> Tensor:
        first, *between, last = self
        if isinstance(first, Pointwise) and shift is None:
            y = first(x, self.reads)
        else:
            factor = (1 + scale) / self.reads[:, None, None]
            if isinstance(first, Spatial):
                y = first(x, factor, shift)
            else:
                y = first(x * factor if shift is None else torch.addcmul(shift, x, factor))
        for layer in between:
            y = layer(y)
        return last(y, writes=self.writes) if isinstance(last, Pointwise) else last(y) * self.writes

    def around_gate(self) -> tuple[list[Pointwise | nn.Conv2d], Pointwise | nn.Conv2d]:
        """Layers with an output per hidden unit, and the layer that reads the units."""
        *before, last = (layer for layer in self if not isinstance(layer, Gate))
        if isinstance(before[0], Spatial):  # of what comes in
            before = before[1:]
        return before, last  # type: ignore[return-value]

    @property
    def width(self) -> int:
        """How many hidden units there are."""
        return self.around_gate()[1].weight.shape[1]

    @torch.no_grad()
    def select(self, units: Tensor) -> None:
        """Keep these hidden units alone, by their places."""
        before, last = self.around_gate()
        for layer in before:
            assert layer.bias is not None
            layer.weight, layer.bias = nn.Parameter(layer.weight[units]), nn.Parameter(layer.bias[units])
        last.weight = nn.Parameter(last.weight[:, units])

    @torch.no_grad()
    def resize(self, reads: Tensor, writes: float) -> None:
        """Other sizes for the same function."""
        for layer in self:
            if isinstance(layer, Spatial):  # hands each channel on as it is
                assert layer.bias is not None
                layer.bias.mul_(self.reads / reads)
            else:
                weight: Tensor = layer.weight  # type: ignore[assignment]
                weight.mul_((reads / self.reads).reshape(-1, *[1] * (weight.dim() - 2)))
                break
        for parameter in self[-1].parameters():
            parameter.mul_(self.writes / writes)
        self.reads.copy_(reads)
        self.writes.fill_(writes)


class Response(nn.Module):
    """Learned factor of what a body adds, by quality.

    Corrections are as large as the errors they correct, which fall with quality: with equal factors, what trains the
    low qualities disturbs the high ones.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        lams = torch.tensor([config.lam(anchor * (LEVELS - 1) / (ANCHORS - 1)) for anchor in range(ANCHORS)])
        relative = lams.log() - lams.log().mean()
        self.log_factor = nn.Parameter(-config.response * relative[:, None])

    def forward(self, level: Tensor) -> Tensor:
        """level `[B]` -> factor `[B, 1, 1, 1]`."""
        return interpolate(self.log_factor, level).exp()[:, :, None, None]


class Block(nn.Module):
    """x + response(q) * body(x, scale(q), shift(q)); starts as the identity."""

    def __init__(self, config: ModelConfig, channels: int) -> None:
        super().__init__()
        self.film = nn.Parameter(torch.zeros(ANCHORS, 2 * channels))
        self.body = body = BODIES[config.block](channels)
        self.response = Response(config) if config.response else None
        last = body[-1]
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        scale, shift = interpolate(self.film, level)[:, :, None, None].chunk(2, dim=1)
        added: Tensor = self.body(x, scale, shift)
        return scaled_add(x, added, self.response(level)) if self.response else x + added

    @torch.no_grad()
    def resize(self, reads: Tensor, writes: float) -> None:
        """Other sizes (see Body) for the same function."""
        self.film[:, len(reads) :] *= self.body.reads / reads
        self.body.resize(reads, writes)


def _dense(channels: int) -> Body:
    """Two 3x3 convolutions: 18 C^2 multiplications per position."""
    return Body(
        channels,
        nn.Conv2d(channels, channels, 3, padding=1),
        Gate(),
        nn.Conv2d(channels, channels, 3, padding=1),
    )


def _separable(channels: int) -> Body:
    """Depthwise 3x3, then two pointwise layers with twice the width between: 4 C^2 + 9 C multiplications."""
    return Body(
        channels,
        Spatial(channels),
        Pointwise(channels, 2 * channels),
        Gate(),
        Pointwise(2 * channels, channels),
    )


BODIES = {"dense": _dense, "separable": _separable}


class Blocks(nn.ModuleList):
    """Residual blocks in a row."""

    def __init__(self, config: ModelConfig, channels: int, count: int) -> None:
        super().__init__(Block(config, channels) for _ in range(count))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        for block in self:
            x = block(x, level)
        return x
