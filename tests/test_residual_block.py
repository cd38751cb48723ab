"""Operations of residual blocks: values and gradients of the torch operations that they stand for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mcodec.kernels import residual_block as kernel

SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (1, 70, 9, 3), (3, 16, 17, 33), (0, 3, 2, 2)]
LARGE = (3, 192, 67, 121)


def compared(call: Callable[..., Tensor], reference: Callable[..., Tensor], inputs: list[Tensor], close: float) -> None:
    """Values and all gradients, in double precision on the one side."""
    exact = [value.detach().cpu().double().requires_grad_() for value in inputs]
    wanted = reference(*exact)
    inputs = [value.detach().requires_grad_() for value in inputs]
    found = call(*inputs)
    weight = torch.randn(wanted.shape, dtype=torch.float64)
    wanted_back = torch.autograd.grad(wanted, exact, weight)
    found_back = torch.autograd.grad(found, inputs, weight.to(found))
    for one, other in zip((found, *found_back), (wanted, *wanted_back), strict=True):
        assert one.shape == other.shape
        error = (one.detach().cpu().double() - other).norm()
        assert error <= close * other.norm() + 1e-9, f"{error} of {other.norm()}"


def affine_inputs(shape: tuple[int, ...], device: torch.device) -> list[Tensor]:
    torch.manual_seed(sum(shape))
    b, c = shape[:2]
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    rest = [(c, 1, 3, 3), (c,), (b, c, 1, 1), (b, c, 1, 1)]
    return [value.to(device) for value in (x, *(torch.randn(size) for size in rest))]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("affine", [0, 1, 2])
def test_affine_depthwise(device: torch.device, shape: tuple[int, ...], affine: int) -> None:
    inputs = affine_inputs(shape, device)[: 3 + affine]
    compared(kernel.affine_depthwise, kernel.affine_depthwise_reference, inputs, 1e-5)


def test_one_factor_for_all(device: torch.device) -> None:
    inputs = affine_inputs((2, 5, 4, 6), device)[:4]
    inputs[3] = torch.randn(5, 1, 1, device=device)
    compared(kernel.affine_depthwise, kernel.affine_depthwise_reference, inputs, 1e-5)


def test_integers_are_exact(device: torch.device) -> None:
    torch.manual_seed(0)
    x, weight = torch.randint(-127, 128, (2, 20, 9, 11)), torch.randint(-127, 128, (20, 1, 3, 3))
    bias = torch.randint(-(2**22), 2**22, (20,))
    out = kernel.affine_depthwise(*(value.float().to(device) for value in (x, weight, bias)))
    wanted = kernel.affine_depthwise_reference(*(value.double() for value in (x, weight, bias)))
    assert torch.equal(out.cpu().double(), wanted)


def test_bfloat16(device: torch.device) -> None:
    inputs = affine_inputs((2, 20, 9, 11), device)
    with torch.autocast(device.type, torch.bfloat16):
        out = kernel.affine_depthwise(*inputs)
    assert out.dtype == torch.bfloat16
    wanted = kernel.affine_depthwise_reference(*(value.cpu().double() for value in inputs))
    assert (out.cpu().double() - wanted).norm() < 1e-2 * wanted.norm()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scaled_add(device: torch.device, shape: tuple[int, ...]) -> None:
    torch.manual_seed(sum(shape))
    x, added = torch.randn(shape), torch.randn(shape)
    for count in (shape[0], 1):  # one for each, one for all
        inputs = [v.to(device) for v in (x, added, torch.randn(count, 1, 1, 1))]
        compared(kernel.scaled_add, kernel.scaled_add_reference, inputs, 1e-5)


@pytest.mark.parametrize("shape", [*SHAPES, (2, 40, 70, 33)], ids=str)
def test_pointwise(device: torch.device, shape: tuple[int, ...]) -> None:
    torch.manual_seed(sum(shape))
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    inputs = [x, torch.randn(19, shape[1]), torch.randn(19)]
    compared(
        kernel.pointwise, lambda x, w, b: torch.einsum("oi,bihw->bohw", w, x) + b[:, None, None],
        [v.to(device) for v in inputs], 2e-3 if device.type == "cuda" else 1e-5,  # TF32, where it is allowed
    )  # fmt: skip


def test_pointwise_in_bfloat16(device: torch.device) -> None:
    torch.manual_seed(0)
    values = torch.randn(2, 20, 9, 11), torch.randn(8, 20), torch.randn(8)
    x, weight, bias = (value.to(device).requires_grad_() for value in values)
    with torch.autocast(device.type, torch.bfloat16):
        out = kernel.pointwise(x, weight, bias)
    assert out.dtype == torch.bfloat16
    grads = torch.autograd.grad(out.float().sum(), (x, weight, bias))
    assert all(grad.dtype == torch.float32 for grad in grads)
    assert grads[2].cpu().tolist() == pytest.approx([2 * 9 * 11] * 8, rel=1e-2)


def test_large(gpu: torch.device) -> None:
    compared(kernel.affine_depthwise, kernel.affine_depthwise_reference, affine_inputs(LARGE, gpu), 1e-4)
    x, added, factor = torch.randn(LARGE), torch.randn(LARGE), torch.randn(3, 1, 1, 1)
    compared(kernel.scaled_add, kernel.scaled_add_reference, [v.to(gpu) for v in (x, added, factor)], 1e-4)
