"""Sizes of what residual bodies read and write: they change how a model trains, never what it computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import TINY, lively
from torch import Tensor

from mcodec import weights
from mcodec.errors import ModelError, TrainingError
from mcodec.model import Cascade
from mcodec.model.layers import LEAK, Block, Body, Gate, Pointwise
from mcodec.training import export, units


def picture() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3)) - 0.5


def outputs(model: Cascade) -> list[Tensor]:
    """What all blocks and corrections of the model return in one run, and the picture."""
    seen: list[Tensor] = []
    watched = [m for n, m in model.named_modules() if isinstance(m, Block) or n.endswith(".correct")]
    handles = [m.register_forward_hook(lambda _, inputs, output: seen.append(output)) for m in watched]
    with torch.no_grad():
        seen.append(model(picture(), torch.tensor([20.0, 200.0]), "noise").picture)
    for handle in handles:
        handle.remove()
    return seen


def run(model: Cascade) -> units.Run:
    return lambda: model(picture(), torch.tensor([20.0, 200.0]), "noise")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Cascade:
    monkeypatch.setattr(units, "OPEN", 1e-9)  # on a small picture every unit that opens counts
    model = lively(TINY)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Body):
                next(p for n, p in module.named_parameters() if n == "1.bias")[::2] = -100.0  # closed for good
    return model


def test_dead_units_open_again_and_the_function_stays(trained: Cascade) -> None:
    before, closed = outputs(trained), units.dead(trained, run(trained))
    assert closed > 0.4
    assert units.normalize(trained, run(trained), keep=True) > 0
    assert units.dead(trained, run(trained)) < closed / 4
    for a, b in zip(before, outputs(trained), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    sizes = [m.reads for m in trained.modules() if isinstance(m, Body)]
    assert any(not torch.allclose(size, torch.ones_like(size)) for size in sizes)


def test_a_release_has_no_sizes_and_the_same_function(trained: Cascade) -> None:
    units.normalize(trained, run(trained), keep=True)
    before = outputs(trained)
    units.fold(trained)
    assert all(bool((m.reads == 1).all()) and m.writes == 1 for m in trained.modules() if isinstance(m, Body))
    for a, b in zip(before, outputs(trained), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_fresh_model_reads_unit_size() -> None:
    torch.manual_seed(0)
    model = Cascade(TINY)
    weights = {k: v.clone() for k, v in model.named_parameters()}
    assert units.normalize(model, run(model), keep=False) == 0
    for name, value in model.named_parameters():
        assert torch.equal(value, weights[name]), name
    seen: list[Tensor] = []
    body = next(m for m in model.modules() if isinstance(m, Body))
    body[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0] * inputs[1]))
    run(model)()
    assert float(seen[0].detach().square().mean().sqrt()) == pytest.approx(1, abs=0.3)


def test_a_gate_is_a_relu_that_can_open_again() -> None:
    x = torch.tensor([-2.0, -0.5, 0.5, 3.0], requires_grad=True)
    Gate()(x).backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert x.grad is not None
    torch.testing.assert_close(Gate()(x), x.clamp(min=0))
    torch.testing.assert_close(x.grad, torch.tensor([LEAK, 2 * LEAK, 3.0, 4.0]))
    y = x.detach().requires_grad_()
    Gate().eval()(y).sum().backward()
    assert y.grad is not None and y.grad.tolist() == [0, 0, 1, 1]


def test_a_release_leaves_idle_units_out_and_training_draws_them_anew(
    trained: Cascade, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "LEFT_OUT", 0.0)  # nothing that adds anything
    monkeypatch.setattr(units, "WIDTH", 1)
    before, widths = outputs(trained), [m.width for m in trained.modules() if isinstance(m, Body)]
    share = units.prune(trained, run(trained))
    bodies = [m for m in trained.modules() if isinstance(m, Body)]
    assert 0 < share < 0.6 and share == sum(m.width for m in bodies) / sum(widths)
    for a, b in zip(before, outputs(trained), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

    units.widen(trained)
    assert [m.width for m in bodies] == widths
    for a, b in zip(before, outputs(trained), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert units.dead(trained, run(trained)) < 0.4  # drawn at random, half of them open


def test_pruning_keeps_what_adds_most_in_round_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "LEFT_OUT", 1.0)  # everything may go
    monkeypatch.setattr(units, "WIDTH", 4)
    model = lively(TINY)
    units.prune(model, run(model))
    assert {m.width for m in model.modules() if isinstance(m, Body)} == {4}


def test_what_one_picture_lives_by_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit that is open in one picture of nine adds little on average, and all there is to that one."""
    monkeypatch.setattr(units, "LEFT_OUT", 0.3)
    monkeypatch.setattr(units, "WIDTH", 1)
    body = Body(2, Pointwise(2, 2), Gate(), Pointwise(2, 2))
    with torch.no_grad():
        for layer in (body[0], body[2]):
            layer.weight.copy_(torch.eye(2))
    usual, rare = (torch.tensor(channels).reshape(1, 2, 1, 1) for channels in ((1.0, 0.0), (0.0, 0.5)))
    monkeypatch.setattr(units, "_bodies", lambda model: [body])
    assert units.prune(lively(TINY), lambda: [body(x) for x in [usual] * 8 + [rare]]) == 1
    assert units.prune(lively(TINY), lambda: [body(x) for x in [usual] * 8]) == 0.5


def test_units_are_judged_by_crops_as_large_as_each_picture_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiple, sizes = TINY.multiple, []
    for name, side in (("a", 3 * multiple + 1), ("b", multiple - 1), ("c", multiple)):
        Image.new("RGB", (side, side)).save(tmp_path / f"{name}.png")
    model = lively(TINY)
    model.register_forward_pre_hook(lambda module, inputs: sizes.append(tuple(inputs[0].shape)))
    export.prune(model, [tmp_path])
    assert set(sizes) == {(1, 3, 3 * multiple, 3 * multiple), (1, 3, multiple, multiple)}
    with pytest.raises(TrainingError, match=f"no picture to judge units by is at least {multiple}x{multiple}"):
        export.prune(model, [tmp_path / "b.png"])


def test_weights_without_idle_units_are_saved_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "LEFT_OUT", 0.3)
    monkeypatch.setattr(units, "WIDTH", 1)
    model = lively(TINY)
    assert units.prune(model, run(model)) < 1
    weights.save(model, tmp_path / "narrow.safetensors", {})
    read, _ = weights.load(tmp_path / "narrow.safetensors")
    kept = {n: m.width for n, m in model.named_modules() if isinstance(m, Body)}
    assert {n: m.width for n, m in read.named_modules() if isinstance(m, Body)} == kept

    stored = weights.release_tensors(model)
    name = next(iter(kept))
    last = f"{name}.{len(model.get_submodule(name)) - 1}.weight"
    for shape in ((), (3,), (len(stored[last]), 0), (len(stored[last]), 1000)):
        with pytest.raises(ModelError, match="shape"):
            weights.load_tensors(Cascade(TINY), {**stored, last: torch.zeros(shape)})
