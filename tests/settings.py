"""Every way to run a codec that must not change a code."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from mcodec.api import Codec
from mcodec.kernels import backend

BACKENDS = ["numpy", "c"] if importlib.util.find_spec("mcodec.entropy._rans") else ["numpy"]

#: name -> (context type, threads, bf16 transforms, entropy backend)
SETTINGS = {
    f"{str(dtype)[6:]}, {threads} threads{', bf16' if bf16 else ''}, {entropy}": (dtype, threads, bf16, entropy)
    for dtype, threads, bf16 in [
        (torch.float32, 2, False),
        (torch.float32, 1, False),
        (torch.float32, 2, True),
        (torch.float64, 1, False),
        (torch.int32, 2, False),
        (torch.int64, 1, True),
    ]
    for entropy in BACKENDS
}


@contextmanager
def setting(codec: Codec, name: str) -> Iterator[None]:
    """Run the codec with one of SETTINGS; everything is put back."""
    dtype, threads, bf16, entropy = SETTINGS[name]
    before = codec.model.context_dtype, torch.get_num_threads(), codec.bf16
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCODEC_ENTROPY", entropy)
        codec.model.context_dtype, codec.bf16 = dtype, bf16
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            codec.model.context_dtype, codec.bf16 = before[0], before[2]
            torch.set_num_threads(before[1])


#: name -> (MCODEC_ENTROPY, MCODEC_KERNELS, device)
CODERS = {name: (name, "reference", "cpu") for name in BACKENDS} | {"torch": ("tensor", "reference", "cpu")}
if backend.interpreted():
    CODERS["interpreter"] = ("tensor", "triton", "cpu")
if torch.cuda.is_available():
    CODERS["gpu"] = ("auto", "auto", "cuda")


@contextmanager
def coded_by(name: str, codec: Codec) -> Iterator[Codec]:
    """The codec as one of CODERS."""
    entropy, kernels, device = CODERS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCODEC_ENTROPY", entropy)
        patch.setenv("MCODEC_KERNELS", kernels)
        try:
            yield codec if device == "cpu" else Codec(codec.model, codec.fingerprint, torch.device(device))
        finally:  # of a failure, too: others use the model
            codec.model.to(codec.device)
