"""Shared fixtures: a codec with the tiny model, pictures made from a seed, implementations of kernels."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from numpy.typing import NDArray

# Triton looks at this once, when mcodec is imported: without a GPU its interpreter runs the kernels.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from tiny import TINY, lively

from mcodec import weights
from mcodec.api import Codec
from mcodec.kernels import backend
from mcodec.model import Cascade


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """What mcodec allocates without a value holds NaN or 0x7f..., so that an element nobody writes is noticed."""

    def poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        @functools.wraps(make)
        def wrapped(*args: Any, **kwargs: Any) -> torch.Tensor:
            out = make(*args, **kwargs)
            if sys._getframe(1).f_globals.get("__name__", "").startswith("mcodec."):
                with torch.no_grad():
                    out.fill_(float("nan") if out.is_floating_point() else int("7f" * out.element_size(), 16))
            return out

        return wrapped

    def poisoned_array(make: Callable[..., NDArray[Any]]) -> Callable[..., NDArray[Any]]:
        @functools.wraps(make)
        def wrapped(*args: Any, **kwargs: Any) -> NDArray[Any]:
            out = make(*args, **kwargs)
            if out.dtype.kind in "iuf" and sys._getframe(1).f_globals.get("__name__", "").startswith("mcodec."):
                out.fill(np.nan if out.dtype.kind == "f" else int("7f" * out.itemsize, 16))
            return out

        return wrapped

    monkeypatch.setattr(np, "empty", poisoned_array(np.empty))
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


@pytest.fixture(scope="session", autouse=True)
def _backward_has_a_context() -> None:
    """torch warns, which is an error here, where a matrix product is the first that a backward pass does on a GPU."""
    if torch.cuda.is_available():
        (torch.zeros(1, device="cuda", requires_grad=True) * 2).sum().backward()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`-m gpu` chooses what only a GPU runs."""
    for item in items:
        if "gpu" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(params=["reference", "interpreter", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Every implementation of the kernels, one after the other: the device of its tensors."""
    if request.param == "gpu" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if request.param == "interpreter" and not backend.interpreted():
        pytest.skip("needs Triton, and no CUDA device, for which its kernels are compiled")
    monkeypatch.setenv("MCODEC_KERNELS", "reference" if request.param == "reference" else "triton")
    return torch.device("cuda" if request.param == "gpu" else "cpu")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """For shapes that are too large for the interpreter."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    monkeypatch.setenv("MCODEC_KERNELS", "triton")
    return torch.device("cuda")


if "PYTEST_XDIST_WORKER" in os.environ:  # one process per core
    torch.set_num_threads(1)

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def tiny() -> Codec:
    """A codec with the tiny random model."""
    return Codec(lively(TINY), b"tinytiny")


@pytest.fixture
def tiled(tiny: Codec, monkeypatch: pytest.MonkeyPatch) -> Codec:
    """That codec with tiles of 64 x 64."""
    monkeypatch.setattr(tiny, "tile", 64)
    return tiny


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny random model as a file of weights."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    weights.save(lively(TINY), path, {})
    return path


@pytest.fixture(scope="session")
def plain() -> Codec:
    """A codec with the tiny model before training, calibrated: a block transform that follows the quality."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Cascade(TINY).eval()
        x = torch.linspace(-0.5, 0.5, 64).expand(64, 64)
        sample = torch.stack([torch.stack([x, x.T, -x]), torch.stack([x, x, x])])
        with torch.no_grad():
            for _ in range(3):
                model(sample, torch.full((2,), 255.0), "noise", calibrate=True)
        return Codec(model, b"plainone")


@pytest.fixture
def picture() -> Callable[..., NDArray[np.uint8]]:
    """Smooth random pictures with some texture, `picture(height, width, seed)`."""

    def make(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[0:height, 0:width] / 32
        waves = [
            np.sin(a * x + b * y + c) for a, b, c in rng.normal(0, 1.5, (3, 3))
        ]
        noise = rng.normal(0, 6, (height, width, 3))
        return np.clip(128 + 60 * np.stack(waves, 2) + noise, 0, 255).astype(np.uint8)

    return make
