"""The context network's integers: bounds that are tight and enforced, and equal in every form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import TINY, lively

from mcodec import weights
from mcodec.api import Codec
from mcodec.bench.determinism import FORMS, REFERENCE, Coded, Form, convolutions, replay
from mcodec.errors import ModelError
from mcodec.model.bounds import EXACT, bounds, check, layer_bound
from mcodec.model.context import LIMIT, IntegerLayer

Make = Callable[..., NDArray[np.uint8]]


@pytest.fixture(scope="module")
def coded(tiny: Codec) -> list[Coded]:
    """Nine codings of noise: eight of one size, so that every batch size occurs, and one of another."""
    rng = np.random.default_rng(0)
    sizes = [(32, 64)] * 8 + [(33, 40)]
    out = []
    for index, size in enumerate(sizes):
        quality = 10 + 10 * index
        picture = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        out.append(Coded.of(tiny, picture, quality))
    return out


# ---- bounds ----


@pytest.mark.parametrize("shape", [(5, 24), (6, 3, 3)], ids=["pointwise", "depthwise"])
def test_a_bound_is_reached(shape: tuple[int, ...]) -> None:
    """The worst input, in Python's integers: not one unit less would do."""
    torch.manual_seed(0)
    layer = IntegerLayer(shape, 7)
    with torch.no_grad():
        layer.bias.normal_(0, 3)
    channels = shape[0] if len(shape) == 3 else shape[1]
    reach = torch.randint(1, LIMIT + 1, (channels,))
    weight, bias = (value.long() for value in layer.integers())
    worst = 0
    for o, row in enumerate(weight.flatten(1).tolist()):
        bounds_of_input = [int(reach[o])] * 9 if len(shape) == 3 else reach.tolist()
        sign = -1 if bias[o] < 0 else 1
        inputs = [sign * r if w >= 0 else -sign * r for w, r in zip(row, bounds_of_input, strict=True)]
        worst = max(worst, abs(int(bias[o]) + sum(w * x for w, x in zip(row, inputs, strict=True))))
    assert layer_bound("x", layer, reach).accumulator == worst + 64  # 2^(shift - 1), added when requantizing


def test_every_layer_is_bounded(tiny: Codec) -> None:
    layers = [m for m in tiny.model.modules() if isinstance(m, IntegerLayer)]
    found = list(bounds(tiny.model))
    assert len(found) == len(layers) and all(b.holds for b in found)
    embed = next(b for b in found if b.layer == "stage 0 embed")
    assert embed.fan_in == 2 * TINY.stages[0].width
    assert embed.input == int(tiny.model.stage(0).codebooks.integers()[2].abs().max())


def test_a_layer_beyond_the_bound_is_refused() -> None:
    model = lively(TINY)
    wide = IntegerLayer((3, 1100), 7)
    with torch.no_grad():
        wide.weight.fill_(1.0)  # 127 of 127
    assert layer_bound("wide", wide, torch.full((1100,), LIMIT)).accumulator > EXACT
    model.stage(1).context.offset = wide
    with pytest.raises(ModelError, match="weights: stage 1 offset can reach 17741964, 16777216 would not be exact"):
        check(model)


BAD: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor], str]] = {
    "bias": ("stages.1.context.offset.bias", lambda t: t + 2**23, "offset has values that are no integers in range"),
    "weight": ("stages.0.context.scale.weight", lambda t: t.float() + 0.5, "scale has values that are no integers"),
    "rows": ("stages.2.context.quality.rows", lambda t: t[:-1], r"quality table must be int8 \[256, 24\], got int8"),
    "float rows": ("stages.2.context.quality.rows", lambda t: t * 0.5, "quality table must be int8 .* got float32"),
    "coordinates": ("stages.1.codebooks.coordinates", lambda t: t * 0.5, "stage 1: coordinates must be int8"),
    "a coordinate": (
        "stages.1.codebooks.coordinates", lambda t: torch.full_like(t, -128), "coordinates must be from -127 to 127"
    ),
    "codewords": ("stages.3.codebooks.integer_codewords", lambda t: t * 0 + 1024, "stage 3: codewords must be at most"),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_weights_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, change, message = BAD[name]
    tensors = weights.release_tensors(lively(TINY))
    tensors[key] = change(tensors[key]).contiguous()
    monkeypatch.setattr(weights, "release_tensors", lambda _: tensors)
    path = tmp_path / "bad.safetensors"
    weights.save(lively(TINY), path, {})
    with pytest.raises(ModelError, match=message):
        weights.load(path)


@pytest.mark.parametrize("change", [{"context_channels": 0}, {"sigma_min": 0.0}, {"lambda_min": 0.0}], ids=str)
def test_impossible_configurations_are_refused(change: dict[str, float], tmp_path: Path) -> None:
    model, path = lively(TINY), tmp_path / "bad.safetensors"
    model.config = replace(TINY, **change)  # type: ignore[arg-type]
    weights.save(model, path, {})
    with pytest.raises(ModelError, match="a configuration that is no model"):
        weights.load(path)


# ---- replay ----


def test_every_form_gives_the_same(tiny: Codec, coded: list[Coded]) -> None:
    done = replay(tiny, coded, FORMS)
    positions = [[codes.numel() for codes in item.codes] for item in coded]
    per_form = sum(n * 2 * stage.dim for item in positions for n, stage in zip(item, TINY.stages, strict=True))
    assert {name: count.compared for name, count in done.forms.items()} == dict.fromkeys(FORMS, per_form)
    logits = sum(n * stage.codewords for item in positions for n, stage in zip(item, TINY.stages, strict=True))
    assert done.logits.compared == logits
    assert done.agrees and done.parameters.different == 0


def half_sums(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """What a network in bfloat16 does: accumulators lose their low bits."""
    return convolutions(x, weight, bias).bfloat16().float()


@pytest.mark.parametrize(
    "form",
    [replace(REFERENCE, product=half_sums), replace(REFERENCE, product=lambda x, w, b: convolutions(x, w, b + 1))],
    ids=["bfloat16 sums", "one unit"],
)
def test_a_difference_is_seen(tiny: Codec, coded: list[Coded], form: Form) -> None:
    done = replay(tiny, coded[-1:], {"wrong": form})
    assert done.forms["wrong"].different > 0 and not done.agrees
