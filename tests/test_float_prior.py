"""The float prior: values and gradients of the definition, in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mcodec.kernels import float_prior as kernel

SHAPES = [(1, 1, 1, 2, 1), (2, 3, 7, 17, 2), (1, 2, 70, 225, 3), (0, 2, 3, 5, 2), (1, 2, 3, 2100, 2)]


def stage(shape: tuple[int, int, int, int, int]) -> tuple[Tensor, list[Tensor]]:
    """Codes, and codewords, log weights, mean and precision."""
    torch.manual_seed(sum(shape))
    b, m, p, k, d = shape
    rest = [torch.randn(m, k, d) * 3, torch.randn(m, k), torch.randn(b, m, d, p) * 2, torch.rand(b, m, d, p) * 3 + 0.01]
    return torch.randint(k, (b, m, p)), rest


def agree(found: Tensor, wanted: Tensor, share: float = 1e-4) -> None:
    assert found.shape == wanted.shape
    assert (found.detach().cpu().double() - wanted.detach()).norm() <= share * wanted.norm() + 1e-6


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mixture_nats(device: torch.device, shape: tuple[int, int, int, int, int]) -> None:
    codes, rest = stage(shape)
    exact = [value.double().requires_grad_() for value in rest]
    square = (exact[0][None, :, None] - exact[2].transpose(2, 3)[:, :, :, None]).square()  # [B, M, P, K, d]
    logits = exact[1][:, None] - (exact[3].transpose(2, 3)[:, :, :, None] * square).sum(4)
    wanted = -logits.log_softmax(3).gather(3, codes[..., None])[..., 0]
    weight = torch.randn(wanted.shape, dtype=torch.float64)
    wanted_back = torch.autograd.grad(wanted, exact[1:], weight)
    inputs = [value.to(device).requires_grad_() for value in rest]
    found = kernel.mixture_nats(codes.to(device), *inputs)
    agree(found, wanted)
    found_back = torch.autograd.grad(found, inputs, weight.float().to(device), allow_unused=True)
    assert found_back[0] is None
    for one, other in zip(found_back[1:], wanted_back, strict=True):
        assert one is not None
        agree(one, other)
    likeliest = kernel.likeliest(*inputs)
    cost = logits.detach().gather(3, likeliest.cpu()[..., None])[..., 0]
    assert likeliest.shape == codes.shape and (cost >= logits.detach().amax(3) - 1e-3).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 7), (0, 3, 2, 2), (1, 40, 9, 11)], ids=str)
def test_noisy_bits(device: torch.device, shape: tuple[int, ...], layout: torch.memory_format) -> None:
    torch.manual_seed(sum(shape))
    values = [torch.randn(shape) * 3, torch.randn(shape), torch.rand(shape) * 2 + 0.1]
    exact = [value.double().requires_grad_() for value in values]
    distance = (exact[0] - exact[1]).abs()
    normal = torch.distributions.Normal(0.0, 1.0)
    mass = normal.cdf((0.5 - distance) / exact[2]) - normal.cdf((-0.5 - distance) / exact[2])
    tail = ((distance - 0.5).clamp(min=0) / exact[2]).square() / 2 + 16
    near = mass > kernel.LEAST_MASS
    clear = (mass / kernel.LEAST_MASS).log().abs() > 1  # at the border of the two branches float32 may take the other
    wanted = torch.where(near, -mass.clamp(min=1e-30).log(), tail) / torch.log(torch.tensor(2.0)).double()
    weight = torch.randn(shape, dtype=torch.float64) * clear
    wanted_back = torch.autograd.grad(wanted, exact, weight)
    inputs = [value.to(device).contiguous(memory_format=layout).requires_grad_() for value in values]
    found = kernel.noisy_bits(*inputs)
    found_back = torch.autograd.grad(found, inputs, weight.float().to(device))
    # of a difference of two erf near 1 five digits are left, of small ones fewer; and what is in the tail, some hundred
    # times as large, must not hide the rest
    usual, rare = mass.detach() > 1e-3, near & (mass.detach() <= 1e-3)
    for part, of_value, of_slope in ((usual, 1e-3, 2e-3), (rare, 2e-2, 0.1), (~near, 1e-2, 5e-2)):
        here = part & clear
        agree(found * here.to(device), wanted * here, of_value)
        for one, other in zip(found_back, wanted_back, strict=True):
            agree(one * here.to(device), other * here, of_slope)


def test_noisy_bits_of_two_layouts(device: torch.device) -> None:
    torch.manual_seed(0)
    noisy, mean, sigma = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5), torch.rand(2, 3, 4, 5) + 0.5
    wanted = kernel.noisy_bits_reference(noisy.double(), mean.double(), sigma.double())
    mixed = noisy.contiguous(memory_format=torch.channels_last).to(device)
    agree(kernel.noisy_bits(mixed, mean.to(device), sigma.to(device)), wanted)


def test_large(gpu: torch.device) -> None:
    codes, rest = stage((8, 8, 1024, 961, 2))
    one = [value.to(gpu).requires_grad_() for value in rest]
    other = [value.to(gpu).double().requires_grad_() for value in rest]
    nats = kernel.mixture_nats(codes.to(gpu), *one), kernel.mixture_nats_reference(codes.to(gpu), *other)
    agree(nats[0], nats[1].cpu())
    back = [torch.autograd.grad(n.sum(), v[1:]) for n, v in zip(nats, (one, other), strict=True)]
    for a, b in zip(*back, strict=True):
        agree(a, b.cpu())
