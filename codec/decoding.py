"""Files to samples: reading the codes of tiles, and making the picture of them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcodec import container, entropy, postfilter, tiles
from mcodec.container import Container, Header
from mcodec.engine import Engine
from mcodec.errors import CorruptStream
from mcodec.image import Samples, Strips
from mcodec.image.pixels import from_tensor, to_uint8
from mcodec.kernels.backend import upload
from mcodec.kernels.pixel_filter import REACH
from mcodec.model.window import Box, Window, window


def wanted(header: Header, region: tuple[int, int, int, int] | None) -> Box:
    """The part of a picture that is wanted; ValueError where it is none."""
    if region is None:
        return Box(0, 0, header.height, header.width)
    try:
        x, y, width, height = map(operator.index, region)  # of numpy, small types would wrap around
    except TypeError as error:
        raise ValueError(f"a region is four whole numbers (x, y, width, height), got {region!r}") from error
    if width < 1 or height < 1 or x < 0 or y < 0 or x + width > header.width or y + height > header.height:
        raise ValueError(
            f"region {x},{y},{width},{height} is not within the picture of {header.width}x{header.height}"
        )
    return Box(y, x, y + height, x + width)


def held_stages(file: Container, total: int) -> int:
    """Stages that a file holds of every tile, as far as that shows before decoding, of `total` that the weights have.

    CorruptStream where its table is of others, before as many entries are taken apart as it claims, or holds none.
    """
    if file.header.tiles == 1:
        return total
    if file.codes and file.codes[0] not in (0, total):
        raise CorruptStream(f"{file.codes[0]} stages are coded, but the weights have {total}")
    held = len(file.streams.pieces[0])
    if held == 0:
        raise CorruptStream("the file ends before its first stage does")
    return held


def read_codes(
    engine: Engine,
    files: list[Container],
    stages: int | None = None,
    regions: list[Box] | None = None,
    partial: bool = False,
    row: int | None = None,
    checks: list[Callable[[], None]] | None = None,
) -> list[list[Tensor]]:
    """Codes of whole pictures, `[M, H/r, W/r]` per stage; of tiles that `regions` do not need, zeros.

    row: of this row of tiles alone. checks: takes what raises CorruptStream for a stream of a wrong end, which waits
    for the device; else it is done here.
    """
    # on a GPU the host waits for no pass before all are queued
    later = [] if checks is None and engine.device.type != "cpu" else checks
    total = len(engine.model.stages)
    found = [held_stages(file, total) for file in files]
    moves = [file.shifts(total) for file in files]
    canvases: list[list[Tensor]] = [[] for _ in files]
    jobs: list[_Job] = []
    for i, file in enumerate(files):
        count, header = found[i] if stages is None else min(stages, found[i]), file.header
        jobs += _jobs(engine, i, file, count, None if regions is None else regions[i], row)
        if header.tiles > 1:
            height = engine.padded(header.height, header.width)[0]
            tall = height if row is None else min(header.tile, height - row * header.tile)
            canvases[i] = blank_codes(engine, tall, header.width, count)

    def work(members: list[int]) -> None:
        group = [jobs[i] for i in members]
        codes, _ = read_tiles(
            engine,
            [files[job.file].streams.stream(job.tile, job.stages) for job in group],
            *group[0].box.size,
            [files[job.file].header.level for job in group],
            [moves[job.file][job.tile] for job in group],
            group[0].stages,
            partial,
            later,
            [files[job.file].streams.ends(job.tile, job.stages) for job in group],
        )
        for item, job in enumerate(group):
            if files[job.file].header.tiles == 1:
                canvases[job.file] = [stage[item] for stage in codes]
            else:
                place_codes(engine, canvases[job.file], job.box, codes, item)

    # of a partial file each tile may end elsewhere: a damaged one takes nothing from the others
    keys = [(job.box.size, job.stages, i if partial else 0) for i, job in enumerate(jobs)]
    engine.each(work, engine.batches(keys, [job.box.size for job in jobs]))
    if checks is None:
        for check in later or ():
            check()
    return canvases


class _Job(NamedTuple):
    """A tile to read."""

    file: int  # of those that are read
    tile: int  # of the file
    box: Box  # its place in the file's canvas, padded, in pixels
    stages: int  # so many of them


def _jobs(
    engine: Engine, place: int, file: Container, stages: int, region: Box | None, row: int | None
) -> Iterator[_Job]:
    """Tiles of the file at a place, of a row or all, with what a region, or all of the picture, needs of the stages."""
    header = file.header
    around = None if region is None else _reached(engine, file, region)[1].around
    begin, before = (0, 0) if row is None else (row * header.tile, row * tiles.count(header.width, 1, header.tile))
    places = tiles.grid(header.width, header.height, header.tile, row)
    for tile, (left, top, right, bottom) in enumerate(places, before):
        tall, wide = engine.padded(bottom - top, right - left)
        box = Box(top - begin, left, top - begin + tall, left + wide)
        needed = [index + 1 for index in range(stages) if around is None or _meet(engine, box, index, around)]
        if needed:
            yield _Job(place, tile, box, max(needed))


def blank_codes(engine: Engine, height: int, width: int, stages: int | None = None) -> list[Tensor]:
    """Codes of a whole picture to be filled in, zeros `[M, H/r, W/r]` per stage."""
    height, width = engine.padded(height, width)
    shapes = [(s.groups, height // s.stride, width // s.stride) for s in engine.model.config.stages[:stages]]
    # 16 bits hold any code and are half of what a large picture would take otherwise
    if engine.device.type == "cpu":  # where numpy's zeros take no memory until they are written: a region is little
        return [torch.from_numpy(np.zeros(shape, np.int16)) for shape in shapes]
    return [torch.zeros(shape, dtype=torch.int16, device=engine.device) for shape in shapes]


def place_codes(engine: Engine, canvas: list[Tensor], box: Box, codes: list[Tensor], item: int) -> None:
    """Puts the codes of an item of a batch of tiles where they belong; in the stages that both have."""
    for config, stage, whole in zip(engine.model.config.stages, codes, canvas, strict=False):
        top, left, bottom, right = box.coarser(config.stride)
        whole[:, top:bottom, left:right] = stage[item]


def _meet(engine: Engine, tile: Box, index: int, around: Sequence[Box]) -> bool:
    """Whether a stage of a region needs anything of a tile (pixels)."""
    top, left, bottom, right = tile.coarser(engine.model.config.stages[index].stride)
    box = around[index]
    return top < box.bottom and box.top < bottom and left < box.right and box.left < right


def read_tiles(
    engine: Engine,
    streams: list[bytes],
    height: int,
    width: int,
    levels: list[int],
    moves: list[list[int]],
    count: int | None = None,
    partial: bool = False,
    checks: list[Callable[[], None]] | None = None,
    ends: Sequence[list[int]] = (),
) -> tuple[list[Tensor], list[Tensor]]:
    """Tiles of one padded size: per stage the codes, `[B, M, h, w]`, and how many words are read at its end, `[B]`.

    moves: shifts of each tile's stages. count: how many stages to read. partial: as many of them as are whole.
    checks: as of `read_codes`. ends: bytes of each stream up to the end of each stage, where a file says so.
    """
    # batches are padded to their longest stream: a few bytes of a header must not buy more than a tile can hold
    symbols = sum(s.groups * (height // s.stride) * (width // s.stride) for s in engine.model.config.stages)
    if any(len(stream) > entropy.longest(symbols) for stream in streams):
        raise CorruptStream("a tile has more words than symbols")
    decoder = entropy.batch_decoder(streams, engine.device, truncated=partial)
    kept: list[Tensor] = []
    words: list[Tensor] = []
    moved = upload(torch.tensor(moves), engine.device) if any(map(any, moves)) else None

    def read(index: int, offset: Tensor | None, scale: Tensor | None) -> Tensor:
        stage = engine.model.config.stages[index]
        grid = (height // stage.stride, width // stage.stride)
        shape = (stage.groups, grid[0] * grid[1])
        prior = engine.prior(index, offset, scale, None if moved is None else moved[:, index])
        codes = decoder.decode_stage(engine.tables[index], *prior, shape)
        kept.append(codes.unflatten(2, grid))
        words.append(decoder.words_read)
        return kept[-1]

    try:
        with engine.precision():
            engine.model.read(height, width, engine.level_tensor(levels), read, count)
    except CorruptStream:
        if not partial or not kept:
            raise
        return kept, words
    if partial:
        return kept, words

    def check() -> None:
        if count is None or count == len(engine.model.stages):
            decoder.finish()
        reads = torch.stack(words, 1).tolist()
        for stream, read, named in zip(streams, reads, ends or [[]] * len(streams), strict=True):
            found = stage_ends(stream, read)
            if found[-1] > len(stream):  # a GPU reads on in zeros
                raise CorruptStream(f"entropy-coded data ended early, after {len(stream)} of {found[-1]} bytes")
            if named and found != named:
                raise CorruptStream("stages do not end where the table of tiles says")

    if checks is None:
        check()
    else:
        checks.append(check)
    return kept, words


def stage_ends(stream: bytes, words: Sequence[int]) -> list[int]:
    """Bytes of a stream up to the end of each stage, from the words read until there."""
    head = entropy.head_bytes(stream)
    return [head + tiles.WORD_BYTES * read for read in words]


def render(
    engine: Engine, files: list[Container], canvases: list[list[Tensor]], boxes: list[Box], whole: bool
) -> list[Samples]:
    """The parts of pictures that lie in `boxes`, which are all of them or not; from their codes."""
    out: list[Samples | None] = [None] * len(files)
    # where memory is no concern, tiles are no reason for windows
    large = 0 if engine.device.type == "cpu" else engine.batch_pixels
    areas = [math.prod(engine.padded(file.header.height, file.header.width)) for file in files]
    # a file may say that one tile is as large as any picture, and memory has its bounds
    alone = max(engine.batch_pixels, container.TILE**2)
    single = [i for i, file in enumerate(files) if whole and areas[i] <= (alone if file.header.tiles == 1 else large)]

    # only what has all its stages can share a pass: of a partial file, some may be missing
    sizes = [engine.padded(files[i].header.height, files[i].header.width) for i in single]
    keys = [(size, len(canvases[i])) for size, i in zip(sizes, single, strict=True)]
    for members in engine.batches(keys, sizes):
        group = [single[i] for i in members]
        pictures = _together(engine, [files[i] for i in group], [canvases[i] for i in group])
        for i, picture in zip(group, pictures, strict=True):
            header = files[i].header
            out[i] = from_tensor(picture, header.height, header.width, header.kind)
    for i, file in enumerate(files):
        if i not in single:
            out[i] = _windows(engine, file, canvases[i], boxes[i])
    return [samples for samples in out if samples is not None]


def tensors(engine: Engine, files: list[Container], canvases: list[list[Tensor]]) -> list[Tensor]:
    """Whole pictures from their codes: uint8 `[3, H, W]` on the device, where they stay all along."""
    out: list[Tensor] = [torch.empty(0)] * len(files)
    sizes = [engine.padded(file.header.height, file.header.width) for file in files]
    for members in engine.batches(sizes, sizes):
        if math.prod(sizes[members[0]]) > engine.batch_pixels:
            out[members[0]] = _tensor(engine, files[members[0]], canvases[members[0]])
            continue
        pictures = _together(engine, [files[i] for i in members], [canvases[i] for i in members])
        for i, picture in zip(members, pictures, strict=True):
            header = files[i].header
            out[i] = to_uint8(picture, header.height, header.width, header.kind)
    return out


def _together(engine: Engine, files: list[Container], canvases: list[list[Tensor]]) -> list[Tensor]:
    """Whole pictures of one padded size and number of stages in one pass, float `[3, H, W]` each on the device."""
    height, width = engine.padded(files[0].header.height, files[0].header.width)
    codes = [torch.stack(stages).to(torch.int32) for stages in zip(*canvases, strict=True)]
    pictures = _synthesize(engine, codes, height, width, [file.header.level for file in files])
    return [_filtered(engine, *each) for each in zip(files, canvases, pictures, strict=True)]


def _tensor(engine: Engine, file: Container, canvas: list[Tensor]) -> Tensor:
    """As `tensors`, of one picture, window by window."""
    header = file.header
    out = torch.empty((3, header.height, header.width), dtype=torch.uint8, device=engine.device)
    for left, top, right, bottom in tiles.grid(header.width, header.height, engine.tile):
        picture = _window(engine, file, canvas, Box(top, left, bottom, right))
        out[:, top:bottom, left:right] = to_uint8(picture, bottom - top, right - left, header.kind)
    return out


def _windows(engine: Engine, file: Container, canvas: list[Tensor], region: Box, above: int = 0) -> Samples:
    """A part of a picture, window by window. above: the row of the picture (pixels) where the canvas begins."""
    header = file.header
    tall, wide = region.size
    out: NDArray[Any] = np.empty(
        (tall, wide) if header.kind.grey else (tall, wide, 3), np.uint16 if header.kind.bits == 16 else np.uint8
    )

    def work(place: tuple[int, int, int, int]) -> None:
        left, top, right, bottom = place
        pixels = Box(top + region.top, left + region.left, bottom + region.top, right + region.left)
        picture = _window(engine, file, canvas, pixels, above)
        out[top:bottom, left:right] = from_tensor(picture, bottom - top, right - left, header.kind)

    engine.each(work, tiles.grid(wide, tall, engine.tile))
    return out


def _window(engine: Engine, file: Container, canvas: list[Tensor], pixels: Box, above: int = 0) -> Tensor:
    """The part of a picture that lies in `pixels`, float `[3, h, w]` on the device; above as of `_windows`."""
    header = file.header
    height, width = engine.padded(header.height, header.width)
    seen, part = _reached(engine, file, pixels)
    codes = [
        box.crop(stage, Box(above // config.stride, 0, 0, 0))[None].to(engine.device, torch.int32)
        for box, stage, config in zip(part.around, canvas, engine.model.config.stages, strict=False)
    ]
    picture = _synthesize(engine, codes, height, width, [header.level], part)
    picture = seen.crop(picture, part.inside[-1].finer(engine.model.config.stages[-1].stride))
    return pixels.crop(_filtered(engine, file, canvas, picture[0]), seen)


def _reached(engine: Engine, file: Container, pixels: Box) -> tuple[Box, Window]:
    """What the filter reads for a part of a picture (pixels), and what that needs of the stages."""
    height, width = engine.padded(file.header.height, file.header.width)
    seen = pixels.grown(REACH, height, width)
    return seen, window(engine.model, seen, height, width)


def _filtered(engine: Engine, file: Container, canvas: list[Tensor], picture: Tensor) -> Tensor:
    """`[3, h, w]` as the file asks for it: its filter is that of all stages."""
    payload = file.section(container.TAG_FILTER) if len(canvas) == len(engine.model.stages) else None
    limit = postfilter.clipping(engine.model.config.lam(file.header.level))
    return postfilter.apply(picture, payload, file.header.kind.grey, limit)


def _synthesize(
    engine: Engine, codes: list[Tensor], height: int, width: int, levels: list[int], part: Any = None
) -> Tensor:
    """Pictures, or their part in a window, float32 `[B, 3, h, w]` on the device."""
    level = engine.level_tensor(levels)
    with torch.no_grad(), engine.precision():
        state = engine.model.synthesize(codes, height, width, level, part)
        return engine.model.synthesis(state, level).float()


class Decoded(Strips):
    """The samples of a tiled file, decoded where they are read.

    The codes of the rows of tiles that the last reading needed are kept: from top to bottom each is decoded once.
    """

    def __init__(self, engine: Callable[[], Engine], file: Container, stages: int | None, partial: bool) -> None:
        """engine: asked for at every reading, so that the codec's settings of then hold."""
        header = file.header
        shape = (header.height, header.width) if header.kind.grey else (header.height, header.width, 3)
        super().__init__(shape, np.uint16 if header.kind.bits == 16 else np.uint8)
        self._engine, self._file, self._stages, self._partial = engine, file, stages, partial
        self._rows: dict[int, list[Tensor]] = {}
        self._lock = Lock()

    def crop(self, left: int, top: int, right: int, bottom: int) -> Samples:
        engine, header = self._engine(), self._file.header
        region = Box(top, left, bottom, right)
        around = _reached(engine, self._file, region)[1].around
        strides = [stage.stride for stage in engine.model.config.stages]
        begin = min(box.top * stride for box, stride in zip(around, strides, strict=True))
        end = max(box.bottom * stride for box, stride in zip(around, strides, strict=True))
        rows = range(begin // header.tile, -(-end // header.tile))
        with self._lock:
            self._rows = {row: codes for row, codes in self._rows.items() if row in rows}
            for row in rows:
                if row not in self._rows:
                    self._rows[row] = read_codes(engine, [self._file], self._stages, None, self._partial, row)[0]
            canvas = [torch.cat(stage, 1) for stage in zip(*(self._rows[row] for row in rows), strict=True)]
        return _windows(engine, self._file, canvas, region, rows.start * header.tile)
