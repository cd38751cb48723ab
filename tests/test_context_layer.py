"""Integer layers: equal to Python's unbounded integers in every type and implementation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mcodec.kernels import context_layer as kernel

TYPES = [torch.float32, torch.float64, torch.int32]
SHAPES = [(1, 1, 1, 1, 1), (2, 3, 5, 4, 7), (1, 33, 17, 3, 5), (0, 3, 3, 2, 2), (1, 2, 3, 0, 4)]


def integers(low: int, high: int, *shape: int) -> Tensor:
    """Integers of both ends and between."""
    values = torch.randint(low, high + 1, shape)
    ends = torch.tensor([low, high])[torch.randint(0, 2, shape)]
    return torch.where(torch.rand(shape) < 0.5, values, ends)


def clamped(acc: int, shift: int, low: int, high: int) -> int:
    return min(max((acc + 2 ** (shift - 1)) // 2**shift, low), high)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pointwise(device: torch.device, shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(sum(shape))
    b, c, o, h, w = shape
    x, weight = integers(-127, 127, b, c, h, w), integers(-127, 127, o, c)
    bias = integers(-(2**22) + 1, 2**22 - 1, o) // torch.tensor([1, 256])[torch.arange(o) % 2]
    for shift, low, high in ((7, -127, 127), (9, 0, 127)):
        out = kernel.pointwise(
            x.to(dtype).to(device), weight.float().to(device), bias.float().to(device), shift, low, high
        )
        assert out.dtype == dtype and out.shape == (b, o, h, w)
        flat = x.movedim(1, 3).reshape(-1, c).tolist()
        wanted = [
            [
                clamped(sum(map(int.__mul__, u, v)) + t, shift, low, high)
                for v, t in zip(weight.tolist(), bias.tolist(), strict=True)
            ]
            for u in flat
        ]
        assert out.movedim(1, 3).reshape(-1, o).long().tolist() == wanted


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [s[:2] + s[3:] for s in SHAPES], ids=str)
def test_depthwise(device: torch.device, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(sum(shape))
    _, c, h, w = shape
    x, weight, bias = integers(-127, 127, *shape), integers(-127, 127, c, 3, 3), integers(-9000, 9000, c)
    out = kernel.depthwise(x.to(dtype).to(device), weight.float().to(device), bias.float().to(device), 6, -127, 127)
    assert out.dtype == dtype and out.shape == shape
    u, v = x.tolist(), weight.tolist()
    for item, channel, i, j in torch.cartesian_prod(*map(torch.arange, shape)).tolist() if x.numel() else []:
        acc = int(bias[channel])
        for di in range(3):
            for dj in range(3):
                y, z = i + di - 1, j + dj - 1
                if 0 <= y < h and 0 <= z < w:
                    acc += v[channel][di][dj] * u[item][channel][y][z]
        assert int(out[item, channel, i, j]) == clamped(acc, 6, -127, 127)


@pytest.mark.parametrize("shape", [(1,), (2, 3, 5, 7), (0, 3), (3000,)], ids=str)
def test_requantize_for_training(device: torch.device, shape: tuple[int, ...]) -> None:
    torch.manual_seed(sum(shape))
    acc = (integers(-(2**23), 2**23, *shape) // torch.tensor(10) ** torch.randint(0, 8, shape)).float()
    for shift, low, high in ((7, -127, 127), (6, 0, 127)):
        x = acc.clone().to(device).requires_grad_()
        out = kernel.Requantize.apply(x, shift, low, high)
        wanted = [clamped(int(value), shift, low, high) for value in acc.flatten().tolist()]
        assert out.flatten().tolist() == wanted
        grad = torch.randn(shape)
        (back,) = torch.autograd.grad(out, x, grad.to(device))
        real = acc / 2**shift
        trapped = ((real > high) & (grad < 0)) | ((real < low) & (grad > 0))
        assert torch.equal(back.cpu(), torch.where(trapped, 0.0, grad / 2**shift))


def test_large(gpu: torch.device) -> None:
    torch.manual_seed(0)
    x = integers(-127, 127, 2, 96, 135, 241).float().to(gpu)
    weight, spatial = integers(-127, 127, 96, 96).float().to(gpu), integers(-127, 127, 96, 3, 3).float().to(gpu)
    bias = integers(-99999, 99999, 96).float().to(gpu)
    arguments = (bias, 7, -127, 127)
    exact = x.double()
    assert torch.equal(
        kernel.pointwise(x, weight, *arguments).double(), kernel.pointwise_reference(exact, weight, *arguments)
    )
    assert torch.equal(
        kernel.depthwise(x, spatial, *arguments).double(), kernel.depthwise_reference(exact, spatial, *arguments)
    )
