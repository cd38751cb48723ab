"""Shifts of the prior's scales: what they do, how they are found, and files that hold them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mcodec import container, tiles
from mcodec.api import Codec
from mcodec.container import TAG_SHIFTS
from mcodec.errors import CorruptStream
from mcodec.model import shifts
from mcodec.model.prior import sigma

Make = Callable[..., NDArray[np.uint8]]
LEAST = 0.16


def test_what_moves() -> None:
    """docs/FORMAT.md, step 2: by twice the shift, within 1 to 127; 0 stays."""
    scale = torch.tensor([[0, 1, 2, 60, 126, 127]]).repeat(3, 1)
    found = shifts.moved(scale, torch.tensor([0, -8, 7]))
    assert found.tolist() == [[0, 1, 2, 60, 126, 127], [0, 1, 1, 44, 110, 111], [0, 15, 16, 74, 127, 127]]
    floats = scale.float().requires_grad_()
    moved = shifts.moved(floats, torch.tensor([0, -8, 7]))
    assert torch.equal(moved, found.float())
    assert torch.autograd.grad(moved.sum(), floats)[0][0, 3] == 1  # the search goes through it


@pytest.mark.parametrize("wrong", [-5, 0, 4])
def test_a_wrong_scale_is_found(device: torch.device, wrong: int) -> None:
    """Latents drawn from a prior other than the one that is handed in; one item of each is right."""
    generator = torch.Generator().manual_seed(wrong)
    scale = torch.randint(30, 70, (2, 6, 500), generator=generator)
    scale[:, :, ::3] = 0
    offset = torch.randint(-20, 20, scale.shape, generator=generator)
    actual = shifts.moved(scale, torch.tensor([wrong, 0]))
    drawn = torch.randn(scale.shape, generator=generator) * sigma(actual.float(), LEAST) + offset / 16
    value = torch.where(scale > 0, drawn.round(), 1e3)  # what is not coded does not count
    parts = (part.to(device) for part in (value, offset.float(), scale.float()))
    assert shifts.best(*parts, LEAST, 1).tolist() == [wrong, 0]


def test_what_does_not_pay_is_left_out() -> None:
    scale, offset = torch.full((1, 2, 3), 50.0), torch.zeros(1, 2, 3)
    assert shifts.best(offset, offset, scale, LEAST, 1).tolist() == [0]  # would be narrower, but for a few bits
    assert shifts.best(offset, offset, scale, LEAST, 1000)[0] < 0
    nothing = torch.zeros(1, 2, 0)
    assert shifts.best(nothing, nothing, nothing, LEAST, 1).tolist() == [0]


@given(st.integers(1, 9).flatmap(lambda stages: st.lists(
    st.lists(st.sampled_from(tiles.SHIFTS), min_size=stages, max_size=stages), min_size=1, max_size=7)))
def test_sections(moves: list[list[int]]) -> None:
    payload = tiles.pack_shifts(moves)
    assert tiles.unpack_shifts(payload or None, len(moves[0]), len(moves)) == moves
    assert bool(payload) == any(map(any, moves))
    if payload:  # docs/FORMAT.md: stage by stage, within a stage tile by tile, the low half first
        halves = [half for byte in payload for half in (byte % 16, byte // 16)]
        numbers = [half - 16 * (half > 7) for half in halves]
        assert numbers[: len(moves) * len(moves[0])] == [tile[s] for s in range(len(moves[0])) for tile in moves]


def test_sections_that_cannot_be() -> None:
    for length in (0, 1, 3, 8):
        with pytest.raises(CorruptStream, match=f"{length} bytes cannot be the shifts of 4 stages and 1 tiles"):
            tiles.unpack_shifts(bytes(length), 4, 1)
    with pytest.raises(CorruptStream, match="more shifts than stages"):
        tiles.unpack_shifts(b"\x01\x10", 3, 1)


@pytest.mark.parametrize("tile", [64, 1024])
@pytest.mark.parametrize("effort", [1, 2])
def test_files(tiny: Codec, picture: Make, tile: int, effort: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller with shifts than without, and every way of reading takes them into account."""
    monkeypatch.setattr(tiny, "tile", tile)
    pixels = picture(100, 130)
    with mock.patch.object(shifts, "TRIED", range(0, 1)):
        plain = tiny.encode(pixels, 60, effort=effort)
    assert container.unpack(plain).section(TAG_SHIFTS) is None
    data, codes = tiny.encode_with_codes(pixels, 60, effort=effort)
    file = container.unpack(data)
    moves = file.shifts(tiny.stages)
    assert any(map(any, moves)) and len(data) < len(plain)  # random weights: their scales are far off

    assert all(map(torch.equal, tiny.codes(data), codes))
    both = tiny.codes_batch([plain, data])
    assert all(map(torch.equal, both[1], codes)) and all(map(torch.equal, both[0], tiny.codes(plain)))
    decoded = tiny.decode_array(data)
    assert np.array_equal(tiny.decode_array(data, partial=True), decoded)
    assert np.array_equal(tiny.decode_array(data, region=(60, 50, 30, 40)), decoded[50:90, 60:90])
    assert sum(tiny.stage_bytes(data)) == sum(map(len, (stream for tile in file.streams.pieces for stream in tile)))
    for backend in ("numpy", "tensor"):
        monkeypatch.setenv("MCODEC_ENTROPY", backend)
        assert tiny.encode(pixels, 60, effort=effort) == data
        assert all(map(torch.equal, tiny.codes(data), codes))


def test_files_with_other_shifts(tiny: Codec, picture: Make) -> None:
    file = container.unpack(tiny.encode(picture(64, 64), 60))
    for payload in (b"\x12", b"\x12\x34\x56"):
        with pytest.raises(CorruptStream, match="cannot be the shifts of 4 stages"):
            tiny.decode(container.pack(replace(file, sections=((TAG_SHIFTS, payload),))))
