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
from mcodec.kernels.pvq_assign import pvq_assign
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
        coders = [entropy.Encoder() for _ in arrays]

        def assign(index: int, latents: Tensor, offset: Tensor | None, scale: Tensor | None) -> Tensor:
            book = self.model.stage(index).codebooks
            vectors = book.vectors(latents)
            codes = []
            for item, coder in enumerate(coders):
                prior = self._prior(index, offset, scale, item)
                if prior[0] is None:
                    nearest = pvq_assign(vectors[item : item + 1], book.codewords, 1.0)
                    chosen = nearest[0].to(torch.int32).cpu().numpy()
                else:
                    floats = (vectors[item].cpu().contiguous().numpy(), book.codewords.detach().cpu().numpy())
                    chosen = entropy.assign(self._tables[index], *prior, *floats, BETA)
                coder.add_stage(self._tables[index], *prior, chosen)
                codes.append(torch.from_numpy(chosen))
            return torch.stack(codes).unflatten(2, latents.shape[-2:]).to(self.device)

        level = torch.tensor(levels, dtype=torch.float32, device=self.device)
        with torch.no_grad(), self._precision():
            self.model.encode(x, level, assign)
        streams = [coder.finish() for coder in coders]
        return [
            container.pack(
                container.Container(container.Header(a.shape[1], a.shape[0], lv, self.fingerprint), stream)
            )
            for a, lv, stream in zip(arrays, levels, streams, strict=True)
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
        return [stage[0] for stage in self._decode([self._open(data)])[1]]

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
        decoders = [entropy.Decoder(file.codes) for file in files]
        height, width = self._padded(files[0].header.height, files[0].header.width)
        kept: list[Tensor] = []

        def read(index: int, offset: Tensor | None, scale: Tensor | None) -> Tensor:
            stage = self.model.config.stages[index]
            grid = (height // stage.stride, width // stage.stride)
            shape = (stage.groups, grid[0] * grid[1])
            rows = [
                decoder.decode_stage(self._tables[index], *self._prior(index, offset, scale, item), shape)
                for item, decoder in enumerate(decoders)
            ]
            codes = torch.from_numpy(np.stack(rows)).unflatten(2, grid)
            kept.append(codes)
            return codes.to(self.device)

        with self._precision():
            state = self.model.decode(height, width, self._levels(files), read)
        for decoder in decoders:
            decoder.finish()
        return state, kept

    # ---- shared -------------------------------------------------------------------------------------------

    def _prior(
        self, index: int, offset: Tensor | None, scale: Tensor | None, item: int
    ) -> tuple[NDArray[np.int16] | None, NDArray[np.uint8] | None]:
        """Integer prior parameters of one picture of the batch, `[M, d, P]`."""
        if offset is None or scale is None:
            return None, None
        book: Callable[[Tensor], Tensor] = self.model.stage(index).codebooks.vectors
        g = book(offset[item : item + 1])[0].to(torch.int16).cpu().numpy()
        s = book(scale[item : item + 1])[0].to(torch.uint8).cpu().numpy()
        return np.ascontiguousarray(g), np.ascontiguousarray(s)

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
