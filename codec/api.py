"""The public API: pictures to bytes and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mcodec import batch, container, entropy, tiles, weights
from mcodec.batch import Result
from mcodec.container import TAG_ALPHA, TAG_EXIF, TAG_ICC, TAG_XMP, Container, Header, Kind
from mcodec.errors import CorruptStream, WrongModel
from mcodec.image import Metadata, Picture, Raster, Samples, Strips, alpha, from_tensor, to_raster, to_tensor
from mcodec.model import Cascade, level_of, search
from mcodec.model.cascade import BETA
from mcodec.model.walk import Seams
from mcodec.model.window import Box, window

T = TypeVar("T")
R = TypeVar("R")

#: Tiles of one padded size go through the networks together, at most this many pixels of them.
BATCH_PIXELS = 2**22
#: How far beyond its tile an encoder looks: it guesses there what the neighbours will choose, as their codes decide
#: what a decoder adds inside of the tile. On validation pictures in tiles of 256 pixels 64 loses up to 0.002 dB (in
#: the worst picture 0.011) against it, 192 gains nothing.
HALO = 128

#: What of a picture's metadata a file carries: all of it, all but the GPS position, nothing.
METADATA = ("all", "no-gps", "none")


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


@dataclass(frozen=True)
class _Tile:
    """A tile to encode: where it lies in its picture, and the window around it that the encoder sees."""

    item: int  # of the batch of pictures
    level: int
    outer: tuple[int, int, int, int]  # pixels (left, top, right, bottom) of the window
    padded: tuple[int, int]  # (height, width) of the window, multiples of the coarsest stride
    inner: Box  # the tile within it, in pixels
    seams: Seams  # its borders within it

    @property
    def box(self) -> Box:
        """The padded tile within its padded picture, in pixels."""
        left, top = self.outer[:2]
        return Box(top + self.inner.top, left + self.inner.left, top + self.inner.bottom, left + self.inner.right)

    @property
    def key(self) -> tuple[Any, ...]:
        """Tiles with the same key can be encoded together."""
        return self.padded, self.inner


class Codec:
    """Encodes and decodes pictures with one set of weights. Made by `load`.

    tile: side of the tiles that `encode` makes, in pixels: 64 times a power of two, a multiple of the coarsest stride.
    tile_workers: threads that work on the tiles of a large picture on a CPU; each takes some 300 MB. They change the
    time, never a byte.
    """

    def __init__(
        self, model: Cascade, fingerprint: bytes, device: torch.device | None = None, bf16: bool = False
    ) -> None:
        self.device = device or torch.device("cpu")
        self.model = model.eval().to(self.device)
        self.fingerprint = fingerprint
        self.bf16 = bf16
        self.tile = max(container.TILE, model.config.multiple)
        self.tile_workers = 2 if self.device.type == "cpu" else 1
        self._tables = [self._stage_tables(index) for index in range(len(model.stages))]

    def _stage_tables(self, index: int) -> entropy.PriorTables:
        codewords, log_weights, _ = self.model.stage(index).codebooks.integers()
        return entropy.PriorTables(
            codewords.cpu().numpy(), log_weights.cpu().numpy(), self.model.precision.cpu().numpy()
        )

    @property
    def stages(self) -> int:
        """Number of stages, coarse to fine."""
        return len(self.model.stages)

    # ---- encoding -----------------------------------------------------------------------------------------

    def encode(
        self, image: Picture, quality: float = 50, metadata: str = "all", effort: int = search.DEFAULT
    ) -> bytes:
        """Compress a picture into the bytes of a .mci file.

        image: PIL image of any mode; numpy `[H, W]` or `[H, W, C]` or torch `[C, H, W]`, uint8 or uint16, with C = 1
        (grey), 2 (grey, alpha), 3 or 4; or a Raster. quality: 1 (smallest) to 100. metadata: what the file carries of
        colour profile, EXIF and XMP, "all", "no-gps" or "none". effort: 1 (fastest) to 9: search for better codes,
        which costs time here and none in decoding.
        Raises ValueError for anything else, LimitExceeded for a picture larger than the format holds.
        """
        return self.encode_batch([image], quality, metadata, effort)[0]

    def encode_batch(
        self,
        images: Sequence[Picture],
        quality: float | Sequence[float] = 50,
        metadata: str = "all",
        effort: int = search.DEFAULT,
    ) -> list[bytes]:
        """`encode` for pictures of any sizes; those of equal padded size share one pass. Order is kept."""
        return [data for data, _ in self._files(images, quality, metadata, effort)]

    def encode_with_codes(
        self, image: Picture, quality: float = 50, metadata: str = "all", effort: int = search.DEFAULT
    ) -> tuple[bytes, list[Tensor]]:
        """`encode`, and the codes that went into the file, to be compared with what `codes` reads from it."""
        return self._files([image], quality, metadata, effort, with_codes=True)[0]

    def _files(
        self,
        images: Sequence[Picture],
        quality: float | Sequence[float],
        metadata: str,
        effort: int,
        with_codes: bool = False,
    ) -> list[tuple[bytes, list[Tensor]]]:
        """Files of pictures, and their codes where these are wanted."""
        qualities = [quality] * len(images) if isinstance(quality, int | float) else list(quality)
        if len(qualities) != len(images):
            raise ValueError(f"{len(images)} images but {len(qualities)} qualities")
        if metadata not in METADATA:
            raise ValueError(f"metadata must be one of {', '.join(METADATA)}, got {metadata!r}")
        levels = [level_of(q) for q in qualities]
        steps = search.steps_of(effort)
        rasters = [to_raster(image) for image in images]
        canvases = [self._canvas(*raster.size[::-1]) if with_codes else [] for raster in rasters]
        payloads = self._payloads(rasters, levels, steps, canvases)
        files = [
            container.pack(
                Container(
                    Header(*raster.size, level, self.fingerprint, raster.kind, self.tile),
                    payload,
                    _sections(raster, metadata),
                )
            )
            for raster, level, payload in zip(rasters, levels, payloads, strict=True)
        ]
        return list(zip(files, canvases, strict=True))

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
        return batch.encoded(lambda rasters: self.encode_batch(rasters, quality, metadata, effort), items, readers)

    def _payloads(
        self, rasters: Sequence[Raster], levels: Sequence[int], steps: int, canvases: list[list[Tensor]]
    ) -> list[bytes]:
        """The sections of codes of pictures; steps: of the search; codes go into `canvases` that are not empty."""
        for raster in rasters:
            container.check_size(*raster.size)
        jobs = [
            tile
            for item, (raster, level) in enumerate(zip(rasters, levels, strict=True))
            for tile in self._tiles(item, raster.size, level)
        ]
        done: list[tuple[bytes, list[int]]] = [(b"", [])] * len(jobs)

        def work(members: list[int]) -> None:
            group = [jobs[i] for i in members]
            inner, seams = group[0].inner, group[0].seams
            levels = [tile.level for tile in group]
            windows = [rasters[tile.item].crop(*tile.outer) for tile in group]
            kinds = [rasters[tile.item].kind for tile in group]
            streams, codes = self._encode(windows, kinds, levels, inner, seams, steps)
            for item, tile in enumerate(group):
                self._place(canvases[tile.item], tile.box, codes, item)
            ends: list[list[int]] = [[]] * len(streams)
            if any(seams):  # where the stages end shows in reading them back
                words = self._decode(streams, inner.bottom - inner.top, inner.right - inner.left, levels)[1]
                reads = torch.stack(words, 1).tolist()
                ends = [_ends(stream, read) for stream, read in zip(streams, reads, strict=True)]
            for i, stream, end in zip(members, streams, ends, strict=True):
                done[i] = stream, end

        batches = self._batches([tile.key for tile in jobs], [tile.padded for tile in jobs])
        # gradients take several times the memory of an encoding: one tile at a time
        self._each(work, batches, 1 if steps else self.tile_workers)
        of_picture: list[list[tuple[bytes, list[int]]]] = [[] for _ in rasters]
        for tile, result in zip(jobs, done, strict=True):
            of_picture[tile.item].append(result)
        return [tiles.pack(*zip(*results, strict=True)) for results in of_picture]

    def _tiles(self, item: int, size: tuple[int, int], level: int) -> list[_Tile]:
        width, height = size
        halo = min(self._padded(HALO, HALO)[0], self.tile)
        jobs = []
        for left, top, right, bottom in tiles.grid(width, height, self.tile):
            outer = max(0, left - halo), max(0, top - halo), min(width, right + halo), min(height, bottom + halo)
            padded = self._padded(outer[3] - outer[1], outer[2] - outer[0])
            tall, wide = self._padded(bottom - top, right - left)
            inner = Box(top - outer[1], left - outer[0], top - outer[1] + tall, left - outer[0] + wide)
            seams = (
                tuple(cut for cut in (inner.top, inner.bottom) if 0 < cut < padded[0]),
                tuple(cut for cut in (inner.left, inner.right) if 0 < cut < padded[1]),
            )
            jobs.append(_Tile(item, level, outer, padded, inner, seams))
        return jobs

    def _encode(
        self,
        windows: list[Samples],
        kinds: list[Kind],
        levels: list[int],
        inner: Box,
        seams: Seams,
        steps: int,
    ) -> tuple[list[bytes], list[Tensor]]:
        """Tiles, `inner` of windows of one padded size: their streams, and per stage their codes, `[B, M, h, w]`."""
        x = torch.cat([to_tensor(w, self.model.config.multiple) for w in windows]).to(self.device)
        level, cuts = self._levels(levels), seams if any(seams) else None
        first = _Pass(self, len(windows), inner)
        with torch.no_grad(), self._precision():
            state = self.model.encode(x, level, first.assign, cuts)
        streams = first.coder.finish()
        if steps == 0 or not search.searchable(self.model):
            return streams, first.coded

        with torch.no_grad(), self._precision():
            sizes, grey = [(w.shape[0], w.shape[1]) for w in windows], [kind.grey for kind in kinds]
            better = search.Search(self.model, x, level, sizes, grey, cuts).latents(first.codes, steps)
            second = _Pass(self, len(windows), inner)

            def choose(index: int, _: Tensor, offset: Tensor | None, scale: Tensor | None) -> tuple[Tensor, Tensor]:
                if index in better:
                    codes = second.assign(index, better[index], offset, scale)
                else:
                    codes = second.add(index, first.codes[index], offset, scale)
                book = self.model.stage(index).codebooks
                return book.lookup(codes), book.lookup_coordinates(codes)

            states = state, self.model.walk(x.shape[2], x.shape[3], level, choose, cuts)
            pictures = [self.model.synthesis(s, level).float().cpu() for s in states]
        others = second.coder.finish()
        for i, pixels in enumerate(windows):
            costs = [
                self._cost(picture[i : i + 1], pixels, kinds[i], levels[i], inner, stream)
                for picture, stream in zip(pictures, (streams[i], others[i]), strict=True)
            ]
            if costs[1] < costs[0]:  # by what a decoder makes of it
                streams[i] = others[i]
                for mine, theirs in zip(first.coded, second.coded, strict=True):
                    mine[i] = theirs[i]
        return streams, first.coded

    def _cost(self, picture: Tensor, window: Samples, kind: Kind, level: int, inner: Box, stream: bytes) -> float:
        """lambda * 255^2 * squared error + bits of a tile, from the synthesis of its window `[1, 3, H', W']`."""
        decoded = from_tensor(picture, window.shape[0], window.shape[1], kind)
        tile = slice(inner.top, inner.bottom), slice(inner.left, inner.right)
        error = (decoded[tile].astype(np.float64) - window[tile]) * (255 / np.iinfo(window.dtype).max)
        pixels = error.shape[0] * error.shape[1]
        return self.model.config.lam(level) * float(np.square(error).mean()) * pixels + 8 * len(stream)

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
            return _raster(file, _region(file.header, None), _Decoded(self, file, stages, partial))
        return self._rasters([file], stages, region, partial)[0]

    def decode_with_codes(
        self, data: bytes, max_pixels: int | None = container.MAX_DECODED_PIXELS
    ) -> tuple[Raster, list[Tensor]]:
        """`decode_raster` and `codes` at once."""
        files = [self._open(data, max_pixels)]
        canvases = self._canvases(files)
        boxes = [_region(files[0].header, None)]
        return self._rendered(files, canvases, boxes, whole=True)[0], [stage.cpu() for stage in canvases[0]]

    def decode_batch(
        self, data: Sequence[bytes], max_pixels: int | None = container.MAX_DECODED_PIXELS
    ) -> list[Image.Image]:
        """`decode` for files of any sizes; those of equal padded size share one pass. Order is kept."""
        return [raster.image() for raster in self._rasters([self._open(d, max_pixels) for d in data])]

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
        return [[stage.cpu() for stage in stages] for stages in self._canvases(files)]

    def stage_bytes(self, data: bytes, max_pixels: int | None = container.MAX_DECODED_PIXELS) -> list[int]:
        """How many bytes of a file each stage takes."""
        file = self._open(data, max_pixels)
        streams = file.streams()
        if streams.sizes is not None:
            return [sum(stage) for stage in streams.sizes]
        padded = self._padded(file.header.height, file.header.width)
        stream = streams.stream(0)
        words = self._decode([stream], *padded, [file.header.level])[1]
        ends = _ends(stream, torch.cat(words).tolist())
        return [end - begin for begin, end in pairwise((0, *ends))]

    def _open(self, data: bytes, max_pixels: int | None, partial: bool = False) -> Container:
        file = container.unpack(data, partial, max_pixels)
        if file.header.fingerprint != self.fingerprint:
            raise WrongModel(
                f"the file was made by weights {file.header.fingerprint.hex()}, "
                f"but {self.fingerprint.hex()} are loaded"
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
        boxes = [_region(file.header, region) for file in files]
        canvases = self._canvases(files, stages, None if region is None else boxes, partial)
        return self._rendered(files, canvases, boxes, whole=region is None)

    def _rendered(
        self, files: list[Container], canvases: list[list[Tensor]], boxes: list[Box], whole: bool
    ) -> list[Raster]:
        """The parts of pictures that lie in `boxes`, which are all of them or not; from their codes."""
        out: list[Samples | None] = [None] * len(files)
        single = [i for i, file in enumerate(files) if file.header.tiles == 1 and whole]

        def together(members: list[int]) -> None:
            group = [single[i] for i in members]
            height, width = self._padded(files[group[0]].header.height, files[group[0]].header.width)
            codes = [torch.stack(stage) for stage in zip(*(canvases[i] for i in group), strict=True)]
            pictures = self._synthesize(codes, height, width, [files[i].header.level for i in group])
            for i, picture in zip(group, pictures, strict=True):
                header = files[i].header
                out[i] = from_tensor(picture[None], header.height, header.width, header.kind)

        # only what has all its stages can share a pass: of a partial file, some may be missing
        sizes = [self._padded(files[i].header.height, files[i].header.width) for i in single]
        keys = [(size, len(canvases[i])) for size, i in zip(sizes, single, strict=True)]
        for members in self._batches(keys, sizes):
            together(members)
        for i, file in enumerate(files):
            if i not in single:
                out[i] = self._windows(file.header, canvases[i], boxes[i])
        return [
            _raster(file, box, samples)
            for file, box, samples in zip(files, boxes, out, strict=True)
            if samples is not None
        ]

    def _check_stages(self, stages: int | None) -> None:
        if stages is not None and not 1 <= stages <= self.stages:
            raise ValueError(f"stages must be from 1 to {self.stages}, got {stages}")

    def _windows(self, header: Header, canvas: list[Tensor], region: Box, above: int = 0) -> Samples:
        """A part of a picture, window by window. above: the row of the picture (pixels) where the canvas begins."""
        height, width = self._padded(header.height, header.width)
        tall, wide = region.bottom - region.top, region.right - region.left
        out: NDArray[Any] = np.empty(
            (tall, wide) if header.kind.grey else (tall, wide, 3), np.uint16 if header.kind.bits == 16 else np.uint8
        )

        def work(place: tuple[int, int, int, int]) -> None:
            left, top, right, bottom = place
            pixels = Box(top + region.top, left + region.left, bottom + region.top, right + region.left)
            part = window(self.model, pixels, height, width)
            codes = [
                box.crop(stage, Box(above // config.stride, 0, 0, 0))[None].to(self.device, torch.int32)
                for box, stage, config in zip(part.around, canvas, self.model.config.stages, strict=False)
            ]
            picture = self._synthesize(codes, height, width, [header.level], part)
            origin = part.inside[-1].finer(self.model.config.stages[-1].stride)
            samples = from_tensor(pixels.crop(picture, origin), bottom - top, right - left, header.kind)
            out[top:bottom, left:right] = samples

        self._each(work, tiles.grid(wide, tall, self.tile))
        return out

    def _synthesize(
        self, codes: list[Tensor], height: int, width: int, levels: list[int], part: Any = None
    ) -> Tensor:
        level = self._levels(levels)
        with torch.no_grad(), self._precision():
            state = self.model.synthesize(codes, height, width, level, part)
            return self.model.synthesis(state, level).float().cpu()

    def _canvases(
        self,
        files: list[Container],
        stages: int | None = None,
        regions: list[Box] | None = None,
        partial: bool = False,
        row: int | None = None,
    ) -> list[list[Tensor]]:
        """Codes of whole pictures, `[M, H/r, W/r]` per stage; of tiles that `regions` do not need, zeros.

        row: of this row of tiles alone.
        """
        held = [file.streams() for file in files]
        canvases: list[list[Tensor]] = [[] for _ in files]
        jobs: list[tuple[int, int, Box, int]] = []  # file, tile, its place, stages to read
        for i, file in enumerate(files):
            count = self.stages if stages is None else stages
            header, sizes = file.header, held[i].sizes
            if sizes is not None:
                if len(sizes) != self.stages:
                    raise CorruptStream(f"{len(sizes)} stages are coded, but the weights have {self.stages}")
                count = min(count, len(held[i].pieces[0]))
                if count == 0:
                    raise CorruptStream("the file ends before its first stage does")
            height, width = self._padded(header.height, header.width)
            part = None if regions is None else window(self.model, regions[i], height, width)
            begin, end = (0, height) if row is None else (row * header.tile, min((row + 1) * header.tile, height))
            for tile, (left, top, right, bottom) in enumerate(tiles.grid(header.width, header.height, header.tile)):
                if not begin <= top < end:
                    continue
                tall, wide = self._padded(bottom - top, right - left)
                box = Box(top - begin, left, top - begin + tall, left + wide)
                needed = [index + 1 for index in range(count) if part is None or self._meet(box, index, part.around)]
                if needed:
                    jobs.append((i, tile, box, max(needed)))
            if header.tiles > 1:
                canvases[i] = self._canvas(end - begin, header.width, count)

        def work(members: list[int]) -> None:
            group = [jobs[i] for i in members]
            _, _, box, count = group[0]
            codes, _ = self._decode(
                [held[i].stream(tile, count) for i, tile, _, _ in group],
                box.bottom - box.top,
                box.right - box.left,
                [files[i].header.level for i, _, _, _ in group],
                count,
                partial,
            )
            for item, (i, _, place, _) in enumerate(group):
                if files[i].header.tiles == 1:
                    canvases[i] = [stage[item] for stage in codes]
                    continue
                self._place(canvases[i], place, codes, item)

        sizes_of = [(box.bottom - box.top, box.right - box.left) for _, _, box, _ in jobs]
        # of a partial file each tile may end elsewhere
        keys = [(size, count, i if partial else 0) for size, (i, _, _, count) in zip(sizes_of, jobs, strict=True)]
        self._each(work, self._batches(keys, sizes_of))
        return canvases

    def _canvas(self, height: int, width: int, stages: int | None = None) -> list[Tensor]:
        """Codes of a whole picture to be filled in, zeros `[M, H/r, W/r]` per stage."""
        height, width = self._padded(height, width)
        # 16 bits hold any code and are half of what a large picture would take otherwise
        return [
            torch.zeros(s.groups, height // s.stride, width // s.stride, dtype=torch.int16)
            for s in self.model.config.stages[:stages]
        ]

    def _place(self, canvas: list[Tensor], box: Box, codes: list[Tensor], item: int) -> None:
        """Puts the codes of an item of a batch of tiles where they belong; in the stages that both have."""
        for config, stage, whole in zip(self.model.config.stages, codes, canvas, strict=False):
            top, left, bottom, right = box.coarser(config.stride)
            whole[:, top:bottom, left:right] = stage[item]

    def _meet(self, tile: Box, index: int, around: Sequence[Box]) -> bool:
        """Whether a stage of a region needs anything of a tile (pixels)."""
        top, left, bottom, right = tile.coarser(self.model.config.stages[index].stride)
        box = around[index]
        return top < box.bottom and box.top < bottom and left < box.right and box.left < right

    def _decode(
        self,
        streams: list[bytes],
        height: int,
        width: int,
        levels: list[int],
        count: int | None = None,
        partial: bool = False,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Tiles of one padded size: per stage the codes, `[B, M, h, w]`, and how many words are read at its end, `[B]`.

        count: how many stages to read. partial: as many of them as are whole.
        """
        decoder = entropy.batch_decoder(streams, self.device, truncated=partial)
        kept: list[Tensor] = []
        words: list[Tensor] = []

        def read(index: int, offset: Tensor | None, scale: Tensor | None) -> Tensor:
            stage = self.model.config.stages[index]
            grid = (height // stage.stride, width // stage.stride)
            shape = (stage.groups, grid[0] * grid[1])
            codes = decoder.decode_stage(self._tables[index], *self._prior(index, offset, scale), shape)
            kept.append(codes.unflatten(2, grid))
            words.append(decoder.words_read)
            return kept[-1]

        try:
            with self._precision():
                self.model.read(height, width, self._levels(levels), read, count)
        except CorruptStream:
            if not partial or not kept:
                raise
            return kept, words
        if (count is None or count == self.stages) and not partial:
            decoder.finish()
        return kept, words

    # ---- shared -------------------------------------------------------------------------------------------

    def _prior(
        self, index: int, offset: Tensor | None, scale: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Prior parameters of a stage, `[B, M, d, P]`."""
        if offset is None or scale is None:
            return None, None
        vectors: Callable[[Tensor], Tensor] = self.model.stage(index).codebooks.vectors
        return vectors(offset), vectors(scale)

    def _levels(self, levels: Sequence[int]) -> Tensor:
        return torch.tensor(levels, dtype=torch.float32, device=self.device)

    def _padded(self, height: int, width: int) -> tuple[int, int]:
        multiple = self.model.config.multiple
        return -(-height // multiple) * multiple, -(-width // multiple) * multiple

    def _batches(self, keys: Sequence[Any], sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
        """Indices of equal key, in batches of at most BATCH_PIXELS (at least one tile)."""
        groups: dict[Any, list[int]] = {}
        for index, key in enumerate(keys):
            groups.setdefault(key, []).append(index)
        batches = []
        for members in groups.values():
            height, width = sizes[members[0]]
            # On a CPU large tiles gain nothing by sharing a pass, and memory is what they lack.
            limit = BATCH_PIXELS if self.device.type != "cpu" else container.TILE**2
            count = max(1, limit // (height * width))
            batches += [members[i : i + count] for i in range(0, len(members), count)]
        return batches

    def _each(self, work: Callable[[T], None], jobs: Iterable[T], workers: int | None = None) -> None:
        """`work` for all jobs, on so many threads (default: `tile_workers`)."""
        jobs, workers = list(jobs), workers or self.tile_workers
        if workers < 2 or len(jobs) < 2:
            for job in jobs:
                work(job)
            return
        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(work, job) for job in jobs]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


class _Decoded(Strips):
    """The samples of a tiled file, decoded where they are read.

    The codes of the rows of tiles that the last reading needed are kept: from top to bottom each is decoded once.
    """

    def __init__(self, codec: Codec, file: Container, stages: int | None, partial: bool) -> None:
        header = file.header
        shape = (header.height, header.width) if header.kind.grey else (header.height, header.width, 3)
        super().__init__(shape, np.uint16 if header.kind.bits == 16 else np.uint8)
        self._codec, self._file, self._stages, self._partial = codec, file, stages, partial
        self._rows: dict[int, list[Tensor]] = {}
        self._lock = Lock()

    def crop(self, left: int, top: int, right: int, bottom: int) -> Samples:
        codec, header = self._codec, self._file.header
        region = Box(top, left, bottom, right)
        around = window(codec.model, region, *codec._padded(header.height, header.width)).around
        strides = [stage.stride for stage in codec.model.config.stages]
        begin = min(box.top * stride for box, stride in zip(around, strides, strict=True))
        end = max(box.bottom * stride for box, stride in zip(around, strides, strict=True))
        rows = range(begin // header.tile, -(-end // header.tile))
        with self._lock:
            self._rows = {row: codes for row, codes in self._rows.items() if row in rows}
            for row in rows:
                if row not in self._rows:
                    self._rows[row] = codec._canvases([self._file], self._stages, None, self._partial, row)[0]
            canvas = [torch.cat(stage, 1) for stage in zip(*(self._rows[row] for row in rows), strict=True)]
        return codec._windows(header, canvas, region, rows.start * header.tile)


class _Pass:
    """One run through the stages of B tiles: chooses and keeps codes, and codes what lies in `inner`."""

    def __init__(self, codec: Codec, batch: int, inner: Box) -> None:
        self._codec, self._inner = codec, inner
        self.coder = entropy.batch_encoder(batch, codec.device)
        self.codes: list[Tensor] = []  # of the stages so far, `[B, M, h, w]`, of the whole window
        self.coded: list[Tensor] = []  # those in `inner`

    def assign(self, index: int, latents: Tensor, offset: Tensor | None, scale: Tensor | None) -> Tensor:
        """Rate-aware codes of a stage; see `Cascade.encode`."""
        book = self._codec.model.stage(index).codebooks
        prior = self._codec._prior(index, offset, scale)
        tables = self._codec._tables[index]
        codes = self.coder.choose(tables, *prior, book.vectors(latents), book.codewords, BETA)
        return self.add(index, codes.unflatten(2, latents.shape[2:]), offset, scale)

    def add(self, index: int, codes: Tensor, offset: Tensor | None, scale: Tensor | None) -> Tensor:
        """Code these codes as the stage's."""
        grid = codes.shape[2], codes.shape[3]
        tile = self._inner.coarser(self._codec.model.config.stages[index].stride)
        g, s = self._codec._prior(index, offset, scale)
        part = _part(codes.flatten(2), grid, tile)
        self.coder.add_stage(self._codec._tables[index], _part(g, grid, tile), _part(s, grid, tile), part)
        self.codes.append(codes)
        self.coded.append(part.unflatten(2, (tile.bottom - tile.top, tile.right - tile.left)))
        return codes


def _ends(stream: bytes, words: Sequence[int]) -> list[int]:
    """Bytes of a stream up to the end of each stage, from the words read until there; the last has read all."""
    return [len(stream) - tiles.WORD_BYTES * (words[-1] - read) for read in words]


def _part(x: Any, grid: tuple[int, int], box: Box) -> Any:
    """`box` of the last axis of a tensor (or None), which runs over the positions of a grid."""
    if x is None or grid == (box.bottom - box.top, box.right - box.left):
        return x
    return box.crop(x.unflatten(-1, grid), Box(0, 0, *grid)).flatten(-2)


def _region(header: Header, region: tuple[int, int, int, int] | None) -> Box:
    """The part of a picture that is wanted; ValueError where it is none."""
    if region is None:
        return Box(0, 0, header.height, header.width)
    x, y, width, height = region
    if width < 1 or height < 1 or x < 0 or y < 0 or x + width > header.width or y + height > header.height:
        raise ValueError(
            f"region {x},{y},{width},{height} is not within the picture of {header.width}x{header.height}"
        )
    return Box(y, x, y + height, x + width)


def _sections(raster: Raster, metadata: str) -> tuple[tuple[int, bytes], ...]:
    """What a file holds beside the codes."""
    kept = raster.metadata.kept(metadata)
    sections = [(TAG_ICC, kept.icc), (TAG_EXIF, kept.exif), (TAG_XMP, kept.xmp)]
    if raster.alpha is not None:
        sections.append((TAG_ALPHA, alpha.pack(raster.alpha)))
    return tuple((tag, payload) for tag, payload in sections if payload)


def _raster(file: Container, box: Box, samples: Samples | Strips) -> Raster:
    """The decoded picture with what its file holds beside the codes."""
    plane = None
    if data := file.section(TAG_ALPHA):
        whole = alpha.unpack(data, file.header.width, file.header.height)
        plane = whole[box.top : box.bottom, box.left : box.right]
    metadata = Metadata(file.section(TAG_ICC), file.section(TAG_EXIF), file.section(TAG_XMP))
    return Raster(samples, file.header.kind, plane, metadata)


__all__ = ["Codec", "load"]
