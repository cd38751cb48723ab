"""Tiles: where they lie, and how their streams share one section of a file. Specified in docs/FORMAT.md.

Codes and context are per tile, so that tiles decode alone and in parallel. The streams of several tiles are cut where
their stages end and stored stage by stage: the head of the file is then a coarse version of the whole picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from mcodec import leb128
from mcodec.errors import CorruptStream

#: Words of the entropy coder; only whole ones are cut off. See docs/ENTROPY.md.
WORD_BYTES = 2
#: Shifts that four bits hold.
SHIFTS = range(-8, 8)


def grid(width: int, height: int, side: int, row: int | None = None) -> list[tuple[int, int, int, int]]:
    """(left, top, right, bottom) in pixels of every tile, row by row; those at the right and bottom may be smaller.

    row: only the tiles of that row.
    """
    return [
        (left, top, min(left + side, width), min(top + side, height))
        for top in (range(0, height, side) if row is None else (row * side,))
        for left in range(0, width, side)
    ]


def count(width: int, height: int, side: int) -> int:
    """Number of tiles."""
    return -(-width // side) * -(-height // side)


@dataclass(frozen=True)
class Streams:
    """The tiles' streams, as much of them as the data holds."""

    pieces: tuple[tuple[bytes, ...], ...]  # per tile, the pieces of its stages; one piece where the table is missing
    stages: list[int] | None  # bytes of each stage in the whole section; None for a single tile, which has no table

    def stream(self, tile: int, stages: int | None = None) -> bytes:
        """The stream of a tile up to a stage (default: the last that is whole in every tile)."""
        return b"".join(self.pieces[tile][:stages])

    def ends(self, tile: int, stages: int | None = None) -> list[int]:
        """Bytes of `stream` up to the end of each of its stages; none where the table is missing."""
        return [] if self.stages is None else list(accumulate(map(len, self.pieces[tile][:stages])))


def pack(streams: Sequence[bytes], ends: Sequence[Sequence[int]] = ()) -> bytes:
    """The payload of the section of codes.

    ends: for more than one tile, how many bytes of each stream the decoder has read after each stage.
    """
    if len(streams) == 1:
        return streams[0]
    stages = len(ends[0])
    cuts = [(0, *tile) for tile in ends]
    pieces = [
        stream[cut[stage] : cut[stage + 1]]
        for stage in range(stages)
        for stream, cut in zip(streams, cuts, strict=True)
    ]
    return bytes([stages]) + b"".join(leb128.encode(len(piece)) for piece in pieces) + b"".join(pieces)


def unpack(payload: bytes, tiles: int, size: int | None = None) -> Streams:
    """Inverse of `pack`. size: of the whole payload, where `payload` is only its beginning.

    Of a beginning, the pieces of the stages that are whole in every tile are kept. CorruptStream for a table that does
    not fit.
    """
    whole = len(payload) if size is None else size
    if tiles == 1:
        # the coder takes whole words only
        kept = len(payload) - (len(payload) - whole) % WORD_BYTES
        return Streams(((payload[:kept],),), None)
    if not payload or payload[0] == 0:
        raise CorruptStream("the table of tiles has no stage")
    stages, place = payload[0], 1
    if stages * tiles > len(payload):
        raise CorruptStream(f"the table of {tiles} tiles and {stages} stages reaches past the end of the codes")
    lengths = []
    for _ in range(stages * tiles):
        length, place = leb128.read(payload, place)
        lengths.append(length)
    starts = list(accumulate(lengths, initial=place))
    if starts[-1] != whole:
        raise CorruptStream(f"the tiles take {starts[-1]} bytes, but their section has {whole}")
    held = sum(starts[tiles * (stage + 1)] <= len(payload) for stage in range(stages))
    pieces = tuple(
        tuple(payload[starts[i] : starts[i + 1]] for i in range(tile, held * tiles, tiles)) for tile in range(tiles)
    )
    return Streams(pieces, [sum(lengths[i : i + tiles]) for i in range(0, len(lengths), tiles)])


def pack_shifts(tiles: Sequence[Sequence[int]]) -> bytes:
    """The section of the shifts of each tile's stages; empty where there are none."""
    flat = [shift for stage in zip(*tiles, strict=True) for shift in stage]
    if not any(flat):
        return b""
    nibbles = [shift % 16 for shift in flat] + [0] * (len(flat) % 2)
    return bytes(low | high << 4 for low, high in zip(nibbles[::2], nibbles[1::2], strict=True))


def unpack_shifts(payload: bytes | None, stages: int, tiles: int) -> list[list[int]]:
    """The shifts of each tile's stages, 0 without a section; CorruptStream for one of another length."""
    if payload is None:
        return [[0] * stages for _ in range(tiles)]
    if len(payload) != -(-stages * tiles // 2):
        raise CorruptStream(f"{len(payload)} bytes cannot be the shifts of {stages} stages and {tiles} tiles")
    nibbles = [nibble for byte in payload for nibble in (byte & 15, byte >> 4)]
    if len(nibbles) > stages * tiles and nibbles[-1]:
        raise CorruptStream("there are more shifts than stages")
    flat = [nibble if nibble in SHIFTS else nibble - 16 for nibble in nibbles[: stages * tiles]]
    return [flat[tile::tiles] for tile in range(tiles)]
