"""Encoder-side search: codes that cost less than those of the walk, in a file that decodes like any other.

The analysis is one network for all pictures; what a picture's codes could be at best, it only estimates. The search
takes the latents z of the finest stages, which hold most of the bits, as free variables and lowers

    J = lambda * 255^2 * squared error + bits

(for weights trained for MS-SSIM, lambda * 1250 * (1 - MS-SSIM) in place of the first term)
through the frozen decoder by gradient steps (Campos et al., "Content adaptive optimization for neural image
compression", 2019). Codes are whole steps, so z is drawn back to them ever more strongly: a value a share p of the way
from one to the next that is sent as either with probabilities 1 - p and p adds h p (1 - p) to the expected error,
h being what a squared step costs. That penalty grows from step to step (graduated non-convexity); it is applied as a
proximal step, so that most latents rest on a codeword and only those that gain leave it. Rounding straight through
or flipping single codes by the same gradient does not work: simultaneous changes of overlapping latents add up.

The squared codebooks start as the lattice of whole steps and training moves them little; here they are taken for it.
What is sent is assigned by the coder's own law afterwards.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from mcodec.model import shifts
from mcodec.model.cascade import Cascade
from mcodec.model.config import LEVELS
from mcodec.model.prior import noisy_bits
from mcodec.model.similarity import dissimilarity
from mcodec.model.walk import ContextState, Seams, SynthesisState

#: Gradient steps of efforts 1 to 9; each takes a little longer than an encoding without any.
STEPS = (0, 5, 6, 8, 12, 16, 24, 32, 48)
#: No search: as fast as encoding can be.
DEFAULT = 1
#: Latents are free at the finest stride and up to this many times it; what is coarser has few bits.
FREE = 2
#: Share of a diagonal Newton step. Latents overlap in the picture: of larger steps the changes add up and J rises.
RATE = 0.35
#: Weight of the penalty in the first step, at the lowest and the highest level, and in the last. Between levels it is
#: linear, from step to step it grows geometrically. h leaves out the curvature of the rate, which counts for most
#: at low levels: with 1 for all of them 6 steps gain 0.8 % less, 12 steps 0.4 % (docs/EXPERIMENTS.md).
FIRST_PENALTY, LAST_PENALTY = (2.0, 1.0), 8.0
#: No latent moves further in one step (in quantization steps).
REACH = 0.25
#: By how much latents are moved to see what that costs in similarity (in quantization steps). MS-SSIM is less curved
#: further off: with moves of 0.5 the search raises J (docs/EXPERIMENTS.md).
PROBE = 0.02


def steps_of(effort: int) -> int:
    """Gradient steps of an effort; ValueError unless that is a whole number from 1 to 9."""
    if effort not in range(1, len(STEPS) + 1):
        raise ValueError(f"effort must be a whole number from 1 to {len(STEPS)}, got {effort}")
    return STEPS[int(effort) - 1]


def searchable(model: Cascade) -> bool:
    """Whether the weights have what the search needs: a conditional prior, and codes assigned by it."""
    return model.config.prior == "mixture" and model.config.assignment == "entropy"


class Search:
    """Search for the codes of B windows of one padded size.

    x: `[B, 3, H, W]` in -0.5..0.5, padded; level: `[B]`; sizes: (height, width) of what is shown of each: errors in
    the padding cost nothing; grey: which of them decode to the mean of the channels; moves: the shift of each stage's
    scales, `[B]` each; seams as in `Cascade.encode`. CodecError where MS-SSIM is needed and pytorch-msssim missing.
    """

    def __init__(
        self,
        model: Cascade,
        x: Tensor,
        level: Tensor,
        sizes: Sequence[tuple[int, int]],
        grey: Sequence[bool],
        moves: Sequence[Tensor],
        seams: Seams | None = None,
    ) -> None:
        self.model, self.x, self.level, self.moves, self.seams = model, x, level, moves, seams
        widest = FREE * model.config.stages[-1].stride
        self.free = [index for index, stage in enumerate(model.config.stages) if stage.stride <= widest]
        self._sizes, self._shown = sizes, torch.zeros_like(x[:, :1])
        for item, (height, width) in zip(self._shown, sizes, strict=True):
            item[:, :height, :width] = 1
        self._grey = torch.tensor(grey, device=x.device)[:, None, None, None]
        self._squared = model.config.distortion == "mse"

    def latents(self, codes: Sequence[Tensor], steps: int) -> dict[int, Tensor]:
        """Better latents of the free stages, `[B, M * d, h, w]` in steps, from the codes of all, `[B, M, h, w]`."""
        before = self._fixed(codes)
        z = [self.model.stage(index).codebooks.lookup(codes[index]).detach() for index in self.free]
        curvature = self._curvature(before, z)
        low, high = FIRST_PENALTY
        first = low + (high - low) * (self.level / (LEVELS - 1))[:, None, None, None]
        for step in range(steps):
            penalty = first * (LAST_PENALTY / first) ** (step / max(1, steps - 1))
            gradients = self._gradient(before, z)
            for index, v, h, gradient in zip(self.free, z, curvature, gradients, strict=True):
                v.sub_((RATE * gradient / (2 * h)).clamp(-REACH, REACH))
                whole = v.round()
                part = v - whole
                # the proximal step of penalty * h * p (1 - p), p = |part|
                rest = (part.abs() - RATE * penalty * (0.5 - part.abs())).clamp(min=0)
                radius = self.model.stage(index).codebooks.radius
                v.copy_((whole + part.sign() * rest).clamp(-radius, radius))
        return dict(zip(self.free, z, strict=True))

    @torch.no_grad()
    def _fixed(self, codes: Sequence[Tensor]) -> tuple[ContextState, SynthesisState]:
        """Both states before the first free stage."""
        height, width = self.x.shape[2:]
        context = ContextState(self.model, height, width, self.level, self.seams)
        state = SynthesisState(self.model, height, width, self.level)
        for index in range(self.free[0]):
            book = self.model.stage(index).codebooks
            context.parameters(index)
            context.absorb(index, book.lookup_coordinates(codes[index]))
            state.at(index)
            state.update(index, book.lookup(codes[index]))
        context.u = context.u.float()  # gradients pass through it; exact, like any type that holds its integers
        return context, state

    def _picture(self, state: SynthesisState, z: Sequence[Tensor]) -> Tensor:
        """What a decoder would make of latents, before rounding: `[B, 3, H, W]`."""
        state = copy.copy(state)
        for index, value in zip(self.free, z, strict=True):
            state.at(index)
            state.update(index, value)
        picture = self.model.synthesis(state.s, self.level).float()
        return torch.where(self._grey, picture.mean(1, keepdim=True), picture)

    def _distortion(self, picture: Tensor) -> Tensor:
        """The first term of J in bits, of all pictures together."""
        config = self.model.config
        if self._squared:
            error = (picture - self.x) * self._shown
            return (config.sample_weight(self.level)[:, None, None, None] * error.square()).sum()
        parts = [
            height * width * dissimilarity(a[None, :, :height, :width], b[None, :, :height, :width])
            for a, b, (height, width) in zip(picture, self.x, self._sizes, strict=True)
        ]
        return (config.lam(self.level) * config.distortion_weight * torch.cat(parts)).sum()

    def _bits(self, context: ContextState, z: Sequence[Tensor]) -> Tensor:
        """Bits of all free stages, each under the prior that the rounded ones before it give."""
        context, bits = copy.copy(context), self.x.new_zeros(())
        for index, value in zip(self.free, z, strict=True):
            book = self.model.stage(index).codebooks
            offset, scale = context.parameters(index)
            assert offset is not None and scale is not None
            scale = shifts.moved(scale, self.moves[index])
            bits = bits + noisy_bits(value, offset, scale, self.model.config.sigma_min).sum()
            # integers forward; backward a code also answers for the prior of those after it
            slope = value * book.coordinate_unit
            context.absorb(index, book.coordinate(value.round()) + (slope - slope.detach()))
        return bits

    @torch.enable_grad()
    def _gradient(self, before: tuple[ContextState, SynthesisState], z: Sequence[Tensor]) -> list[Tensor]:
        """Of J in bits."""
        context, state = before
        z = [value.requires_grad_() for value in z]
        # one after the other: the activations of both are not held at once
        distortion = torch.autograd.grad(self._distortion(self._picture(state, z)), z)
        bits = torch.autograd.grad(self._bits(context, z), z)
        for value in z:
            value.requires_grad_(False)
        return [a + b for a, b in zip(distortion, bits, strict=True)]

    @torch.enable_grad()
    def _curvature(self, before: tuple[ContextState, SynthesisState], z: Sequence[Tensor]) -> list[Tensor]:
        """h: bits of distortion per squared step, the mean of each picture and channel, `[B, M * d, 1, 1]`.

        Of the diagonal of the Gauss-Newton matrix, by one product with random signs (Hutchinson's estimator).
        """
        generator = torch.Generator().manual_seed(0)

        def signs(like: Tensor) -> Tensor:
            return torch.randint(0, 2, like.shape, generator=generator, device="cpu").to(like) * 2 - 1

        z = [value.requires_grad_() for value in z]
        picture = self._picture(before[1], z)
        if self._squared:
            slopes = torch.autograd.grad(picture, z, signs(picture) * self._shown)
            weight = self.model.config.sample_weight(self.level)[:, None, None, None]
            products = [weight * slope.square() for slope in slopes]
        else:
            # at the original, where the slope of the distortion is 0 and its second derivative what is wanted
            moves = [PROBE * signs(value) for value in z]
            with torch.no_grad():
                change = self._picture(before[1], [v + move for v, move in zip(z, moves, strict=True)]) - picture
            moved = (self.x + change).requires_grad_()
            slope = torch.autograd.grad(self._distortion(moved), moved)[0]
            slopes = torch.autograd.grad(picture, z, slope)
            products = [move * s / (2 * PROBE**2) for move, s in zip(moves, slopes, strict=True)]
        for value in z:
            value.requires_grad_(False)
        share = self._shown.mean((2, 3), keepdim=True)
        means = [product.mean((2, 3), keepdim=True) / share for product in products]
        # channels without effect would take endless steps
        return [m.maximum(0.1 * m.mean(1, keepdim=True)).clamp(min=1e-12) for m in means]
