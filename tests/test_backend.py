"""The choice of kernels, and whole codecs on each of them: every stream decodes everywhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from settings import CODERS, coded_by
from tiny import TINY, TINY_UMGM, lively

import mcodec
from mcodec.api import Codec
from mcodec.entropy import coder
from mcodec.kernels import backend

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def all_pairs(codec: Codec, pictures: list[NDArray[np.uint8]], qualities: list[float]) -> None:
    """Encoded by each of CODERS, decoded by all."""
    streams = []
    for name in CODERS:
        with coded_by(name, codec) as here:
            streams += here.encode_batch(pictures, qualities)
    streams = sorted(set(streams))  # equal codes give equal bytes
    found = []
    for name in CODERS:
        with coded_by(name, codec) as here:
            found.append([torch.stack(stage) for stage in zip(*here.codes_batch(streams), strict=True)])
    for codes in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(codes, found[0], strict=True))
    assert len({bytes(stage.numpy().tobytes()) for stage in found[0]}) > 1


@pytest.mark.parametrize("config", [TINY, TINY_UMGM], ids=["mixture", "static"])
def test_every_coder_reads_every_other(
    picture: Callable[..., NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch, config: mcodec.model.ModelConfig
) -> None:
    monkeypatch.setattr(coder, "SURPRISE_PER_LANE", 5 << 16)  # several lanes even here
    all_pairs(Codec(lively(config), b"tinytiny"), [picture(32, 32, seed) for seed in range(2)], [30, 80])


KODAK = os.environ.get("MCODEC_KODAK")


@pytest.mark.skipif(not KODAK, reason="MCODEC_KODAK names no folder with the Kodak pictures")
def test_every_coder_reads_every_other_on_kodak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coder, "SURPRISE_PER_LANE", 16 << 16)  # lanes enough for few steps in the interpreter
    path = sorted(Path(str(KODAK)).glob("*.png"))[18]
    crop = np.asarray(Image.open(path).convert("RGB"))[200:264, 200:264]
    all_pairs(mcodec.load(device="cpu"), [crop] * 3, [10, 50, 90])


# ---------------------------------------------------------------------------------------------------- the choice


def test_unknown_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCODEC_KERNELS", "cuda")
    with pytest.raises(ValueError) as caught:
        backend.use_triton(CPU)
    assert str(caught.value) == "MCODEC_KERNELS must be one of auto, reference, triton, got 'cuda'"


def test_choice_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "triton", object())
    monkeypatch.setattr(backend, "interpreted", lambda: False)
    monkeypatch.delenv("MCODEC_KERNELS", raising=False)
    assert backend.use_triton(CUDA) and not backend.use_triton(CPU)
    monkeypatch.setenv("MCODEC_KERNELS", "reference")
    assert not backend.use_triton(CUDA)
    monkeypatch.setenv("MCODEC_KERNELS", "triton")
    assert backend.use_triton(CUDA)
    with pytest.raises(ValueError, match="tensors are on cpu, where only its interpreter runs"):
        backend.use_triton(CPU)


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not installed: a warning, once. Installed and broken, or asked for: its own failure, on use."""
    absent, broken = ModuleNotFoundError("No module named 'triton'", name="triton"), ImportError("libtriton: no symbol")
    monkeypatch.setattr(backend, "triton", None)
    monkeypatch.setattr(backend, "_failure", absent)
    backend._warn_missing.cache_clear()
    monkeypatch.setenv("MCODEC_KERNELS", "auto")
    with pytest.warns(RuntimeWarning, match="Triton is not installed"):
        assert not backend.use_triton(CUDA)
    assert not backend.use_triton(CUDA)  # a second warning would be an error
    backend._warn_missing.cache_clear()
    for failure, choice, device in ((absent, "triton", CPU), (broken, "auto", CUDA)):
        monkeypatch.setattr(backend, "_failure", failure)
        monkeypatch.setenv("MCODEC_KERNELS", choice)
        with pytest.raises(ImportError, match="MCODEC_KERNELS=reference does without") as caught:
            backend.use_triton(device)
        assert caught.value.__cause__ is failure
    monkeypatch.setenv("MCODEC_KERNELS", "auto")
    assert not backend.use_triton(CPU)
    kernel = object()
    assert backend.jit(kernel) is kernel  # type: ignore[arg-type]
