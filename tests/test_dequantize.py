"""Codeword gather."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mcodec.kernels.dequantize import dequantize, dequantize_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int16], ids=str)
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1, 2, 1), (2, 3, 5, 7, 11, 3), (1, 2, 3, 3, 50, 48), (0, 1, 2, 2, 3, 2), (1, 2, 0, 3, 4, 2)],
    ids=str,
)
def test_every_element(device: torch.device, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    b, m, h, w, k, d = shape
    torch.manual_seed(k)
    codewords = (torch.randn(m, k, d) * 100).to(dtype).to(device)
    codes = torch.randint(0, k, (b, m, h, w), device=device)
    out = dequantize(codes, codewords)
    assert out.shape == (b, m * d, h, w) and out.dtype == dtype
    for item in range(b):
        for group in range(m):
            for y in range(h):
                for x in range(w):
                    wanted = codewords[group, codes[item, group, y, x]]
                    assert torch.equal(out[item, group * d : (group + 1) * d, y, x], wanted)
    assert torch.equal(dequantize(codes.int(), codewords), out)


def test_gradients_reach_the_codewords(device: torch.device) -> None:
    torch.manual_seed(0)
    codewords = torch.randn(2, 5, 3, device=device, requires_grad=True)
    codes, grad = torch.randint(0, 5, (3, 2, 4, 2), device=device), torch.randn(3, 6, 4, 2, device=device)
    dequantize(codes, codewords).backward(grad)
    wanted = torch.zeros(2, 5, 3, dtype=torch.float64)
    for item, group, y, x in np.ndindex(3, 2, 4, 2):
        wanted[group, codes[item, group, y, x]] += grad[item, 3 * group : 3 * group + 3, y, x].double().cpu()
    assert codewords.grad is not None
    torch.testing.assert_close(codewords.grad.cpu(), wanted.float(), rtol=1e-5, atol=1e-6)


def test_large(gpu: torch.device) -> None:
    codewords, codes = torch.randn(22, 289, 2, device=gpu), torch.randint(0, 289, (4, 22, 271, 481), device=gpu)
    assert torch.equal(dequantize(codes, codewords), dequantize_reference(codes, codewords))
