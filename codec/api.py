"""The public API: pictures to bytes and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mcodec import container, entropy, weights
from mcodec.errors import WrongModel
from mcodec.image import Picture, from_tensor, to_array, to_tensor
from mcodec.model import Cascade, level_of
from mcodec.model.cascade import BETA

#: Pictures of one padded size that go through the networks together, at most this many pixels.
BATCH_PIXELS = 2**22


def load(model: str | Path | None = None, device: str = "auto", bf16: bool = False) -> Codec:
    """A codec from released weights.

    model: a released name, the path of a `.safetensors` file with its card beside it, or None for the default.
    device: "auto", "cpu" or "cuda". bf16: convolutions of the transforms in bfloat16 (faster where the hardware
    has it; changes pixels slightly, never the codes that a file decodes to).
    Raises ModelError for weights that are missing or damaged, ValueError for an unknown device.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {device!r}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    network, fingerprint = weights.load(weights.find(model))
    return Codec(network, fingerprint, torch.device(device), bf16)


class Codec:
    """Encodes and decodes pictures with one set of weights. Made by `load`."""

    def __init__(
        self, model: Cascade, fingerprint: bytes, device: torch.device | None = None, bf16: bool = False
    ) -> None:
        self.device = device or torch.device("cpu")
        self.model = model.eval().to(self.device)
        self.fingerprint = fingerprint
        self.bf16 = bf16
        self._tables = [self._stage_tables(index) for index in range(len(model.stages))]

    def _stage_tables(self, index: int) -> entropy.PriorTables:
        codewords, log_weights, _ = self.model.stage(index).codebooks.integers()
        return entropy.PriorTables(
            codewords.cpu().numpy(), log_weights.cpu().numpy(), self.model.precision.cpu().numpy()
        )

    # ---- encoding -----------------------------------------------------------------------------------------

    def encode(self, image: Picture, quality: float = 50) -> bytes:
        """Compress a picture into the bytes of a .mci file.

        image: PIL image, numpy `[H, W, 3]` uint8 or torch `[3, H, W]` uint8; quality: 1 (smallest) to 100.
        Raises ValueError for anything else.
        """
        return self.encode_batch([image], quality)[0]

    def encode_batch(self, images: Sequence[Picture], quality: float | Sequence[float] = 50) -> list[bytes]:
        """`encode` for pictures of any sizes; those of equal padded size share one pass. Order is kept."""
        qualities = [quality] * len(images) if isinstance(quality, int | float) else list(quality)
        if len(qualities) != len(images):
            raise ValueError(f"{len(images)} images but {len(qualities)} qualities")
        levels = [level_of(q) for q in qualities]
        arrays = [to_array(image) for image in images]
        for array in arrays:
            container.check_size(array.shape[1], array.shape[0])
        out = [b""] * len(images)
        for batch in self._batches([self._padded(*a.shape[:2]) for a in arrays]):
            files = self._encode([arrays[i] for i in batch], [levels[i] for i in batch])
            for index, data in zip(batch, files, strict=True):
                out[index] = data
        return out

    def _encode(self, arrays: list[NDArray[np.uint8]], levels: list[int]) -> list[bytes]:
        x = torch.cat([to_tensor(a, self.model.config.multiple) for a in arrays]).to(self.device)
        coder = entropy.batch_encoder(len(arrays), self.device)

        def assign(index: int, latents: Tensor, offset: Tensor | None, scale: Tensor | None) -> Tensor:
            book = self.model.stage(index).codebooks
            prior = self._prior(index, offset, scale)
            codes = coder.encode_stage(self._tables[index], *prior, book.vectors(latents), book.codewords, BETA)
            return codes.unflatten(2, latents.shape[-2:])

        level = torch.tensor(levels, dtype=torch.float32, device=self.device)
        with torch.no_grad(), self._precision():
            self.model.encode(x, level, assign)
        return [
            container.pack(
                container.Container(container.Header(a.shape[1], a.shape[0], lv, self.fingerprint), stream)
            )
            for a, lv, stream in zip(arrays, levels, coder.finish(), strict=True)
        ]

    # ---- decoding -----------------------------------------------------------------------------------------

    def decode(self, data: bytes) -> Image.Image:
        """The picture of a .mci file. Raises FormatError (see mcodec.errors) or WrongModel."""
        return self.decode_batch([data])[0]

    def decode_batch(self, data: Sequence[bytes]) -> list[Image.Image]:
        """`decode` for files of any sizes; those of equal padded size share one pass. Order is kept."""
        files = [self._open(d) for d in data]
        out: list[Image.Image | None] = [None] * len(files)
        for batch in self._batches([self._padded(f.header.height, f.header.width) for f in files]):
            group = [files[i] for i in batch]
            state, _ = self._decode(group)
            with torch.no_grad(), self._precision():
                pictures = self.model.synthesis(state, self._levels(group))
            for index, file, picture in zip(batch, group, pictures.float().cpu(), strict=True):
                array = from_tensor(picture[None], file.header.height, file.header.width)
                out[index] = Image.fromarray(array)
        return [image for image in out if image is not None]

    def codes(self, data: bytes) -> list[Tensor]:
        """The decoded codes of a file, stage by stage: int32 `[M, H/r, W/r]` of the padded picture."""
        return [stage[0].cpu() for stage in self._decode([self._open(data)])[1]]

    def _open(self, data: bytes) -> container.Container:
        file = container.unpack(data)
        if file.header.fingerprint != self.fingerprint:
            raise WrongModel(
                f"the file was made by weights {file.header.fingerprint.hex()}, "
                f"but {self.fingerprint.hex()} are loaded"
            )
        return file

    def _decode(self, files: list[container.Container]) -> tuple[Tensor, list[Tensor]]:
        """(synthesis state, codes per stage `[B, M, h, w]`) of files of one padded size."""
        decoder = entropy.batch_decoder([file.codes for file in files], self.device)
        height, width = self._padded(files[0].header.height, files[0].header.width)
        kept: list[Tensor] = []

        def read(index: int, offset: Tensor | None, scale: Tensor | None) -> Tensor:
            stage = self.model.config.stages[index]
            grid = (height // stage.stride, width // stage.stride)
            shape = (stage.groups, grid[0] * grid[1])
            codes = decoder.decode_stage(self._tables[index], *self._prior(index, offset, scale), shape)
            kept.append(codes.unflatten(2, grid))
            return kept[-1]

        with self._precision():
            state = self.model.decode(height, width, self._levels(files), read)
        decoder.finish()
        return state, kept

    # ---- shared -------------------------------------------------------------------------------------------

    def _prior(
        self, index: int, offset: Tensor | None, scale: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Prior parameters of a stage, `[B, M, d, P]`."""
        if offset is None or scale is None:
            return None, None
        vectors: Callable[[Tensor], Tensor] = self.model.stage(index).codebooks.vectors
        return vectors(offset), vectors(scale)

    def _levels(self, files: list[container.Container]) -> Tensor:
        return torch.tensor([f.header.level for f in files], dtype=torch.float32, device=self.device)

    def _padded(self, height: int, width: int) -> tuple[int, int]:
        multiple = self.model.config.multiple
        return -(-height // multiple) * multiple, -(-width // multiple) * multiple

    def _batches(self, sizes: list[tuple[int, int]]) -> list[list[int]]:
        """Indices of equal size, in batches of at most BATCH_PIXELS (at least one picture)."""
        groups: dict[tuple[int, int], list[int]] = {}
        for index, size in enumerate(sizes):
            groups.setdefault(size, []).append(index)
        batches = []
        for (height, width), members in groups.items():
            count = max(1, BATCH_PIXELS // (height * width))
            batches += [members[i : i + count] for i in range(0, len(members), count)]
        return batches

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


__all__ = ["Codec", "load"]
