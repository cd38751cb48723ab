"""How far the prior's scales are moved, for each tile and stage.

The context network says how wide the prior of a latent is. It errs for all latents of a stage alike where a picture is
busier or calmer than it guesses, and that an encoder sees: it moves the stage's scale indices, a factor for all sigmas,
and the file says by how much.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mcodec.model.context import SCALES
from mcodec.model.prior import noisy_bits

#: Scale indices of a shift of 1: an eighth of an octave.
UNIT = 2
#: Shifts that an encoder tries. Beyond them hardly any is best.
TRIED = range(-7, 7)
#: Bits that a shift must save: about what a section of seven takes, as any one may be the first, and as the best of
#: many estimates is too good. With 10, pictures of 64 to 128 pixels a side lost 0.6 to 1.4 %.
COST = 40
#: An encoder looks at so many positions of a stage, evenly spread.
POSITIONS = 1024
#: Values of all tiles of a batch whose rates are taken at once.
AT_ONCE = 2**21


def moved(scale: Tensor, shift: Tensor) -> Tensor:
    """Scale indices `[B, ...]` after shifts `[B]`; 0, which is not coded, stays, and nothing else becomes 0."""
    by = UNIT * shift.to(scale.dtype).reshape(-1, *[1] * (scale.dim() - 1))
    return torch.where(scale > 0, (scale + by).clamp(1, SCALES - 1), scale)


def spread(positions: int) -> int:
    """Of how many positions an encoder looks at one."""
    return -(-positions // POSITIONS)


@torch.no_grad()
def best(value: Tensor, offset: Tensor, scale: Tensor, least: float, step: int) -> Tensor:
    """The shift that saves most bits of a stage, int64 `[B]`.

    value: what codes decode to, in steps; offset and scale: of the prior, all `[B, C, P]` at one of `step` positions;
    least: the sigma of index 0. Rates are those of `noisy_bits`, which finds nine tenths of what could be saved and
    more, and takes no sum over codewords.
    """
    bits = torch.cat(
        [
            _bits(value, offset, scale, least, tried)
            for tried in torch.arange(TRIED.start, TRIED.stop, device=value.device).split(
                max(1, AT_ONCE // max(1, value.numel()))
            )
        ]
    )
    saved, place = (bits[-TRIED.start] - bits).max(0)
    return torch.where(step * saved > COST, place + TRIED.start, 0)


def _bits(value: Tensor, offset: Tensor, scale: Tensor, least: float, tried: Tensor) -> Tensor:
    """Of each tile with each of the shifts `[N]`: `[N, B]`."""
    count = len(tried)
    shift = tried.repeat_interleave(len(scale))
    value, offset, scale = (part.repeat(count, 1, 1) for part in (value, offset, scale))
    each = noisy_bits(value, offset, moved(scale, shift), least) * (scale > 0)
    return each.sum((1, 2)).unflatten(0, (count, -1))
