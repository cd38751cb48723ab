"""Sizes of what residual bodies read and write, and which hidden units they have.

With sizes, weights and biases are of the size optimizers expect. A hidden unit that has closed for good is drawn anew
when training goes on, and left out of a release.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mcodec.model import Cascade
from mcodec.model.layers import Block, Body, Gate, Pointwise

#: Smallest size of a channel relative to the mean of its feature; what is always zero must not be blown up.
SMALLEST = 0.05
#: What a body writes is in units of five grey levels: all channels alike, as errors in all of them count alike.
WRITES = 0.02
#: A hidden unit that is open for a smaller share of the positions is dead.
OPEN = 3e-3
#: A release leaves out the hidden units whose share of the mean square of all is nowhere above this; the others stay in
#: a multiple of WIDTH, as matrix products like it. With 1e-4 the worst of 40 pictures loses 0.2 dB, 0.04 with 1e-5.
LEFT_OUT, WIDTH = 1e-5, 16

#: Runs the model forward on typical pictures at several qualities.
Run = Callable[[], object]


def _bodies(model: Cascade) -> list[Body]:
    return [module for module in model.modules() if isinstance(module, Body)]


def _gates(bodies: list[Body]) -> list[nn.Module]:
    return [next(layer for layer in body if isinstance(layer, Gate)) for body in bodies]


@torch.no_grad()
def _observed(modules: Sequence[nn.Module], run: Run) -> list[Tensor]:
    """(mean square, share above zero, mean square of those) of each channel of what modules read in `run`.

    `[3, N, C]` of each module, of the N times that it was called.
    """
    seen: list[list[Tensor]] = [[] for _ in modules]

    def hook(place: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].float()
            values = x.square(), (x > 0).float(), x.clamp(min=0).square()
            seen[place].append(torch.stack([value.mean((0, 2, 3)) for value in values]))

        return keep

    handles = [module.register_forward_pre_hook(hook(place)) for place, module in enumerate(modules)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return [torch.stack(values, 1) for values in seen]


def dead(model: Cascade, run: Run) -> float:
    """Share of hidden units in all bodies that hardly ever open."""
    shares = [share.mean(0) for _, share, _ in _observed(_gates(_bodies(model)), run)]
    return float((torch.cat(shares) < OPEN).float().mean())


@torch.no_grad()
def normalize(model: Cascade, run: Run, keep: bool) -> int:
    """Set the sizes from what the bodies see; returns how many hidden units were opened again.

    keep: leave the function as it is (a trained model) and give dead hidden units new weights, which do not show in
    the output at first. Otherwise (a fresh model, whose bodies return zero) layers keep their weights as drawn.
    """
    bodies = _bodies(model)
    seen = [means.mean(1) for means in _observed([*bodies, *_gates(bodies)], run)]
    owners: dict[int, Block | Body] = {id(m.body): m for m in model.modules() if isinstance(m, Block)}
    opened = 0
    read, hidden = seen[: len(bodies)], seen[len(bodies) :]
    for body, (power, _, _), (inner, share, _) in zip(bodies, read, hidden, strict=True):
        size = power.sqrt()
        size = size.clamp(min=max(SMALLEST * float(size.mean()), 1e-6))
        if not keep:
            body.reads.copy_(size)
            body.writes.fill_(WRITES)
            continue
        owners.get(id(body), body).resize(size, WRITES)
        opened += _revive(body, inner.sqrt().clamp(min=1e-6), share < OPEN)
    return opened


def _revive(body: Body, size: Tensor, closed: Tensor) -> int:
    """Hidden units of a body with pointwise layers: new weights for the closed ones, the others to unit size."""
    before, after = body.around_gate()
    first = before[0]
    if not isinstance(first, Pointwise) or not isinstance(after, Pointwise):
        return 0
    size = torch.where(closed, 1.0, size)
    first.weight.div_(size[:, None])
    for layer in before:
        bias = layer.bias
        assert isinstance(bias, Tensor)
        bias /= size
        bias[closed] = 0
    after.weight.mul_(size)
    fresh = torch.randn_like(first.weight) * first.weight.shape[1] ** -0.5
    first.weight[closed] = fresh[closed]
    after.weight[:, closed] = 0
    return int(closed.sum())


@torch.no_grad()
def prune(model: Cascade, run: Run) -> float:
    """Leave out the hidden units that hardly add to what their body returns; the share of units that stays.

    run: calls the model for one picture at a time. A unit counts by the picture to which it adds most: what most do
    without, one may live by.
    """
    bodies = _bodies(model)
    before = sum(body.width for body in bodies)
    for body, (_, _, power) in zip(bodies, _observed(_gates(bodies), run), strict=True):
        reader = body.around_gate()[1].weight
        added = power * reader.square().reshape(*reader.shape[:2], -1).sum((0, 2))
        share, order = (added / added.sum(1, keepdim=True).clamp(min=1e-30)).amax(0).sort(descending=True)
        count = -(-max(1, int((share > LEFT_OUT).sum())) // WIDTH) * WIDTH
        body.select(order[:count].sort().values)
    return sum(body.width for body in bodies) / before


@torch.no_grad()
def widen(model: Cascade) -> None:
    """Hidden units that a release left out, drawn anew; the function stays as it is."""
    for body, fresh in zip(_bodies(model), _bodies(Cascade(model.config)), strict=True):
        count, (before, last), (drawn, reader) = body.width, body.around_gate(), fresh.around_gate()
        for layer, new in zip(before, drawn, strict=True):
            assert layer.bias is not None and new.bias is not None
            new.weight[:count], new.bias[:count] = layer.weight, layer.bias
            layer.weight, layer.bias = new.weight, new.bias
        reader.weight[:, :count], reader.weight[:, count:] = last.weight, 0
        last.weight = reader.weight


@torch.no_grad()
def fold(model: Cascade) -> None:
    """Sizes into the layers, as released models have them."""
    for module in model.modules():
        if isinstance(module, Block):
            module.resize(torch.ones_like(module.body.reads), 1.0)
    for body in _bodies(model):
        body.resize(torch.ones_like(body.reads), 1.0)
