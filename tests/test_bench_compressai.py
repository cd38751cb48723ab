"""Networks as peers: CompressAI's models as codecs, and mcodec as one of CompressAI's models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TINY, lively

from mcodec.api import Codec
from mcodec.bench import codecs, learned, metrics
from mcodec.bench.protocol import Unavailable
from mcodec.bench.speed import of_mcodec, seconds_of_parts, sized
from mcodec.errors import BenchError


def test_files_of_strings() -> None:
    packed = learned.pack(300, 1000, (5, 16), [b"abc", b"", b"z" * 70000])
    assert len(packed) == 9 + 3 * 4 + 3 + 70000
    assert learned.unpack(packed) == (300, 1000, (5, 16), [b"abc", b"", b"z" * 70000])


def test_padding() -> None:
    x = learned.padded(np.full((65, 10, 3), 255, np.uint8), "cpu")
    assert x.shape == (1, 3, 128, 64) and x[:, :, :65, :10].min() == 1 and x.sum() == 3 * 65 * 10


def test_model_interface_of_mcodec() -> None:
    """A CompressAI model's `compress` and `decompress`: the strings are .mci files."""
    import mcodec

    model = learned.McodecModel(40)
    x = torch.rand(2, 3, 40, 64)
    coded = model.compress(x)
    pixels = (x[1] * 255).round().to(torch.uint8)
    assert coded["shape"] == (40, 64)
    assert coded["strings"][0][1] == mcodec.load(device="cpu").encode(pixels, 40)
    decoded = model.decompress(coded["strings"], coded["shape"])["x_hat"]
    assert decoded.shape == x.shape and decoded.min() >= 0 and decoded.max() <= 1
    assert next(model.parameters()).device.type == "cpu"


def test_speed_of_mcodec(tiny: Codec) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    timings = of_mcodec(tiny, pixels, 2, 50, repeat=2)
    assert [t.what for t in timings] == ["encode", "decode"]
    for timing in timings:
        assert timing.seconds[0] <= timing.seconds[1] <= timing.seconds[2]
        assert set(timing.parts) == {"transform", "context", "coder"} and sum(timing.parts.values()) == pytest.approx(1)
    large = sized(pixels, 100, 120)
    assert large.shape == (120, 100, 3)
    np.testing.assert_array_equal(large[:48, 64:], pixels[:, :-37:-1])
    np.testing.assert_array_equal(sized(pixels, 10, 20), pixels[:20, :10])


def test_parts_of_several_tiles() -> None:
    """One thread works on them, so that no time counts twice; afterwards as many as before."""
    codec, pixels = Codec(lively(TINY), b"tinytiny"), np.zeros((64, 200, 3), np.uint8)
    codec.tile, codec.tile_workers = 64, 2
    seen: list[int] = []

    def run() -> None:
        seen.append(codec.tile_workers)
        codec.encode(pixels)

    seconds = seconds_of_parts(codec, run)
    assert seen == [1] and codec.tile_workers == 2
    assert seconds["other"] >= 0
    with pytest.raises(ZeroDivisionError):
        seconds_of_parts(codec, lambda: 1 // 0)
    assert codec.tile_workers == 2


# ---- with CompressAI ----


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two untrained checkpoints of a small model."""
    zoo = pytest.importorskip("compressai.zoo", reason="CompressAI is not installed")
    folder = tmp_path_factory.mktemp("checkpoints")
    for quality in (1, 2):
        torch.manual_seed(quality)
        model = zoo.image_models["bmshj2018-hyperprior"](quality=quality, pretrained=False)
        torch.save({"state_dict": model.state_dict()}, folder / f"q{quality}.pth.tar")
    return folder


@pytest.mark.filterwarnings("ignore")
def test_models_as_codecs(checkpoints: Path) -> None:
    """What the file decodes to is what the model itself gives."""
    codec = codecs.make(f"bmshj2018-hyperprior:{checkpoints}")
    assert codec.qualities == (1, 2) and "weights " in codec.version
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype(np.uint8)
    data = codec.encode(pixels, 2)
    decoded = codec.decode(data)
    assert decoded.shape == pixels.shape and metrics.psnr(pixels, decoded) > 3
    assert isinstance(codec, learned.CompressAICodec)
    model = codec._model(2)
    with torch.no_grad():
        out = model.compress(learned.padded(pixels, "cpu"))
        x = model.decompress(out["strings"], out["shape"])["x_hat"][0, :, :70, :90]
    np.testing.assert_array_equal(decoded, (x * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy())
    assert sum(len(s[0]) for s in out["strings"]) < len(data) < sum(len(s[0]) for s in out["strings"]) + 30
    with pytest.raises(BenchError, match="qualities 1 to 2, got 3"):
        codec.encode(pixels, 3)


@pytest.mark.filterwarnings("ignore")
def test_models_need_weights(checkpoints: Path) -> None:
    with pytest.raises(Unavailable, match="mbt2018-mean needs trained weights"):
        codecs.make("mbt2018-mean")
    with pytest.raises(BenchError, match="no checkpoint"):
        codecs.make(f"mbt2018-mean:{checkpoints / 'none.pth'}")


@pytest.mark.filterwarnings("ignore")
def test_eval_model_drives_mcodec(checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CompressAI's own evaluation counts the bytes of our files."""
    from compressai.registry import MODELS
    from compressai.utils.eval_model.__main__ import main
    from PIL import Image

    import mcodec

    learned.register()
    assert MODELS["mcodec"] is learned.McodecModel
    y, x = np.mgrid[:192, :256]
    pixels = np.stack([x, y, (x + y) // 2], -1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    main(["pretrained", str(tmp_path), "-a", "mcodec", "-q", "30,60"])
    found = json.loads(capsys.readouterr().out)
    sizes = [len(mcodec.load(device="cpu").encode(pixels, q)) * 8 / pixels[..., 0].size for q in (30, 60)]
    assert found["results"]["bpp"] == pytest.approx(sizes)
