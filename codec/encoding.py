"""Pictures to payloads: tile by tile, the codes that the weights and the search choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mcodec import container, entropy, postfilter, tiles
from mcodec.container import Kind
from mcodec.decoding import place_codes, read_tiles, stage_ends
from mcodec.engine import Engine
from mcodec.image import Raster, Samples
from mcodec.image.pixels import from_tensor, to_tensor, window_tensor
from mcodec.model import search, shifts
from mcodec.model.cascade import BETA
from mcodec.model.similarity import dissimilarity
from mcodec.model.walk import Seams
from mcodec.model.window import Box

#: How far beyond its tile an encoder looks: it guesses there what the neighbours will choose, as their codes decide
#: what a decoder adds inside of the tile. On validation pictures in tiles of 256 pixels 64 loses up to 0.002 dB (in
#: the worst picture 0.011) against it, 192 gains nothing.
HALO = 128
#: Memory of a search, which keeps all activations, against that of an encoding: a guess, not measured on a GPU.
GRADIENTS = 4


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
    def shown(self) -> Box:
        """`inner` without padding."""
        left, top, right, bottom = self.outer
        inner = self.inner
        return inner._replace(bottom=min(inner.bottom, bottom - top), right=min(inner.right, right - left))

    @property
    def key(self) -> tuple[Any, ...]:
        """Tiles with the same key can be encoded together."""
        return self.padded, self.inner


@dataclass
class _Coded:
    """What came of a tile."""

    stream: bytes = b""
    ends: Sequence[int] = ()  # of its stages in the stream, where tiles share a section
    shifts: Sequence[int] = ()  # of its stages
    sums: Tensor | None = None  # what the filter is fitted to


class Payload(NamedTuple):
    """Sections of a file; what would not pay is empty."""

    codes: bytes
    shifts: bytes
    filter: bytes


def payloads(
    engine: Engine, rasters: Sequence[Raster], levels: Sequence[int], steps: int, canvases: list[list[Tensor]]
) -> list[Payload]:
    """The sections of pictures; codes go into `canvases` that are not empty. steps: of the search."""
    for raster in rasters:
        container.check_size(*raster.size)
    jobs = [
        tile
        for item, (raster, level) in enumerate(zip(rasters, levels, strict=True))
        for tile in _tiles(engine, item, raster.size, level)
    ]
    done = [_Coded() for _ in jobs]
    waiting: list[Callable[[], None]] = []
    squared = engine.model.config.distortion == "mse"

    def work(members: list[int]) -> None:
        group = [jobs[i] for i in members]
        inner, seams = group[0].inner, group[0].seams
        levels = [tile.level for tile in group]
        windows = [(rasters[tile.item], tile.outer) for tile in group]
        results, codes, x, pictures = _encode(engine, windows, levels, inner, seams, steps)
        for i, item, tile in zip(members, range(len(group)), group, strict=True):
            place_codes(engine, canvases[tile.item], tile.box, codes, item)
            kind = rasters[tile.item].kind
            if kind is not Kind.BILEVEL and squared:  # the filter is fitted by squared error
                limit = postfilter.clipping(engine.model.config.lam(tile.level))
                done[i].sums = postfilter.statistics(pictures[item], x[item], tile.shown, kind.grey, limit)

        def settle() -> None:
            streams, reads, moved = results()
            ends: list[list[int]] = [[]] * len(streams)
            if any(seams):
                if reads is None:  # where the stages end shows in reading them back
                    reads = torch.stack(read_tiles(engine, streams, *inner.size, levels, moved)[1], 1).tolist()
                ends = [stage_ends(stream, read) for stream, read in zip(streams, reads, strict=True)]
            for i, stream, end, move in zip(members, streams, ends, moved, strict=True):
                done[i].stream, done[i].ends, done[i].shifts = stream, end, move

        if engine.device.type == "cpu":
            settle()
        else:  # the host waits for no pass before all are queued
            waiting.append(settle)

    # gradients take several times the memory of an encoding: one tile at a time, on a GPU a part of as many
    searched = steps > 0 and engine.device.type != "cpu"
    paced = replace(engine, batch_pixels=engine.batch_pixels // GRADIENTS) if searched else engine
    batches = paced.batches([tile.key for tile in jobs], [tile.padded for tile in jobs])
    engine.each(work, batches, 1 if steps else engine.tile_workers)
    for settle in waiting:
        settle()
    of_picture: list[list[_Coded]] = [[] for _ in rasters]  # its tiles
    for tile, coded in zip(jobs, done, strict=True):
        of_picture[tile.item].append(coded)
    return [
        Payload(
            tiles.pack([tile.stream for tile in members], [tile.ends for tile in members]),
            tiles.pack_shifts([tile.shifts for tile in members]),
            _filter(engine, [tile.sums for tile in members if tile.sums is not None], level, raster.kind),
        )
        for members, level, raster in zip(of_picture, levels, rasters, strict=True)
    ]


def _filter(engine: Engine, products: list[Tensor], level: int, kind: Kind) -> bytes:
    weight = engine.model.config.sample_weight(level)
    return postfilter.fit(torch.stack(products).sum(0), weight, kind.grey) if products else b""


def _tiles(engine: Engine, item: int, size: tuple[int, int], level: int) -> list[_Tile]:
    width, height = size
    halo = min(engine.padded(HALO, HALO)[0], engine.tile)
    jobs = []
    for left, top, right, bottom in tiles.grid(width, height, engine.tile):
        outer = max(0, left - halo), max(0, top - halo), min(width, right + halo), min(height, bottom + halo)
        padded = engine.padded(outer[3] - outer[1], outer[2] - outer[0])
        tall, wide = engine.padded(bottom - top, right - left)
        inner = Box(top - outer[1], left - outer[0], top - outer[1] + tall, left - outer[0] + wide)
        seams = (
            tuple(cut for cut in (inner.top, inner.bottom) if 0 < cut < padded[0]),
            tuple(cut for cut in (inner.left, inner.right) if 0 < cut < padded[1]),
        )
        jobs.append(_Tile(item, level, outer, padded, inner, seams))
    return jobs


#: Of a batch of tiles: streams, the words that a decoder has read of each at the end of each stage, where known, and
#: the shifts of each one's stages.
_Results = tuple[list[bytes], "list[list[int]] | None", list[list[int]]]


def _encode(
    engine: Engine,
    windows: list[tuple[Raster, tuple[int, int, int, int]]],
    levels: list[int],
    inner: Box,
    seams: Seams,
    steps: int,
) -> tuple[Callable[[], _Results], list[Tensor], Tensor, Tensor]:
    """Tiles, `inner` of windows of one padded size: what waits for streams, codes per stage, `[B, M, h, w]`, and the
    windows, original and as a decoder makes them, `[B, 3, H, W]`.

    windows: pictures, and (left, top, right, bottom) in them.
    """
    multiple = engine.model.config.multiple
    x = torch.cat([window_tensor(raster, outer, multiple, engine.device) for raster, outer in windows])
    level, cuts = engine.level_tensor(levels), seams if any(seams) else None
    first = _Pass(engine, len(windows), inner)
    with torch.no_grad(), engine.precision():
        state = engine.model.encode(x, level, first.assign, cuts)
        first.coder.seal()
        picture = engine.model.synthesis(state, level).float()
    if steps == 0 or not search.searchable(engine.model):
        return partial(_results, first.coder, first.shifts), first.coded, x, picture

    streams, reads, moves = _results(first.coder, first.shifts)
    kinds, pixels = [raster.kind for raster, _ in windows], [raster.crop(*outer) for raster, outer in windows]
    with torch.no_grad(), engine.precision():
        sizes, grey = [(w.shape[0], w.shape[1]) for w in pixels], [kind.grey for kind in kinds]
        better = search.Search(engine.model, x, level, sizes, grey, first.shifts, cuts).latents(first.codes, steps)
        second = _Pass(engine, len(windows), inner)

        def choose(index: int, _: Tensor, offset: Tensor | None, scale: Tensor | None) -> tuple[Tensor, Tensor]:
            if index in better:
                codes = second.assign(index, better[index], offset, scale)
            else:
                codes = second.add(index, first.codes[index], offset, scale, first.shifts[index])
            book = engine.model.stage(index).codebooks
            return book.lookup(codes), book.lookup_coordinates(codes)

        state = engine.model.walk(x.shape[2], x.shape[3], level, choose, cuts)
        pictures = [picture, engine.model.synthesis(state, level).float()]
    others, other_reads, other_moves = _results(second.coder, second.shifts)
    for i, window in enumerate(pixels):
        costs = [
            _cost(engine, picture[i].cpu(), window, kinds[i], levels[i], inner, stream)
            for picture, stream in zip(pictures, (streams[i], others[i]), strict=True)
        ]
        if costs[1] < costs[0]:  # by what a decoder makes of it
            streams[i], moves[i] = others[i], other_moves[i]
            pictures[0][i] = pictures[1][i]
            if reads is not None and other_reads is not None:
                reads[i] = other_reads[i]
            for mine, theirs in zip(first.coded, second.coded, strict=True):
                mine[i] = theirs[i]
    return (lambda: (streams, reads, moves)), first.coded, x, pictures[0]


def _cost(
    engine: Engine, picture: Tensor, window: Samples, kind: Kind, level: int, inner: Box, stream: bytes
) -> float:
    """Distortion and bits of a tile, as the search weighs them, from the synthesis of its window `[3, H', W']`."""
    config, tile = engine.model.config, (slice(inner.top, inner.bottom), slice(inner.left, inner.right))
    a, b = from_tensor(picture, window.shape[0], window.shape[1], kind)[tile], window[tile]
    if config.distortion == "mse":
        error = float(np.square((a.astype(np.float64) - b) / np.iinfo(b.dtype).max).mean())
    else:
        error = float(dissimilarity(to_tensor(a, 1), to_tensor(b, 1)))
    return config.lam(level) * config.distortion_weight * error * b.shape[0] * b.shape[1] + 8 * len(stream)


def _results(coder: entropy.BatchEncoder, moves: list[Tensor]) -> _Results:
    streams = coder.finish()
    return streams, coder.stage_words(), torch.stack(moves, 1).tolist()


class _Pass:
    """One run through the stages of B tiles: chooses and keeps codes, and codes what lies in `inner`."""

    def __init__(self, engine: Engine, batch: int, inner: Box) -> None:
        self._engine, self._inner = engine, inner
        self.coder = entropy.batch_encoder(batch, engine.device, engine.lane_share)
        self.codes: list[Tensor] = []  # of the stages so far, `[B, M, h, w]`, of the whole window
        self.coded: list[Tensor] = []  # those in `inner`
        self.shifts: list[Tensor] = []  # `[B]` each

    def assign(self, index: int, latents: Tensor, offset: Tensor | None, scale: Tensor | None) -> Tensor:
        """Rate-aware codes of a stage; see `Cascade.encode`."""
        shift = self._shift(index, latents, offset, scale)
        codes = self._choose(index, latents, offset, scale, shift)
        return self.add(index, codes.unflatten(2, latents.shape[2:]), offset, scale, shift)

    def _choose(
        self, index: int, latents: Tensor, offset: Tensor | None, scale: Tensor | None, shift: Tensor | None
    ) -> Tensor:
        book, prior = self._engine.model.stage(index).codebooks, self._engine.prior(index, offset, scale, shift)
        return self.coder.choose(self._engine.tables[index], *prior, book.vectors(latents), book.codewords, BETA)

    def _shift(self, index: int, latents: Tensor, offset: Tensor | None, scale: Tensor | None) -> Tensor:
        """Of the stage's scales, by the codes that some positions would have without."""
        if offset is None or scale is None:
            return torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
        book, step = self._engine.model.stage(index).codebooks, shifts.spread(latents.shape[2] * latents.shape[3])
        v, g, s = (part.flatten(2)[:, :, ::step].contiguous() for part in (latents, offset, scale))
        value = book.lookup(self._choose(index, v[..., None], g[..., None], s[..., None], None)[..., None])
        return shifts.best(value[..., 0], g, s, self._engine.model.config.sigma_min, step)

    def add(self, index: int, codes: Tensor, offset: Tensor | None, scale: Tensor | None, shift: Tensor) -> Tensor:
        """Code these codes as the stage's."""
        grid = codes.shape[2], codes.shape[3]
        tile = self._inner.coarser(self._engine.model.config.stages[index].stride)
        g, s = self._engine.prior(index, offset, scale, shift)
        part = _part(codes.flatten(2), grid, tile)
        self.coder.add_stage(self._engine.tables[index], _part(g, grid, tile), _part(s, grid, tile), part)
        self.shifts.append(shift)
        self.codes.append(codes)
        self.coded.append(part.unflatten(2, tile.size))
        return codes


def _part(x: Any, grid: tuple[int, int], box: Box) -> Any:
    """`box` of the last axis of a tensor (or None), which runs over the positions of a grid."""
    if x is None or grid == box.size:
        return x
    return box.crop(x.unflatten(-1, grid), Box(0, 0, *grid)).flatten(-2)
