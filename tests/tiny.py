"""A tiny model whose every branch is alive."""

from __future__ import annotations

import torch

from mcodec.model import Cascade, ModelConfig, StageConfig

TINY = ModelConfig(
    name="tiny",
    stages=(
        StageConfig(32, groups=4, codewords=21 * 21),
        StageConfig(16, groups=4, codewords=15 * 15),
        StageConfig(8, groups=3, codewords=15 * 15),
        StageConfig(8, groups=5, codewords=9 * 9),
    ),
    channels={32: 24, 16: 24, 8: 32, 4: 48},
    analysis_blocks={4: 1, 8: 1},
    synthesis_blocks={4: 1},
    context_channels=24,
    context_blocks=1,
    lapped=True,
    response=0.5,
)


def lively(config: ModelConfig, seed: int = 0) -> Cascade:
    """A model with random values in the parameters that start at zero, so that no path is idle."""
    torch.manual_seed(seed)
    model = Cascade(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and not parameter.any() and "log_" not in name and ".context." not in name:
                parameter.normal_(0, 0.02)
            elif "log_weights" in name:
                parameter.normal_(0, 0.3)
            elif name.endswith("context.offset.weight"):
                parameter.mul_(4)
    return model

#: The published method at the same size: static prior, Gumbel-softmax, no rate term.
TINY_UMGM = ModelConfig(
    name="tiny-umgm",
    stages=(
        StageConfig(32, groups=2, codewords=16, dim=8),
        StageConfig(16, groups=2, codewords=32, dim=8),
    ),
    channels={32: 16, 16: 16, 8: 16, 4: 48},
    analysis_blocks={8: 1},
    synthesis_blocks={8: 1},
    prior="static",
    assignment="gumbel",
    start="random",
)
