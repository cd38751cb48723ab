"""Networks as codecs of the benchmark: mcodec itself and CompressAI's models; and mcodec as a CompressAI model.

CompressAI is an optional peer. Its models write strings and a shape, not a file, so `pack` adds the few bytes that
a file needs. Names of its API: https://interdigitalinc.github.io/CompressAI/.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mcodec import __version__, entropy
from mcodec import weights as released
from mcodec.api import Codec, load
from mcodec.bench import machine
from mcodec.bench.protocol import Pixels, Unavailable
from mcodec.errors import BenchError

#: CompressAI's models halve the picture up to six times.
STRIDE = 64
#: Released weights by CompressAI's names of metrics.
TRAINED_FOR = {"mse": "cascade", "ms-ssim": "cascade-ms-ssim"}
HASH_DIGITS = 16  # the 8 bytes that a .mci file names its weights by


class McodecCodec:
    """The codec of this project, through its public API."""

    suffix = ".mci"
    whole = False
    qualities: tuple[float, ...] = (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)

    def __init__(self, name: str, weights: str | None, device: str, effort: int = 1) -> None:
        self.name, self.device, self._effort = name, device, effort
        self._path = released.find(weights)
        sha, code = released.read_card(self._path)["sha256"][:HASH_DIGITS], machine.code()
        # what was measured with other code is measured again
        self.version = f"mcodec {__version__}{f' at {code}' if code else ''}, weights {sha}"
        self.settings = f"entropy coder {entropy.backend()}" + (f", effort {effort}" if effort > 1 else "")

    @cached_property
    def _codec(self) -> Codec:
        codec = load(self._path, self.device)
        codec.tile_workers = 1  # two would have the threads of torch each
        return codec

    def encode(self, pixels: Pixels, quality: float) -> bytes:
        return self._codec.encode(pixels, quality, effort=self._effort)

    def decode(self, data: bytes) -> Pixels:
        return np.asarray(self._codec.decode(data))


def compressai() -> Any:
    """CompressAI's model zoo; Unavailable with the reason where it cannot be imported."""
    try:
        import compressai.zoo.image
    except (ImportError, OSError, RuntimeError) as error:  # torchvision of another build raises the latter two
        raise Unavailable(f"CompressAI cannot be imported ({str(error).splitlines()[0]})") from error
    return compressai.zoo


def pack(height: int, width: int, shape: Sequence[int], strings: Sequence[bytes]) -> bytes:
    """A file from the output of `compress`: sides and latent shape (u16 each), count (u8), sizes (u32), strings."""
    head = struct.pack("<4HB", height, width, *shape, len(strings))
    return head + struct.pack(f"<{len(strings)}I", *map(len, strings)) + b"".join(strings)


def unpack(data: bytes) -> tuple[int, int, tuple[int, int], list[bytes]]:
    """What `pack` was given."""
    height, width, h, w, count = struct.unpack_from("<4HB", data)
    at = struct.calcsize("<4HB")
    sizes = struct.unpack_from(f"<{count}I", data, at)
    at += 4 * count
    strings = []
    for size in sizes:
        strings.append(data[at : at + size])
        at += size
    return height, width, (h, w), strings


def padded(pixels: Pixels, device: str | torch.device) -> Tensor:
    """uint8 `[H, W, 3]` -> float32 `[1, 3, H', W']` in 0..1, zeros to the right and below up to STRIDE."""
    height, width = pixels.shape[:2]
    x = torch.zeros(1, 3, -(-height // STRIDE) * STRIDE, -(-width // STRIDE) * STRIDE)
    x[:, :, :height, :width] = torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255
    return x.to(device)


def _checkpoints(name: str, weights: str | None) -> list[Path]:
    if weights is None:
        raise Unavailable(f"{name} needs trained weights: give {name}:CHECKPOINT or {name}:FOLDER")
    path = Path(weights)
    found = sorted(p for p in path.iterdir() if ".pth" in p.suffixes) if path.is_dir() else [path]
    if not found or not found[0].is_file():
        raise BenchError(f"no checkpoint (.pth, .pth.tar) at {path}")
    return found


class CompressAICodec:
    """One of CompressAI's architectures with checkpoints of the user, one per quality (1, 2, ... by file name)."""

    suffix = ".bin"
    whole = True

    def __init__(self, name: str, weights: str | None, device: str) -> None:
        self.name, self.device = name, device
        self._architecture = name.partition(":")[0]
        self._zoo = compressai()
        self._paths = _checkpoints(self._architecture, weights)
        digest = hashlib.sha256(b"".join(hashlib.sha256(p.read_bytes()).digest() for p in self._paths))
        release = __import__("compressai").__version__
        self.version = f"CompressAI {release}, weights {digest.hexdigest()[:HASH_DIGITS]}"
        self.settings = f"{self._architecture}; quality = number of the checkpoint"
        self.qualities: tuple[float, ...] = tuple(range(1, len(self._paths) + 1))
        self._loaded: dict[int, Any] = {}

    def _model(self, quality: float) -> Any:
        index = int(quality)
        if not 1 <= index <= len(self._paths):
            raise BenchError(f"{self.name} has qualities 1 to {len(self._paths)}, got {quality}")
        if index not in self._loaded:
            state = torch.load(self._paths[index - 1], map_location="cpu", weights_only=True)
            for key in ("network", "state_dict", "model_state_dict"):
                state = state.get(key, state)
            state = self._zoo.load_state_dict(state)
            model = self._zoo.image.model_architectures[self._architecture].from_state_dict(state)
            model.update(force=True)
            self._loaded[index] = model.eval().to(self.device)
        return self._loaded[index]

    def encode(self, pixels: Pixels, quality: float) -> bytes:
        with torch.no_grad():
            out = self._model(quality).compress(padded(pixels, self.device))
        # The decoder needs to know which network it is for.
        return bytes([int(quality)]) + pack(
            pixels.shape[0], pixels.shape[1], out["shape"], [s[0] for s in out["strings"]]
        )

    def decode(self, data: bytes) -> Pixels:
        height, width, shape, strings = unpack(data[1:])
        with torch.no_grad():
            x = self._model(data[0]).decompress([[s] for s in strings], shape)["x_hat"]
        x = (x[0, :, :height, :width] * 255).round().clamp(0, 255).to(torch.uint8)
        return np.ascontiguousarray(x.permute(1, 2, 0).cpu().numpy())


class McodecModel(nn.Module):
    """mcodec with the interface of a CompressAI model, for its `eval_model`: one quality, pictures in 0..1."""

    def __init__(self, quality: float = 50, weights: str | None = None) -> None:
        super().__init__()
        self.quality = quality
        self.codec = load(weights, "cpu")
        self.network = self.codec.model  # a submodule: eval_model asks for parameters and their device

    def compress(self, x: Tensor) -> dict[str, Any]:
        """float `[B, 3, H, W]` -> `strings` (one list with a .mci file per picture) and `shape` (H, W)."""
        pixels = (x * 255).round().clamp(0, 255).to(torch.uint8)
        return {"strings": [self.codec.encode_batch(list(pixels), self.quality)], "shape": tuple(x.shape[-2:])}

    def decompress(self, strings: list[list[bytes]], shape: Sequence[int]) -> dict[str, Tensor]:
        """What `compress` gave -> `x_hat`, float32 `[B, 3, H, W]` in 0..1."""
        pictures = [torch.from_numpy(np.array(p)) for p in self.codec.decode_batch(strings[0])]
        return {"x_hat": torch.stack(pictures).permute(0, 3, 1, 2) / 255}


def register() -> None:
    """Make mcodec known to CompressAI as the model "mcodec" (Unavailable where CompressAI is not).

    In its registry, and in the zoo where `compressai.utils.eval_model pretrained -a mcodec -q 30,50` looks; the
    quality is mcodec's, 1 to 100.
    """
    zoo = compressai()
    from compressai.registry import register_model

    register_model("mcodec")(McodecModel)

    def pretrained(quality: int, metric: str = "mse", pretrained: bool = True, progress: bool = False) -> McodecModel:
        if metric not in TRAINED_FOR or not pretrained:
            raise ValueError(f"mcodec has weights trained for {' and '.join(TRAINED_FOR)}")
        return McodecModel(quality, TRAINED_FOR[metric])

    zoo.image_models["mcodec"] = zoo.models["mcodec"] = pretrained
