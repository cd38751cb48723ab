"""Assignment: the least cost, and of equals the lowest codeword."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stages import check_assigned, random_stage

from mcodec.kernels.pvq_assign import Prior, pvq_assign, pvq_assign_reference

SHAPES = [(1, 1, 1, 2, 1), (2, 3, 7, 17, 2), (1, 2, 9, 225, 3), (1, 1, 2, 8192, 5), (1, 2, 0, 5, 2), (0, 2, 3, 5, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_integers(device: torch.device, shape: tuple[int, int, int, int, int]) -> None:
    """Quarters are exact in float32, and few enough that many costs are equal."""
    torch.manual_seed(sum(shape))
    b, m, p, k, d = shape
    latents, codewords = torch.randint(-8, 9, (b, m, d, p)), torch.randint(-8, 9, (m, k, d))
    codes = pvq_assign((latents / 4).to(device), (codewords / 4).to(device), 2.0)
    assert codes.shape == (b, m, p) and codes.dtype == torch.int64
    cost = (latents.transpose(2, 3)[:, :, :, None] - codewords[None, :, None]).square().sum(4)
    for item, group, position in np.ndindex(b, m, p):
        row = cost[item, group, position].tolist()
        assert int(codes[item, group, position]) == row.index(min(row))


@pytest.mark.parametrize("reach", [0, 16])
@pytest.mark.parametrize("size,dimension,beta", [(2, 1, 1.0), (225, 2, 3.0), (50, 5, 100.0), (2100, 2, 20.0)])
def test_integer_prior(device: torch.device, size: int, dimension: int, beta: float, reach: int) -> None:
    """The rate of the integer tables, to the rounding of float32; skipped symbols have code 0.

    What has no frequency is not chosen.
    """
    tables, context, _ = random_stage(size, 2, size, dimension, 13, reach=reach)
    assert context[0] is not None and context[1] is not None
    rng = np.random.default_rng(size)
    latents = (context[0] / 16 + rng.normal(0, 4 if reach else 1, context[0].shape)).astype(np.float32)
    points = (tables.codewords / 16).astype(np.float32)
    offset, scale, v, mu = (torch.from_numpy(x).to(device) for x in (*context, latents, points))
    prior = Prior(tables.on(device), offset[None], scale[None])
    codes = pvq_assign(v[None], mu, beta, prior=prior)[0].cpu().numpy()
    better = check_assigned(tables, context, latents, points, beta, codes)
    assert better == (reach > 0 and size > 2)


def test_the_lowest_of_equals(device: torch.device) -> None:
    """Also where equals lie in different tiles of a kernel."""
    latents, codewords = torch.zeros(1, 1, 2, 3, device=device), torch.ones(1, 5000, 2, device=device)
    codewords[0, [7, 8, 4000, 4999]] = 0.5
    assert pvq_assign(latents, codewords, 1.0).tolist() == [[[7, 7, 7]]]


def test_any_chunk() -> None:
    torch.manual_seed(0)
    v, mu = torch.randn(2, 3, 2, 11), torch.randn(3, 13, 2)
    assert torch.equal(pvq_assign_reference(v, mu, 2.0, chunk=1), pvq_assign_reference(v, mu, 2.0))


def test_large(gpu: torch.device) -> None:
    for (m, k, d), positions in (((10, 961, 2), 20_011), ((2, 8192, 48), 1013)):
        v = torch.randint(-60, 61, (2, m, d, positions), device=gpu) / 4
        mu = torch.randint(-60, 61, (m, k, d), device=gpu) / 4
        assert torch.equal(pvq_assign(v, mu, 2.0), pvq_assign_reference(v, mu, 2.0))
