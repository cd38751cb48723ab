"""The cascade: stages coarse to fine, each quantizing what the stages before it left.

Per stage, with the synthesis state s (float) and the context state u (integer) that both sides hold:

    v = gain(q) * (posterior(y, s, q) - h(s))      encoder only
    c = argmin_k  beta |v - mu_k|^2 - ln p(k | u)   encoder only
    s = refine(s + out(mu_c / gain(q)), q)
    u = absorb(u, c)

and at the end the picture is synthesis(s, q). Only u decides probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from mcodec.entropy import PriorTables
from mcodec.kernels.float_prior import likeliest, mixture_nats
from mcodec.kernels.pvq_assign import pvq_assign
from mcodec.kernels.residual_block import scaled_add
from mcodec.model.config import LEVELS, ModelConfig, StageConfig
from mcodec.model.context import StageContext
from mcodec.model.layers import (
    ANCHORS,
    Blocks,
    Body,
    Exact1x1,
    Gate,
    Pointwise,
    Response,
    Spatial,
    interpolate,
    shares,
    straight_through,
)
from mcodec.model.prior import gaussian, noisy_bits, precision_table
from mcodec.model.quantizer import Codebooks
from mcodec.model.transforms import Analysis, Synthesis, Up, coefficients
from mcodec.model.walk import ContextState, Seams, SynthesisState
from mcodec.model.window import Window

#: Assignment weight of a squared quantization step against one nat. For orthonormal latents quantized with the step
#: that is optimal for lambda, a squared step costs 8.7 bits of distortion = 6 nats. Networks that saw rounded latents
#: alone do best at 20, after 250 steps of codes chosen at 10 near 14 (BD-rate on validation; docs/EXPERIMENTS.md).
BETA = 14.0
#: Channels in which a stage compares feature and state.
MIXED = 128

#: choose(index, state, offset, scale) -> (dequantized value in steps, integer coordinates), `[B, M * d, h, w]`.
Choose = Callable[[int, Tensor, "Tensor | None", "Tensor | None"], tuple[Tensor, Tensor]]
#: assign(index, latents, offset, scale) -> codes `[B, M, h, w]`.
Assign = Callable[[int, Tensor, "Tensor | None", "Tensor | None"], Tensor]

#: Share of a stage's positions on which training evaluates the rate of hard codes, K logits each; at least so many.
RATED, LEAST_RATED = 1 / 8, 36


@dataclass
class Trained:
    """What a training step needs: sums over a batch of B pictures."""

    picture: Tensor  # [B, 3, H, W]
    bits: Tensor  # [B], as optimised
    commitment: Tensor  # [B], squared distance of latents to their codewords, summed
    overload: Tensor  # scalar, steps beyond the codebooks' radius
    stage_bits: list[Tensor] = field(default_factory=list)  # [B] each, as coded (hard codes where defined)
    used: list[Tensor] = field(default_factory=list)  # share of codewords used in the batch, per stage


class Stage(nn.Module):
    """Posterior, quantizer, prior step and state update of one stage."""

    def __init__(self, config: ModelConfig, stage: StageConfig, first: int) -> None:
        super().__init__()
        channels = config.channels[stage.stride]
        self.stride, self.mixture = stage.stride, config.prior == "mixture"
        self.posterior = Exact1x1(channels, stage.width)
        self.predict = Exact1x1(channels, stage.width)  # h(s)
        self.correct = Body(
            2 * channels,
            Pointwise(2 * channels, MIXED),
            Spatial(MIXED),
            Gate(),
            Pointwise(MIXED, stage.width, zero=True),
        )
        self.correct_response = Response(config) if config.response else None
        self.codebooks = Codebooks(config, stage)
        self.out = Exact1x1(stage.width, channels)
        self.refine = Blocks(config, channels, stage.refine)
        self.log_gain = nn.Parameter(torch.zeros(ANCHORS, stage.width))
        if self.mixture:
            self.context = StageContext(config, stage)
        if config.start == "dct":
            self._start(config, stage, first)

    @torch.no_grad()
    def _start(self, config: ModelConfig, stage: StageConfig, first: int) -> None:
        """Latents are the DCT coefficients first..first+width, quantized with the step that suits lambda."""
        width = min(stage.width, coefficients(config, stage.stride) - first)
        self.posterior.start_linear(torch.eye(stage.width, width), col=first)
        self.predict.start_linear(torch.eye(stage.width, width), col=first)
        known = coefficients(config, stage.stride)
        self.out.start_linear(torch.eye(known, stage.width).roll(first, 0))
        for anchor in range(ANCHORS):
            lam = config.lam(round(anchor * (LEVELS - 1) / (ANCHORS - 1)))
            # entropy-coded uniform quantization: lambda * 255^2 * step^2 / 12 / 3 balances -log2(step) per
            # coefficient at step^2 = 26 / lambda (in 1/255); features at stride r are scaled by 4 / r
            step = math.sqrt(26 / lam) / 255 * 4 / stage.stride
            self.log_gain[anchor] = -math.log(step)

    def gain(self, level: Tensor) -> Tensor:
        """Steps per unit of the state, `[B, M * d, 1, 1]`."""
        return interpolate(self.log_gain, level).exp()[:, :, None, None]

    def latents(self, feature: Tensor, state: Tensor, level: Tensor) -> Tensor:
        """v, in steps."""
        linear = self.posterior(feature) - self.predict(state)
        kind = state.device.type
        if torch.is_autocast_enabled(kind):  # before they are copied side by side
            feature, state = (v.to(torch.get_autocast_dtype(kind)) for v in (feature, state))
        correction = self.correct(torch.cat([feature, state], 1))
        if self.correct_response:
            linear = scaled_add(linear, correction, self.correct_response(level))
        else:
            linear = linear + correction
        return linear * self.gain(level)

    def update(self, state: Tensor, value: Tensor, level: Tensor) -> Tensor:
        """s' from s and the dequantized latents."""
        out: Tensor = self.refine(state + self.out(value / self.gain(level)), level)
        return out

    @torch.no_grad()
    def calibrate(self, latents: Tensor) -> None:
        """Lower the gains until the codebooks span nearly all latents of most pictures at the best quality.

        Judged picture by picture: a single one of extreme contrast must not coarsen all others.
        """
        reach = latents.abs().flatten(2).quantile(0.998, dim=2).quantile(0.8, dim=0).clamp(min=1e-3)
        cap = self.log_gain[-1] + (self.codebooks.radius / reach).log()
        self.log_gain.copy_(torch.minimum(self.log_gain, cap))


class Cascade(nn.Module):
    """The whole model. `forward` trains; a codec calls `encode`, and `read` and `synthesize` to decode."""

    precision: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        #: Any type that holds 24-bit integers gives the same probabilities.
        self.context_dtype = torch.float32
        self.analysis = Analysis(config)
        self.synthesis = Synthesis(config)
        self.register_buffer("precision", precision_table(config.sigma_min))
        stages, ups, seen = [], {}, dict.fromkeys(config.channels, 0)
        previous = config.stages[0].stride
        for stage in config.stages:
            while previous > stage.stride:
                ups[str(previous)] = Up(config, previous)
                previous //= 2
            stages.append(Stage(config, stage, seen[stage.stride]))
            seen[stage.stride] += stage.width
        self.stages: nn.ModuleList = nn.ModuleList(stages)
        self.ups = nn.ModuleDict(ups)

    def stage(self, index: int) -> Stage:
        """A stage by its place in the cascade."""
        return cast(Stage, self.stages[index])

    def tables(self, index: int) -> PriorTables:
        """What the entropy coder needs of a stage."""
        codewords, log_weights, _ = self.stage(index).codebooks.integers()
        precision = self.precision.cpu().numpy()
        return PriorTables(codewords.cpu().numpy(), log_weights.cpu().numpy(), precision, self.config.reach)

    def walk(self, height: int, width: int, level: Tensor, choose: Choose, seams: Seams | None = None) -> Tensor:
        """Run the cascade on pictures of height x width (multiples of the coarsest stride); returns s."""
        context = ContextState(self, height, width, level, seams)
        state = SynthesisState(self, height, width, shares(level))
        for index in range(len(self.stages)):
            offset, scale = context.parameters(index)
            value, coordinates = choose(index, state.at(index), offset, scale)
            context.absorb(index, coordinates)
            state.update(index, value)
        return state.s

    # ---- coding -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, x: Tensor, level: Tensor, assign: Assign, seams: Seams | None = None) -> Tensor:
        """x `[B, 3, H, W]` in -0.5..0.5, padded. `assign(index, latents, offset, scale)` returns codes
        `[B, M, h, w]` and keeps what it needs. seams: rows and columns where tiles meet; the context network does
        not look across. Returns the synthesis state (for encoder-side search)."""
        weights = shares(level)
        features = self.analysis(x, weights)

        def choose(index: int, state: Tensor, offset: Tensor | None, scale: Tensor | None) -> tuple[Tensor, Tensor]:
            stage = self.stage(index)
            latents = stage.latents(features[stage.stride], state, weights).float()
            codes = assign(index, latents, offset, scale)
            return stage.codebooks.lookup(codes), stage.codebooks.lookup_coordinates(codes)

        return self.walk(x.shape[2], x.shape[3], level, choose, seams)

    @torch.no_grad()
    def read(
        self, height: int, width: int, level: Tensor, read: Callable[..., Tensor], count: int | None = None
    ) -> list[Tensor]:
        """Codes of the first `count` stages (default: all), `[B, M, h, w]` each; runs the context network only.

        `read(index, offset, scale)` returns those of one stage.
        """
        context = ContextState(self, height, width, level)
        kept: list[Tensor] = []
        for index in range(len(self.stages) if count is None else count):
            kept.append(read(index, *context.parameters(index)))
            context.absorb(index, self.stage(index).codebooks.lookup_coordinates(kept[-1]))
        return kept

    @torch.no_grad()
    def synthesize(
        self, codes: Sequence[Tensor], height: int, width: int, level: Tensor, window: Window | None = None
    ) -> Tensor:
        """The synthesis state after the codes of all stages.

        Of a window, each stage's codes are those of the box `window.around`. Stages that are not given add nothing:
        a coarser picture.
        """
        state = SynthesisState(self, height, width, shares(level), window)
        for index in range(len(self.stages)):
            stage, before = self.stage(index), state.at(index)
            if index < len(codes):
                value = stage.codebooks.lookup(codes[index])
            else:
                value = before.new_zeros(len(level), stage.out.weight.shape[1], *before.shape[2:])
            state.update(index, value)
        return state.s

    # ---- training -----------------------------------------------------------------------------------------

    def forward(
        self,
        x: Tensor,
        level: Tensor,
        mode: str = "hard",
        calibrate: bool = False,
        assign: Assign | None = None,
        beta: float = BETA,
    ) -> Trained:
        """One training or validation pass.

        x `[B, 3, H, W]` in -0.5..0.5, level `[B]`; mode "noise" (uniform-noise relaxation of the rate, rounded
        latents for the decoder), "hard" (rate-aware codes) or "gumbel" (the quantizer of `umgm`). `assign` gives the
        hard codes in place of the float law below, as an entropy coder's backend does in a fraction of the time; beta
        is the weight of distortion in that law.
        """
        weights = shares(level)
        features = self.analysis(x, weights)
        out = Trained(x, x.new_zeros(len(x)), x.new_zeros(len(x)), x.new_zeros(()))
        relaxed = {"noise": self._noise, "gumbel": self._gumbel}

        def choose(index: int, state: Tensor, offset: Tensor | None, scale: Tensor | None) -> tuple[Tensor, Tensor]:
            stage = self.stage(index)
            latents = stage.latents(features[stage.stride], state, weights).float()
            if calibrate:
                stage.calibrate(latents)
                latents = stage.latents(features[stage.stride], state, weights).float()
            if mode != "hard":
                return relaxed[mode](out, stage.codebooks, latents, offset, scale)
            codes = assign(index, latents.detach(), offset, scale) if assign else None
            return self._hard(out, stage.codebooks, latents, offset, scale, codes, beta)

        state = self.walk(x.shape[2], x.shape[3], level, choose)
        out.picture = self.synthesis(state, weights).float()
        return out

    def _noise(
        self, out: Trained, book: Codebooks, latents: Tensor, offset: Tensor | None, scale: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if offset is None or scale is None:
            raise ValueError("the noise relaxation needs a conditional prior")
        bounded, least = book.bounded(latents), self.config.sigma_min
        out.overload = out.overload + book.overload(latents)
        rounded = bounded.detach().round()
        bits = noisy_bits(bounded + torch.rand_like(bounded) - 0.5, offset, scale, least)
        out.bits = out.bits + bits.sum((1, 2, 3))
        with torch.no_grad():
            out.stage_bits.append(noisy_bits(rounded, offset, scale, least).sum((1, 2, 3)))
        return straight_through(rounded, bounded), book.coordinate(rounded)

    def _hard(
        self,
        out: Trained,
        book: Codebooks,
        latents: Tensor,
        offset: Tensor | None,
        scale: Tensor | None,
        codes: Tensor | None,
        beta: float,
    ) -> tuple[Tensor, Tensor]:
        vectors, bounded = book.vectors(latents), book.bounded(latents)
        prior = None if offset is None or scale is None else (book.vectors(offset), book.vectors(scale))
        flat = self._chosen(book, vectors, prior, beta) if codes is None else codes.flatten(2)
        rated = None
        positions = flat.shape[2]
        count = max(LEAST_RATED, round(positions * RATED))
        if torch.is_grad_enabled() and count < positions:
            rated = torch.randint(positions, (count,), device=flat.device)
        nats = self._nats(book, flat, prior, rated)
        bits = nats.sum((1, 2)) * (positions / nats.shape[2] / math.log(2))
        out.bits = out.bits + bits
        if offset is not None and scale is not None and torch.is_grad_enabled():
            # codes have no gradient: the encoder keeps the one of the noise relaxation, and so does the scale of what
            # is not coded, which costs no bits whatever the latent
            noise = torch.rand_like(latents) - 0.5
            watched = torch.where(scale == 0, scale, scale.detach())
            relaxed = noisy_bits(bounded + noise, offset.detach(), watched, self.config.sigma_min).sum((1, 2, 3))
            out.bits = out.bits + relaxed - relaxed.detach()
        out.stage_bits.append(bits.detach())
        codes = flat.unflatten(2, latents.shape[-2:])
        value = book.lookup(codes)
        out.overload = out.overload + book.overload(latents)
        out.commitment = out.commitment + (latents - value.detach()).square().sum((1, 2, 3))
        out.used.append(_used(codes, book))
        # value forward; its gradient goes to the codeword and, straight through, to the latent
        return value + bounded - bounded.detach(), book.coordinate(value)

    @torch.no_grad()
    def _chosen(self, book: Codebooks, vectors: Tensor, prior: tuple[Tensor, Tensor] | None, beta: float) -> Tensor:
        """Codes `[B, M, P]` of latents `[B, M, d, P]`: argmin_k beta * |v - mu_k|^2 - ln p(k), 0 where not coded."""
        if prior is None:
            return pvq_assign(vectors, book.codewords, 1.0)
        mean, precision = gaussian(*prior, self.precision)
        total = precision + beta
        nearest = (precision * mean + beta * vectors) / total
        return likeliest(book.codewords, book.log_weights, nearest, total).masked_fill((prior[1] == 0).all(2), 0)

    def _nats(
        self, book: Codebooks, codes: Tensor, prior: tuple[Tensor, Tensor] | None, positions: Tensor | None
    ) -> Tensor:
        """-ln p of codes `[B, M, P]`, at some or all positions; 0 where not coded."""
        if positions is not None:
            codes = codes.index_select(2, positions)
        if prior is None:
            log_p = book.log_weights.log_softmax(1)[None].expand(len(codes), -1, -1)
            return -log_p.gather(2, codes)
        if positions is not None:
            prior = prior[0].index_select(3, positions), prior[1].index_select(3, positions)
        # codewords are detached there: a rate gradient into them pushes unused ones to infinity
        nats = mixture_nats(codes, book.codewords, book.log_weights, *gaussian(*prior, self.precision))
        return nats.masked_fill((prior[1] == 0).all(2), 0)

    def _gumbel(
        self, out: Trained, book: Codebooks, latents: Tensor, offset: Tensor | None, scale: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        value, codes = book.gumbel(latents)
        log_p = book.log_weights.detach().log_softmax(1)
        if torch.is_grad_enabled():  # not in validation
            book.count(codes.flatten(2))
        nats = -torch.gather(log_p[None].expand(len(codes), -1, -1), 2, codes.flatten(2))
        out.stage_bits.append(nats.sum((1, 2)) / math.log(2))
        out.used.append(_used(codes, book))
        return value, book.coordinate(value)


def _used(codes: Tensor, book: Codebooks) -> Tensor:
    """Share of the codewords of all sub-codebooks that occur in a batch of codes `[B, M, h, w]`."""
    groups, size = book.codewords.shape[:2]
    with torch.no_grad():
        flat = codes.flatten(2) + torch.arange(groups, device=codes.device)[:, None] * size
        seen = torch.zeros(groups * size, device=codes.device)
        return seen.index_fill_(0, flat.flatten(), 1).mean()
