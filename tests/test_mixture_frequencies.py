"""The integer law of the prior as kernels: equal to Python's unbounded integers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from stages import random_stage, slow_row
from torch import Tensor

from mcodec.entropy import PriorTables, rans
from mcodec.kernels import mixture_frequencies as kernel

SHAPES = [(1, 2, 1, 1), (3, 17, 2, 5), (2, 33, 3, 9), (1, 225, 2, 7), (1, 8192, 1, 2), (2, 9, 2, 0)]


def stage(groups: int, size: int, dimension: int, positions: int, spread: int = 60) -> tuple[
    PriorTables, tuple[np.ndarray, np.ndarray], np.ndarray
]:
    tables, context, codes = random_stage(size, groups, size, dimension, positions, spread=spread)
    assert context[0] is not None and context[1] is not None
    return tables, (context[0], context[1]), codes


def batched(device: torch.device, *arrays: np.ndarray) -> list[Tensor]:
    """A batch of the same arrays forwards and backwards in their last axis."""
    return [torch.from_numpy(np.stack([a, a[..., ::-1]])).to(device) for a in arrays]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_and_intervals(device: torch.device, shape: tuple[int, int, int, int]) -> None:
    tables, context, codes = stage(*shape)
    here = tables.on(device)
    offset, scale, code = batched(device, *context, codes)
    rows = kernel.mixture_rows(here, offset, scale)
    assert rows.shape == (2, shape[0], shape[3], shape[1]) and rows.dtype == torch.int32
    start, freq = kernel.mixture_frequencies(here, offset, scale, code)
    assert start.shape == freq.shape == code.shape
    coded = rans.coded_symbols(context[1], codes.shape)
    for group, position in np.ndindex(codes.shape):
        row = slow_row(tables, context, group, position)
        for item, p in ((0, position), (1, shape[3] - 1 - position)):
            assert rows[item, group, p].tolist() == row
            k = int(codes[group, position])
            found = int(start[item, group, p]), int(freq[item, group, p])
            assert found == ((sum(row[:k]), row[k]) if coded[group, position] else (0, 0))


@pytest.mark.parametrize("size", [2, 40, 300])
def test_static_prior(device: torch.device, size: int) -> None:
    tables, _, codes = stage(2, size, 2, 11)
    rows = kernel.mixture_rows(tables.on(device), None, None)
    expected = [slow_row(tables, (None, None), group, 0) for group in range(2)]
    assert rows[0, :, 0].tolist() == expected
    start, freq = kernel.mixture_frequencies(tables.on(device), None, None, torch.from_numpy(codes)[None].to(device))
    for group, position in np.ndindex(codes.shape):
        k = int(codes[group, position])
        assert int(start[0, group, position]) == sum(expected[group][:k])
        assert int(freq[0, group, position]) == expected[group][k]


@pytest.mark.parametrize("precision", [1, 514, 1 << 14])
@pytest.mark.parametrize("size,dimension", [(2, 1), (33, 64), (8192, 2)])
def test_limits(device: torch.device, size: int, dimension: int, precision: int) -> None:
    """Everything at its bound: no sum overflows."""
    rng = np.random.default_rng(size)
    codewords = rng.choice([-1023, 0, 1023], (1, size, dimension)).astype(np.int16)
    weights = rng.choice([-32768, 0, 32767], (1, size)).astype(np.int16)
    tables = PriorTables(codewords, weights, np.array([1, precision], np.int32))
    offset = rng.choice([-1023, 1023], (1, dimension, 1)).astype(np.int16)
    scale = np.ones((1, dimension, 1), np.uint8)
    row = slow_row(tables, (offset, scale), 0, 0)
    o, s = (torch.from_numpy(x)[None].to(device) for x in (offset, scale))
    assert kernel.mixture_rows(tables.on(device), o, s)[0, 0, 0].tolist() == row
    for k in (0, row.index(max(row)), size - 1):
        code = torch.full((1, 1, 1), k, dtype=torch.int32, device=device)
        start, freq = kernel.mixture_frequencies(tables.on(device), o, s, code)
        assert (int(start), int(freq)) == (sum(row[:k]), row[k])


def test_large(gpu: torch.device) -> None:
    tables, context, codes = stage(10, 961, 2, 20_011)
    offset, scale, code = batched(gpu, *context, codes)
    found = kernel.mixture_frequencies(tables.on(gpu), offset, scale, code)
    for group in range(10):
        one = tables.on(torch.device("cpu"))
        part = replace(one, codewords=one.codewords[[group]], log_weights=one.log_weights[[group]])
        arguments = (x[:, [group]].cpu() for x in (offset, scale, code))
        for a, b in zip(found, kernel.mixture_frequencies_reference(part, *arguments), strict=True):
            assert torch.equal(a[:, [group]].cpu(), b)
