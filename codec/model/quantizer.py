"""Multi-codebook vector quantization of one stage's latents."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mcodec.kernels.dequantize import dequantize
from mcodec.model.config import ModelConfig, StageConfig
from mcodec.model.context import LIMIT, OFFSET_UNIT

#: Integer mixture weights are in 1/64 bit.
LOGIT_UNIT = 64 / math.log(2)


def lattice(stage: StageConfig) -> tuple[Tensor, float]:
    """Codewords of the truncated square lattice, nearest to the origin first, and its radius.

    Returns `[K, d]` and the largest coordinate. Choosing among them by distance is rounding.
    """
    side = round(stage.codewords ** (1 / stage.dim))
    if side**stage.dim != stage.codewords or side % 2 == 0:
        raise ValueError(f"no square lattice of {stage.codewords} codewords in {stage.dim} dimensions")
    axis = torch.arange(side, dtype=torch.float32) - side // 2
    points = torch.cartesian_prod(*[axis] * stage.dim).reshape(-1, stage.dim)
    return points[points.square().sum(1).argsort(stable=True)], float(side // 2)


class Codebooks(nn.Module):
    """The M sub-codebooks of a stage. Codeword 0 is what a symbol without any rate decodes to."""

    integer_codewords: Tensor
    integer_log_weights: Tensor
    coordinates: Tensor
    counts: Tensor

    def __init__(self, config: ModelConfig, stage: StageConfig) -> None:
        super().__init__()
        shape = (stage.groups, stage.codewords, stage.dim)
        if config.assignment == "entropy":
            points, radius = lattice(stage)
            codewords = points.expand(shape).clone()
        else:
            # McQuic's "small" initialisation, N(0, sqrt(2 / 5d)) per component
            codewords, radius = torch.randn(shape) * math.sqrt(2 / (5 * stage.dim)), 1.0
        self.dim, self.radius = stage.dim, radius
        # context coordinates: a power of two times the codeword, within 8 bits
        self.coordinate_unit = 2.0 ** math.floor(math.log2((LIMIT + 1) / (radius + 0.5)))
        self.codewords = nn.Parameter(codewords)
        self.log_weights = nn.Parameter(torch.zeros(shape[:2]))
        self.temperature = nn.Parameter(torch.ones(stage.groups))
        self.register_buffer("counts", torch.ones(shape[:2]), persistent=config.prior == "static")
        # Filled by an export; empty while training.
        self.register_buffer("integer_codewords", torch.zeros(0, dtype=torch.int16))
        self.register_buffer("integer_log_weights", torch.zeros(0, dtype=torch.int16))
        self.register_buffer("coordinates", torch.zeros(0, dtype=torch.int8))

    @torch.no_grad()
    def integers(self) -> tuple[Tensor, Tensor, Tensor]:
        """(codewords in 1/16, mixture weights in 1/64 bit, context coordinates): int16, int16, int8."""
        if len(self.coordinates):
            return self.integer_codewords, self.integer_log_weights, self.coordinates
        codewords = (self.codewords * OFFSET_UNIT).round().clamp(-1023, 1023).to(torch.int16)
        relative = self.log_weights - self.log_weights.amax(1, keepdim=True)
        weights = (relative * LOGIT_UNIT).round().clamp(-2048, 0).to(torch.int16)
        return codewords, weights, self.coordinate(self.codewords).to(torch.int8)

    @torch.no_grad()
    def thaw(self) -> None:
        """Trainable again after a release was loaded: parameters decide, not the stored integers."""
        self.log_weights.copy_(self.integer_log_weights.float() / LOGIT_UNIT)
        # of the shape that a model that never was a release has, so that checkpoints load
        self.integer_codewords = self.integer_codewords.new_zeros(0)
        self.integer_log_weights = self.integer_log_weights.new_zeros(0)
        self.coordinates = self.coordinates.new_zeros(0)

    def coordinate(self, value: Tensor) -> Tensor:
        """Dequantized value -> integer the context network sees."""
        return (value.detach() * self.coordinate_unit).round().clamp(-LIMIT, LIMIT)

    def lookup(self, codes: Tensor) -> Tensor:
        """codes `[B, M, h, w]` -> codewords `[B, M * d, h, w]`."""
        return dequantize(codes, self.codewords)

    def lookup_coordinates(self, codes: Tensor) -> Tensor:
        """codes `[B, M, h, w]` -> integer coordinates `[B, M * d, h, w]`, float32."""
        return dequantize(codes, self.integers()[2].float())

    def vectors(self, channels: Tensor) -> Tensor:
        """`[B, M * d, h, w]` -> `[B, M, d, h * w]`."""
        return channels.flatten(2).unflatten(1, (-1, self.dim))

    def bounded(self, latents: Tensor) -> Tensor:
        """Latents clamped to the support.

        No gradient passes outside: the picture would go on asking for more of what cannot be sent.
        """
        reach = self.radius + 0.49
        return latents.clamp(-reach, reach)

    def overload(self, latents: Tensor) -> Tensor:
        """Steps by which latents exceed the support, summed."""
        return (latents.abs() - self.radius - 0.5).clamp(min=0).sum()

    def distances(self, latents: Tensor) -> Tensor:
        """Squared distance to every codeword, `[B, M, P, K]`."""
        v = self.vectors(latents).transpose(2, 3)
        cross = torch.matmul(v, self.codewords.transpose(1, 2))
        square = self.codewords.square().sum(2)[:, None, :]
        return v.square().sum(3, keepdim=True) - 2 * cross + square

    def gumbel(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Hard Gumbel-softmax sample with straight-through gradient: (value, codes). The quantizer of `umgm`."""
        height, width = latents.shape[-2:]
        logits = -self.distances(latents) / math.sqrt(self.codewords.shape[1])
        logits = logits * self.temperature.clamp(min=1e-3)[:, None, None]
        choice = F.gumbel_softmax(logits, tau=1.0, hard=True)
        value = torch.matmul(choice, self.codewords).transpose(2, 3)  # [B, M, d, P]
        codes = choice.argmax(3).unflatten(2, (height, width))
        return value.flatten(1, 2).unflatten(2, (height, width)), codes

    @torch.no_grad()
    def count(self, codes: Tensor, decay: float = 0.9) -> None:
        """Moving histogram of code use; the static prior's weights."""
        groups, size = self.counts.shape
        flat = (codes.transpose(0, 1).flatten(1) + torch.arange(groups, device=codes.device)[:, None] * size).flatten()
        fresh = torch.zeros_like(self.counts).view(-1).index_add_(0, flat, self.counts.new_ones(flat.shape))
        self.counts.lerp_(fresh.view_as(self.counts), 1 - decay)
        self.log_weights.data.copy_((self.counts + 1e-2).log())
