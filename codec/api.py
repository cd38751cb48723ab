"""The public API: pictures to bytes and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mcodec import batch, container, decoding, encoding, weights
from mcodec.batch import Result
from mcodec.container import TAG_ALPHA, TAG_EXIF, TAG_FILTER, TAG_ICC, TAG_SHIFTS, TAG_XMP, Container, Header
from mcodec.engine import Engine, batch_pixels
from mcodec.entropy import LANE_SHARE
from mcodec.errors import CorruptStream, WrongModel
from mcodec.image import Metadata, Picture, Raster, Samples, Strips, alpha, taken
from mcodec.model import Cascade, level_of, search
from mcodec.model.context import IntegerLayer
from mcodec.model.window import Box

T = TypeVar("T")
V = TypeVar("V")

#: What of a picture's metadata a file carries: all of it, all but the GPS position, nothing.
METADATA = ("all", "no-gps", "none")


def load(model: str | Path | None = None, device: str = "auto", bf16: bool = False) -> Codec:
    """A codec from released weights.

    model: an installed name, the path of a `.safetensors` file with its card beside it, the first 8 digits or more of
    the SHA-256 of installed weights, or None for the default.
    device: "auto", "cpu" or "cuda". bf16: convolutions of the transforms in bfloat16 (faster where the hardware
    has it; changes pixels slightly, never the codes that a file decodes to).
    Raises ModelError for weights that are missing or damaged, ValueError for a device that is unknown or not there.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device is available")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.inference_mode(False):  # what is made in that mode is of no use outside of it
        with torch.device("cpu"):  # whatever the default is
            network, fingerprint = weights.load(weights.find(model))
        return Codec(network.requires_grad_(False), fingerprint, torch.device(device), bf16)


class Codec:
    """Encodes and decodes pictures with one set of weights. Made by `load`.

    tile: side of the tiles that `encode` makes, in pixels: 64 times a power of two, a multiple of the coarsest stride;
    also of the parts in which the pixels of a larger picture are decoded.
    tile_workers: threads that work on the tiles of a large picture on a CPU; each takes some 300 MB. They change the
    time, never a byte.
    batch_pixels: so many pixels of tiles or pictures of one size go through the networks together; by default what
    suits the device and its memory.
    lane_share: the part of a file that the lanes of its entropy coder may take, 0.0001 to 0.1. A CPU does not care; a
    GPU takes a step after the other for each lane, so that files of more lanes decode faster on it.
    """

    def __init__(
        self, model: Cascade, fingerprint: bytes, device: torch.device | None = None, bf16: bool = False
    ) -> None:
        self.device = device or torch.device("cpu")
        if self.device.type == "cuda" and self.device.index is None:  # other threads have other current devices
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.model = model.eval().to(self.device)
        self.fingerprint = fingerprint
        self.bf16 = bf16
        self.tile = max(container.TILE, model.config.multiple)
        self.tile_workers = 2 if self.device.type == "cpu" else 1
        self.batch_pixels = batch_pixels(self.device)
        self.lane_share = LANE_SHARE
        self._tables = [self.model.tables(index) for index in range(len(self.model.stages))]
        if self.device.type == "cuda":  # copies that threads on different streams share are there before any reads them
            for table in self._tables:
                table.on(self.device)
            for module in self.model.modules():
                if isinstance(module, IntegerLayer):
                    module.frozen()
            torch.cuda.synchronize(self.device)

    @property
    def stages(self) -> int:
        """Number of stages, coarse to fine."""
        return len(self.model.stages)

    def _engine(self) -> Engine:
        """What codes tiles, with the settings of now."""
        return Engine(
            self.model, self._tables, self.device, self.bf16, self.tile, self.tile_workers, self.batch_pixels,
            self.lane_share,
        )  # fmt: skip

    # ---- encoding -----------------------------------------------------------------------------------------

    def encode(
        self, image: Picture, quality: float = 50, metadata: str = "all", effort: int = search.DEFAULT
    ) -> bytes:
        """Compress a picture into the bytes of a .mci file.

        image: PIL image of any mode; numpy `[H, W]` or `[H, W, C]` or torch `[C, H, W]`, uint8 or uint16, with C = 1
        (grey), 2 (grey, alpha), 3 or 4; or a Raster. quality: 1 (smallest) to 100. metadata: what the file carries of
        colour profile, EXIF and XMP, "all", "no-gps" or "none". effort: 1 (fastest) to 9: search for better codes,
        which costs time here and none in decoding.
        Raises ValueError for anything else, LimitExceeded for a picture larger than the format holds, ImageError for a
        PIL image whose file is damaged.
        """
        return self.encode_batch([image], quality, metadata, effort)[0]

    def encode_batch(
        self,
        images: Iterable[Picture],
        quality: float | Sequence[float] = 50,
        metadata: str = "all",
        effort: int = search.DEFAULT,
    ) -> list[bytes]:
        """`encode` for pictures of any sizes; those of equal padded size share one pass. Order is kept.

        The pixels of a torch tensor of uint8 that lies on the codec's GPU do not leave it, but for alpha.
        """
        return [data for data, _ in self._files(images, quality, metadata, effort)]

    def encode_with_codes(
        self, image: Picture, quality: float = 50, metadata: str = "all", effort: int = search.DEFAULT
    ) -> tuple[bytes, list[Tensor]]:
        """`encode`, and the codes that went into the file, to be compared with what `codes` reads from it."""
        return self._files([image], quality, metadata, effort, with_codes=True)[0]

    def _files(
        self,
        images: Iterable[Picture],
        quality: float | Sequence[float],
        metadata: str,
        effort: int,
        with_codes: bool = False,
    ) -> list[tuple[bytes, list[Tensor]]]:
        """Files of pictures, and their codes where these are wanted."""
        images = list(images)
        qualities = np.ravel(quality).tolist() * (len(images) if np.ndim(quality) == 0 else 1)
        if len(qualities) != len(images):
            raise ValueError(f"{len(images)} images but {len(qualities)} qualities")
        _check_metadata(metadata)
        levels = [level_of(q) for q in qualities]
        steps = search.steps_of(effort)
        rasters = [taken(image) for image in images]
        engine = self._engine()
        with torch.inference_mode(False):  # the search takes gradients, whatever mode the caller is in
            canvases = [decoding.blank_codes(engine, *raster.size[::-1]) if with_codes else [] for raster in rasters]
            payloads = encoding.payloads(engine, rasters, levels, steps, canvases)
        files = [
            container.pack(
                Container(
                    Header(*raster.size, level, self.fingerprint, raster.kind, engine.tile),
                    payload.codes,
                    _sections(raster, metadata, payload),
                )
            )
            for raster, level, payload in zip(rasters, levels, payloads, strict=True)
        ]
        return [(file, [stage.cpu() for stage in canvas]) for file, canvas in zip(files, canvases, strict=True)]

    def encode_iter(
        self,
        items: Iterable[Any],
        quality: float = 50,
        metadata: str = "all",
        readers: int = batch.READERS,
        effort: int = search.DEFAULT,
    ) -> Iterator[Result[bytes]]:
        """`encode` for any number of items: pictures, or picture files as bytes, paths and URLs.

        `readers` threads read ahead while a micro-batch is coded; results come in the order of the items, and an item
        that fails has its `error`. ValueError for a wrong quality, metadata or effort.
        """
        level_of(quality)
        search.steps_of(effort)
        _check_metadata(metadata)
        return batch.encoded(
            self._in_order(lambda rasters: self.encode_batch(rasters, quality, metadata, effort)), items, readers
        )

    def _in_order(self, work: Callable[[T], V]) -> Callable[[T], V]:
        """`work` for another thread, behind what this one has queued on the GPU: a picture may still be on its way."""
        if self.device.type != "cuda":
            return work
        stream = torch.cuda.current_stream(self.device)

        def ordered(item: T) -> V:
            with torch.cuda.stream(stream):
                return work(item)

        return ordered

    # ---- decoding -----------------------------------------------------------------------------------------

    def decode(
        self,
        data: bytes,
        stages: int | None = None,
        region: tuple[int, int, int, int] | None = None,
        partial: bool = False,
        max_pixels: int | None = container.MAX_DECODED_PIXELS,
    ) -> Image.Image:
        """The picture of a .mci file, metadata in its `info`. Raises FormatError (see mcodec.errors) or WrongModel.

        stages: use the first ones only, from 1 on: a coarser picture. region: (x, y, width, height) in pixels.
        partial: take the beginning of a file, as many stages as are whole in it. max_pixels: LimitExceeded, before
        memory is taken, where the header claims a picture of more, region or not; None: the format's limit alone.
        16-bit colour and 16-bit grey with alpha come with their upper 8 bits; `decode_raster` has them all.
        """
        return self.decode_raster(data, stages, region, partial, max_pixels).image()

    def decode_array(
        self,
        data: bytes,
        stages: int | None = None,
        region: tuple[int, int, int, int] | None = None,
        partial: bool = False,
        max_pixels: int | None = container.MAX_DECODED_PIXELS,
    ) -> Samples:
        """As `decode`, but an array: `[H, W]` or `[H, W, 2..4]` (alpha last), uint8 or uint16 as it was encoded."""
        return self.decode_raster(data, stages, region, partial, max_pixels).array()

    def decode_raster(
        self,
        data: bytes,
        stages: int | None = None,
        region: tuple[int, int, int, int] | None = None,
        partial: bool = False,
        max_pixels: int | None = container.MAX_DECODED_PIXELS,
        lazy: bool = False,
    ) -> Raster:
        """As `decode`, in full depth, with alpha and metadata apart.

        lazy: the samples of a tiled picture, unless a region of it is asked for, are decoded where they are read
        (`Raster.bands`, `Raster.crop`) and not held; what is damaged may show then only.
        """
        file = self._open(data, max_pixels, partial)
        if lazy and region is None and file.header.tiles > 1:
            self._check_stages(stages)
            found = decoding.held_stages(file, self.stages)
            samples = decoding.Decoded(self._engine, file, stages, partial)
            raster = _raster(file, decoding.wanted(file.header, None), samples)
            return self._noted(raster, file, found, stages)
        return self._rasters([file], stages, region, partial)[0]

    def decode_with_codes(
        self, data: bytes, max_pixels: int | None = container.MAX_DECODED_PIXELS
    ) -> tuple[Raster, list[Tensor]]:
        """`decode_raster` and `codes` at once."""
        file, engine = self._open(data, max_pixels), self._engine()
        canvases = decoding.read_codes(engine, [file])
        box = decoding.wanted(file.header, None)
        samples = decoding.render(engine, [file], canvases, [box], whole=True)[0]
        return _raster(file, box, samples), [stage.cpu() for stage in canvases[0]]

    def decode_batch(
        self, data: Sequence[bytes], max_pixels: int | None = container.MAX_DECODED_PIXELS
    ) -> list[Image.Image]:
        """`decode` for files of any sizes; those of equal padded size share one pass. Order is kept."""
        return [raster.image() for raster in self._rasters([self._open(d, max_pixels) for d in data])]

    def decode_tensors(
        self, data: Sequence[bytes], max_pixels: int | None = container.MAX_DECODED_PIXELS
    ) -> list[Tensor]:
        """`decode_batch` without the way to the host: uint8 `[3, H, W]` each, on the codec's device.

        Grey is the same in all channels, 16 bits come as their upper 8; alpha and metadata are left out. The host waits
        for the device once, at the end, for whether the streams were whole.
        """
        files, engine = [self._open(d, max_pixels) for d in data], self._engine()
        checks: list[Callable[[], None]] = []
        canvases = decoding.read_codes(engine, files, checks=checks)
        pictures = decoding.tensors(engine, files, canvases)
        for check in checks:
            check()
        return pictures

    def decode_iter(
        self,
        items: Iterable[Any],
        readers: int = batch.READERS,
        max_pixels: int | None = container.MAX_DECODED_PIXELS,
    ) -> Iterator[Result[Image.Image]]:
        """`decode` for any number of items: bytes, or paths and URLs of .mci files; otherwise as `encode_iter`."""
        return batch.decoded(lambda files: self.decode_batch(files, max_pixels), items, readers)

    def codes(self, data: bytes, max_pixels: int | None = container.MAX_DECODED_PIXELS) -> list[Tensor]:
        """The decoded codes of a file, stage by stage: integers `[M, H/r, W/r]` of the padded picture."""
        return self.codes_batch([data], max_pixels)[0]

    def codes_batch(
        self, data: Sequence[bytes], max_pixels: int | None = container.MAX_DECODED_PIXELS
    ) -> list[list[Tensor]]:
        """`codes` for files of any sizes."""
        files = [self._open(d, max_pixels) for d in data]
        return [[stage.cpu() for stage in stages] for stages in decoding.read_codes(self._engine(), files)]

    def stage_bytes(self, data: bytes, max_pixels: int | None = container.MAX_DECODED_PIXELS) -> list[int]:
        """How many bytes of a file each stage takes."""
        file, engine = self._open(data, max_pixels), self._engine()
        streams = file.streams
        if streams.stages is not None:
            return streams.stages
        padded = engine.padded(file.header.height, file.header.width)
        stream = streams.stream(0)
        words = decoding.read_tiles(engine, [stream], *padded, [file.header.level], file.shifts(self.stages))[1]
        ends = decoding.stage_ends(stream, torch.cat(words).tolist())
        return [end - begin for begin, end in pairwise((0, *ends))]

    def _open(self, data: bytes, max_pixels: int | None, partial: bool = False) -> Container:
        if not isinstance(data, bytes | bytearray | memoryview):
            raise ValueError(f"a file must be given as bytes, got {type(data).__name__}; mcodec.read takes paths")
        file = container.unpack(bytes(data), partial, max_pixels)
        if file.header.fingerprint != self.fingerprint:
            raise WrongModel(
                f"the file was made by weights {file.header.fingerprint.hex()}, "
                f"but {self.fingerprint.hex()} are loaded; load (--model) takes others"
            )
        if file.header.tiles > 1 and file.header.tile % self.model.config.multiple:
            raise CorruptStream(f"tiles of {file.header.tile} pixels cannot be those of the weights")
        return file

    def _rasters(
        self,
        files: list[Container],
        stages: int | None = None,
        region: tuple[int, int, int, int] | None = None,
        partial: bool = False,
    ) -> list[Raster]:
        self._check_stages(stages)
        engine, boxes = self._engine(), [decoding.wanted(file.header, region) for file in files]
        canvases = decoding.read_codes(engine, files, stages, None if region is None else boxes, partial)
        parts = decoding.render(engine, files, canvases, boxes, whole=region is None)
        rasters = (_raster(file, box, part) for file, box, part in zip(files, boxes, parts, strict=True))
        return [
            self._noted(raster, file, len(canvas), stages)
            for raster, file, canvas in zip(rasters, files, canvases, strict=True)
        ]

    def _noted(self, raster: Raster, file: Container, found: int, stages: int | None) -> Raster:
        """With notes where fewer stages were found than are wanted, and where nothing says that all is whole."""
        notes = list(raster.notes)
        if found < (stages or self.stages):
            notes.append(f"the file ends after {found} of {self.stages} stages")
        elif file.unverified and stages is None:  # of a preview, the beginning of a file may be all there is
            notes.append("the checksum does not match: codes may be damaged, what follows them (alpha, EXIF) missing")
        return replace(raster, notes=tuple(notes))

    def _check_stages(self, stages: int | None) -> None:
        if stages is not None and not (isinstance(stages, Integral) and 1 <= stages <= self.stages):
            raise ValueError(f"stages must be from 1 to {self.stages}, got {stages}")


def _check_metadata(metadata: str) -> None:
    if metadata not in METADATA:
        raise ValueError(f"metadata must be one of {', '.join(METADATA)}, got {metadata!r}")


def _sections(raster: Raster, metadata: str, payload: encoding.Payload) -> tuple[tuple[int, bytes], ...]:
    """What a file holds beside the codes."""
    kept = raster.metadata.kept(metadata)
    plane = b"" if raster.alpha is None else alpha.pack(raster.alpha)
    sections = [
        (TAG_SHIFTS, payload.shifts),
        (TAG_FILTER, payload.filter),
        (TAG_ICC, kept.icc),
        (TAG_EXIF, kept.exif),
        (TAG_XMP, kept.xmp),
        (TAG_ALPHA, plane),
    ]
    return tuple((tag, data) for tag, data in sections if data)


def _raster(file: Container, box: Box, samples: Samples | Strips) -> Raster:
    """The decoded picture with what its file holds beside the codes."""
    plane = None
    if (data := file.section(TAG_ALPHA)) is not None:
        whole = alpha.unpack(data, file.header.width, file.header.height, file.header.kind.bits)
        plane = whole[box.top : box.bottom, box.left : box.right]
    metadata = Metadata(file.section(TAG_ICC), file.section(TAG_EXIF), file.section(TAG_XMP))
    if box != decoding.wanted(file.header, None):
        metadata = metadata.without_thumbnail()
    return Raster(samples, file.header.kind, plane, metadata)


__all__ = ["Codec", "load"]
