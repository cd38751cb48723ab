"""Networks: the starting point, the integer context network, the prior."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import TINY, lively

from mcodec import weights
from mcodec.errors import ModelError
from mcodec.kernels import context_layer
from mcodec.kernels.float_prior import mixture_logits
from mcodec.model import PRESETS, Cascade, ModelConfig, StageConfig, dct, level_of, quality_of
from mcodec.model.context import IntegerLayer
from mcodec.model.layers import Lapped, Response
from mcodec.model.prior import gaussian, noisy_bits, precision_table, sigma
from mcodec.model.quantizer import lattice
from mcodec.model.transforms import Down, Rise


def test_basis_is_orthonormal() -> None:
    for stride, count in ((4, 48), (8, 64), (16, 32), (64, 24)):
        flat = dct.basis(stride, count).flatten(1)
        assert torch.allclose(flat @ flat.T, torch.eye(len(flat), dtype=flat.dtype), atol=1e-9)


def test_pyramid_down_is_the_block_transform() -> None:
    """Applying `down` to stride-4 pixels gives the 8x8 DCT coefficients at half scale."""
    x = torch.randn(1, 3, 16, 16)
    pixels = torch.nn.functional.pixel_unshuffle(torch.nn.functional.pixel_unshuffle(x, 4), 2)
    coefficients = torch.einsum("nk,bkhw->bnhw", dct.down(4, 48, 20), pixels)
    block = dct.basis(8, 20).float()
    expected = torch.einsum("ncij,cij->n", block, x[0, :, :8, 8:16]) / 2
    assert torch.allclose(coefficients[0, :, 0, 1], expected, atol=1e-5)


def test_lapped_transform_is_undone_and_gains() -> None:
    """Synthesis undoes analysis, and coding gain on an AR(1) source of 0.95 is what the construction promises."""
    forward, backward = Lapped(dct.lapping()), Lapped(torch.linalg.inv(dct.lapping()))
    x = torch.rand(2, 3, 32, 24)
    assert torch.allclose(backward(forward(x)), x, atol=1e-5)
    assert torch.equal(forward(x)[:, :, :4, :4], x[:, :, :4, :4])  # nothing beyond the picture's border

    def gain(matrix: torch.Tensor) -> float:
        blocks = 6
        places = torch.arange(8 * blocks)
        covariance = 0.95 ** (places[:, None] - places[None]).abs().double()
        across = torch.block_diag(torch.eye(4), *[matrix] * (blocks - 1), torch.eye(4)).double()
        transform = torch.block_diag(*[dct._dct_matrix(8)] * blocks) @ across
        middle = slice(16, 24)
        variance = (transform @ covariance @ transform.T).diagonal()[middle]
        norm = torch.linalg.inv(transform).square().sum(0)[middle]
        return -10 * float((variance * norm).log10().mean())

    assert gain(torch.eye(8, dtype=torch.float64)) == pytest.approx(8.83, abs=0.01)
    assert gain(dct.lapping()) == pytest.approx(9.55, abs=0.01)


def test_response_starts_in_proportion_to_a_power_of_lambda() -> None:
    config = PRESETS["cascade-large"]
    factor = Response(config)(torch.tensor([0.0, 127.5, 255.0])).flatten()
    end = (config.lambda_max / config.lambda_min) ** (config.response / 2)
    assert factor.tolist() == pytest.approx([end, 1, 1 / end], rel=1e-4)


def test_patches_are_ordered_as_pixels_are_shuffled() -> None:
    torch.manual_seed(0)
    down, rise = Down(4 * 3, 5), Rise(5, 4 * 3)
    for layer in (down, rise):
        torch.nn.init.normal_(layer.bias)
    x, y = torch.randn(2, 3, 6, 4), torch.randn(2, 5, 3, 2)
    flat = torch.nn.functional.pixel_unshuffle(x, 2)
    wanted = torch.einsum("oi,bihw->bohw", down.weight, flat) + down.bias[:, None, None]
    torch.testing.assert_close(down(x), wanted)
    wanted = torch.einsum("oi,bihw->bohw", rise.weight, y) + rise.bias[:, None, None]
    torch.testing.assert_close(rise(y), torch.nn.functional.pixel_shuffle(wanted, 2))


def test_a_pass_over_released_weights(tmp_path: Path) -> None:
    """Their tables of quality give what the anchors gave, to a rounding of the anchors."""
    model = lively(TINY)
    weights.save(model, tmp_path / "tiny.safetensors", {})
    released, _ = weights.load(tmp_path / "tiny.safetensors")
    x, level = torch.rand(3, 3, 64, 64) - 0.5, torch.tensor([0.0, 100.0, 255.0])
    with torch.no_grad():
        one, other = (each(x, level, "hard").bits for each in (model, released))
    assert torch.allclose(one, other, rtol=0.02)


@pytest.mark.parametrize("name", ["cascade-small", "cascade-large"])
def test_untrained_model_is_already_a_codec(name: str) -> None:
    """From the DCT start, finer quality means a better picture, without one training step."""
    torch.manual_seed(0)
    model = Cascade(PRESETS[name]).eval()
    ramp = torch.linspace(-0.4, 0.4, 128)
    x = (ramp[:, None] * torch.sin(ramp * 40)[None, :]).expand(1, 3, 128, 128).contiguous()
    errors = []
    with torch.no_grad():
        model(x, torch.tensor([255.0]), "noise", calibrate=True)
        for level in (0.0, 128.0, 255.0):
            picture = model(x, torch.tensor([level]), "noise").picture
            errors.append(float(-10 * (picture - x).square().mean().log10()))
    assert errors[0] > 22 and errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.int64, torch.bfloat16], ids=str)
def test_context_layers_are_exact_in_every_type(dtype: torch.dtype) -> None:
    """float32 gives the integers that int64 gives, at the largest fan-in and with extreme values."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(-127, 128, (2, 512, 5, 7), generator=generator)
    w = torch.randint(-127, 128, (33, 512), generator=generator)
    x[0], w[0] = 127, 127  # the largest accumulator there is
    b = torch.randint(-5000, 5000, (33,), generator=generator)
    exact = context_layer.pointwise(x, w, b, 7, -127, 127)
    depth = torch.randint(-127, 128, (512, 3, 3), generator=generator)
    exact_depth = context_layer.depthwise(x, depth, b.repeat(16)[:512], 6, -127, 127)
    # bfloat16 operands go into float32 accumulators, as tensor cores do
    held = x.to(dtype).float() if dtype is torch.bfloat16 else x.to(dtype)
    for other in (held, x.float()):
        assert torch.equal(context_layer.pointwise(other, w, b, 7, -127, 127).long(), exact)
        got = context_layer.depthwise(other, depth, b.repeat(16)[:512], 6, -127, 127)
        assert torch.equal(got.long(), exact_depth)


def test_training_forward_has_the_integers_of_inference() -> None:
    """Fake quantization: with gradients enabled the layer returns what it returns without."""
    torch.manual_seed(3)
    x = torch.randint(-127, 128, (2, 24, 9, 8)).float()
    for shape, shift in (((24, 24), 7), ((24, 3, 3), 6)):
        layer = IntegerLayer(shape, shift)
        trained = layer(x)
        with torch.no_grad():
            assert torch.equal(trained, layer(x))
        trained.sum().backward()
        assert layer.weight.grad is not None and float(layer.weight.grad.abs().sum()) > 0


def test_integer_weights_survive_a_round_trip() -> None:
    layer, other = IntegerLayer((8, 16), 7), IntegerLayer((8, 16), 7)
    with torch.no_grad():
        layer.bias.normal_()
    other.load_integers(*layer.integers())
    assert all(torch.equal(a, b) for a, b in zip(layer.integers(), other.integers(), strict=True))


def test_kept_integers_follow_the_weights() -> None:
    layer = IntegerLayer((4, 3), 7).requires_grad_(False)
    x = torch.randint(-127, 128, (1, 3, 2, 2)).float()
    with torch.no_grad():
        before = layer(x)
        assert torch.equal(layer(x), before)
        layer.weight.neg_()
        turned = layer(x)
        layer.requires_grad_(True)
        assert torch.equal(layer(x), turned) and not torch.equal(turned, before)


def test_context_fan_in_is_bounded() -> None:
    for config in PRESETS.values():
        assert config.context_channels <= 512
        assert config.prior == "static" or max(2 * s.width for s in config.stages) <= 512
    with pytest.raises(ModelError, match="24-bit"):
        ModelConfig("x", (StageConfig(8, 1, 9),), {8: 8, 4: 48}, {}, {}, context_channels=513)


def test_lattice_starts_at_the_origin() -> None:
    points, radius = lattice(StageConfig(8, groups=1, codewords=225))
    assert radius == 7 and points[0].tolist() == [0, 0] and len(points.unique(dim=0)) == 225
    with pytest.raises(ValueError, match="no square lattice"):
        lattice(StageConfig(8, groups=1, codewords=200))


def test_precision_table_matches_the_gaussian() -> None:
    """The odds of a neighbouring step are those of a Gaussian integrated over steps."""
    table = precision_table(0.13)
    assert table.dtype == torch.int32 and int(table.min()) >= 1 and int(table.max()) <= 2**14
    index = torch.tensor(60.0)
    bits = noisy_bits(torch.tensor([0.0, 1.0]), torch.zeros(2), index.expand(2), 0.13)
    codewords = torch.tensor([[[0.0], [1.0]]])
    prior = gaussian(torch.zeros(1, 1, 1, 1), index.reshape(1, 1, 1, 1), table)
    logits = mixture_logits(codewords, torch.zeros(1, 2), *prior)
    odds = float(logits[0, 0, 0, 0] - logits[0, 0, 0, 1]) / math.log(2)
    assert odds == pytest.approx(float(bits[1] - bits[0]), rel=0.02)
    assert float(sigma(torch.tensor(16.0), 0.13)) == pytest.approx(0.26)


def test_mixture_logits_against_the_definition() -> None:
    torch.manual_seed(0)
    codewords, weights = torch.randn(3, 7, 2) * 3, torch.randn(3, 7)
    g, s = torch.randint(-60, 60, (2, 3, 2, 5)).float(), torch.randint(40, 100, (2, 3, 2, 5)).float()
    table = precision_table(0.13)
    got = mixture_logits(codewords, weights, *gaussian(g, s, table))
    nats = table[s.long()] * (math.log(2) / 64 * 256 / 1024)
    for b, m, p, k in ((0, 0, 0, 0), (1, 2, 4, 6), (0, 1, 3, 2)):
        square = nats[b, m, :, p] * (codewords[m, k] - g[b, m, :, p] / 16) ** 2
        # the expanded square leaves out what does not depend on k
        rest = (nats[b, m, :, p] * (g[b, m, :, p] / 16) ** 2).sum()
        assert float(got[b, m, p, k]) == pytest.approx(float(weights[m, k] - square.sum() + rest), abs=2e-3)


def test_quality_levels() -> None:
    assert [level_of(q) for q in (1, 100)] == [0, 255]
    assert all(abs(quality_of(level_of(q)) - q) < 0.2 for q in range(1, 101))
    with pytest.raises(ValueError, match="from 1 to 100"):
        level_of(0)


@pytest.mark.parametrize("name", list(PRESETS))
def test_configurations_survive_json(name: str) -> None:
    import json

    config = PRESETS[name]
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    for change, said in (
        ({"version": 2}, "version 2 of a model is not one that this release knows"),
        ({"channels": {64: 8, 16: 8, 8: 8, 4: 8}}, "need channels of 4, 8 and so on"),
        ({"stages": tuple(replace(s, stride=s.stride - 1) for s in config.stages)}, "need channels"),
        ({"stages": ()}, "stage strides must fall"),
    ):
        with pytest.raises(ModelError, match=said):
            replace(config, **change)
    with pytest.raises(ModelError, match="a static prior reaches all codewords"):
        replace(PRESETS["umgm"], reach=64)
    with pytest.raises(ModelError):
        ModelConfig.from_dict({"name": "x"})


@pytest.mark.parametrize("mode", ["noise", "hard"])
def test_training_modes_reach_every_parameter(mode: str) -> None:
    model = lively(TINY).train()
    x, level = torch.rand(2, 3, 64, 64) - 0.5, torch.tensor([30.0, 200.0])
    out = model(x, level, mode)
    (out.bits.sum() / 1000 + (out.picture - x).square().sum()).backward()
    idle = {n for n, p in model.named_parameters() if p.grad is None or float(p.grad.abs().sum()) == 0}
    expected = {n for n, _ in model.named_parameters() if n.endswith("temperature")}  # Gumbel only
    expected |= {f"stages.3.context.embed.{k}" for k in ("weight", "bias")}  # nothing follows the last stage
    expected |= {"stages.0.predict.weight"}  # the first state is zero
    if mode == "noise":
        expected |= {n for n, _ in model.named_parameters() if n.endswith((".codewords", ".log_weights"))}
    assert idle == expected, idle - expected
