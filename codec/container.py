"""The `.mci` file: header, sections, checksum. Specified in docs/FORMAT.md; needs neither torch nor weights."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

from mcodec import leb128, tiles
from mcodec.errors import CorruptStream, LimitExceeded, NotAnMciFile, UnsupportedVersion

MAGIC = b"\x8bMCI"
VERSION = 1
FINGERPRINT_BYTES = 8
CRC_BYTES = 4

#: Limits, checked before anything of that size is allocated.
MAX_SIDE = 65535
MAX_PIXELS = 2**28
MAX_SECTIONS = 4096
#: A file of a few bytes may claim MAX_PIXELS, which costs gigabytes to decode: above this, where Pillow by default
#: refuses too, a decoder wants to be told.
MAX_DECODED_PIXELS = 178_956_970

#: Tiles have sides of MIN_TILE << n, n from 0 to MAX_LOG2_TILE.
MIN_TILE = 64
MAX_LOG2_TILE = 10
#: What an encoder takes: as small as costs no rate worth naming, so that a region needs little more than itself.
TILE = 1024

#: Section tags. A reader skips unknown tags from OPTIONAL_TAGS on and refuses unknown ones below.
TAG_CODES, TAG_ICC, TAG_EXIF, TAG_XMP, TAG_ALPHA, TAG_SHIFTS, TAG_FILTER = 1, 2, 3, 4, 5, 6, 130
OPTIONAL_TAGS = 128
_NAMES = {
    TAG_CODES: "codes", TAG_ICC: "icc", TAG_EXIF: "exif", TAG_XMP: "xmp", TAG_ALPHA: "alpha", TAG_SHIFTS: "shifts",
    TAG_FILTER: "filter",
}  # fmt: skip

#: What comes before the codes, so that a picture made from the file's beginning has what it needs.
_FIRST = TAG_SHIFTS, TAG_ICC, TAG_FILTER

#: Bytes of a filter's section: weights alike in all channels, of each channel's own, and these with other channels'.
FILTER_BYTES = (13, 39, 45)


class Kind(IntEnum):
    """What the samples were and become again."""

    RGB8 = 0
    GREY8 = 1
    RGB16 = 2
    GREY16 = 3
    BILEVEL = 4

    @property
    def grey(self) -> bool:
        """Whether all three channels are the same."""
        return self not in (Kind.RGB8, Kind.RGB16)

    @property
    def bits(self) -> int:
        """Bits per sample: 1, 8 or 16."""
        return {Kind.BILEVEL: 1, Kind.RGB16: 16, Kind.GREY16: 16}.get(self, 8)


@dataclass(frozen=True)
class Header:
    """What a decoder must know before it touches the codes."""

    width: int  # pixels, 1..MAX_SIDE
    height: int
    level: int  # quality level 0..255
    fingerprint: bytes  # first 8 bytes of the SHA-256 of the weights file
    kind: Kind = Kind.RGB8
    tile: int = TILE  # side of a tile in pixels

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return tiles.count(self.width, self.height, self.tile)


@dataclass(frozen=True)
class Container:
    """A file's content: header, the stream of coded stages, and further sections as (tag, payload)."""

    header: Header
    codes: bytes
    sections: tuple[tuple[int, bytes], ...] = ()
    codes_size: int | None = None  # of the whole section, where `codes` is only its beginning
    unverified: bool = False  # taken in parts: nothing says whether the bytes are undamaged

    def section(self, tag: int) -> bytes | None:
        """Payload of the first section with this tag."""
        return next((payload for found, payload in self.sections if found == tag), None)

    @cached_property
    def streams(self) -> tiles.Streams:
        """The tiles' streams; CorruptStream for a table that does not fit."""
        return tiles.unpack(self.codes, self.header.tiles, self.codes_size)

    def shifts(self, stages: int) -> list[list[int]]:
        """The shifts of each tile's stages, of which the weights have so many; CorruptStream where there are others."""
        if stages not in self._shifts:
            self._shifts[stages] = tiles.unpack_shifts(self.section(TAG_SHIFTS), stages, self.header.tiles)
        return self._shifts[stages]

    @cached_property
    def _shifts(self) -> dict[int, list[list[int]]]:
        """What `shifts` found; a tall picture is read row by row."""
        return {}


def check_size(width: int, height: int) -> None:
    """LimitExceeded where a picture is larger than the format holds, ValueError where it has no pixels."""
    if width < 1 or height < 1:
        raise ValueError(f"a picture needs at least one pixel, got {width}x{height}")
    if width > MAX_SIDE or height > MAX_SIDE:
        raise LimitExceeded(f"picture of {width}x{height}: no side may be longer than {MAX_SIDE}")
    if width * height > MAX_PIXELS:
        raise LimitExceeded(f"picture of {width}x{height}: more than {MAX_PIXELS} pixels")


def pack(container: Container) -> bytes:
    """The bytes of a file that `unpack` reads. ValueError for fields out of range, LimitExceeded above a limit."""
    header = container.header
    check_size(header.width, header.height)
    if not 0 <= header.level <= 255:
        raise ValueError(f"level must be from 0 to 255, got {header.level}")
    if len(header.fingerprint) != FINGERPRINT_BYTES:
        raise ValueError(f"fingerprint must have {FINGERPRINT_BYTES} bytes, got {len(header.fingerprint)}")
    log2 = (header.tile // MIN_TILE).bit_length() - 1
    if not 0 <= log2 <= MAX_LOG2_TILE or header.tile != MIN_TILE << log2:
        raise ValueError(f"tiles must have a side of {MIN_TILE} times a power of two, got {header.tile}")
    fields = leb128.encode(header.width) + leb128.encode(header.height) + bytes([header.level]) + header.fingerprint
    fields += bytes([header.kind << 4 | log2])
    out = bytearray(MAGIC + bytes([VERSION, len(fields)]) + fields)
    if 1 + len(container.sections) > MAX_SECTIONS:
        raise LimitExceeded(f"more than {MAX_SECTIONS} sections")
    for tag, _ in container.sections:
        if tag == TAG_CODES or not (tag in _NAMES or OPTIONAL_TAGS <= tag <= 255):
            raise ValueError(f"section tag {tag} cannot be written")
    first = [section for section in container.sections if section[0] in _FIRST]
    rest = [section for section in container.sections if section[0] not in _FIRST]
    for tag, payload in (*first, (TAG_CODES, container.codes), *rest):
        out += bytes([tag]) + leb128.encode(len(payload)) + payload
    return bytes(out) + zlib.crc32(out).to_bytes(CRC_BYTES, "little")


def unpack(data: bytes, partial: bool = False, max_pixels: int | None = None) -> Container:
    """Inverse of `pack`; raises only subclasses of FormatError, whatever the bytes.

    partial: take the beginning of a file, as far as it goes. Nothing then says whether the bytes are undamaged.
    max_pixels: LimitExceeded where the header claims a picture of more; None: only the limits of the format hold.
    """
    body, partial = _body(data, partial)
    header, place = _header(body)
    if max_pixels is not None and header.width * header.height > max_pixels:
        raise LimitExceeded(
            f"picture of {header.width}x{header.height}: more than {max_pixels} pixels, the limit for decoding; "
            "max_pixels (--max-pixels) raises it"
        )
    codes: tuple[bytes, int] | None = None
    sections: list[tuple[int, bytes]] = []
    while place < len(body):
        if partial and codes is not None and len(body) - place <= CRC_BYTES:
            break  # what is there of the checksum
        if len(sections) + (codes is not None) >= MAX_SECTIONS:
            raise LimitExceeded(f"more than {MAX_SECTIONS} sections")
        tag = body[place]
        try:
            length, place = leb128.read(body, place + 1)
        except CorruptStream:
            if partial:
                break
            raise
        payload = body[place : place + length]
        place += length
        if tag == TAG_CODES and codes is None and (partial or len(payload) == length):
            codes = payload, length
        elif len(payload) < length:
            if partial:
                break
            raise CorruptStream(f"section {tag} of {length} bytes reaches past the end of the file")
        elif tag in _NAMES and (tag == TAG_CODES or any(tag == found for found, _ in sections)):
            raise CorruptStream(f"two sections of {_NAMES[tag]}")
        elif tag == TAG_FILTER and length not in FILTER_BYTES:
            raise CorruptStream(f"a filter of {length} bytes")
        elif tag in _NAMES or tag >= OPTIONAL_TAGS:
            sections.append((tag, payload))
        else:
            raise CorruptStream(f"unknown section {tag}")
    if codes is None:
        raise CorruptStream("no section of codes")
    payload, length = codes
    return Container(header, payload, tuple(sections), None if len(payload) == length else length, partial)


def describe(data: bytes, partial: bool = False, max_pixels: int | None = None) -> dict[str, Any]:
    """What a file says of itself, without weights; raises as `unpack` does."""
    container = unpack(data, partial, max_pixels)
    header = container.header
    sections = {"codes": len(container.codes)}
    for tag, payload in container.sections:
        name = _NAMES.get(tag, f"section {tag}")
        sections[name] = sections.get(name, 0) + len(payload)
    return {
        "version": data[4],
        "width": header.width,
        "height": header.height,
        "samples": f"{'grey' if header.kind.grey else 'RGB'}, {header.kind.bits} bit",
        "alpha": TAG_ALPHA in dict(container.sections),
        "level": header.level,
        "quality": round(1 + header.level * 99 / 255, 1),
        "fingerprint": header.fingerprint.hex(),
        "bytes": len(data),
        "bpp": len(data) * 8 / (header.width * header.height),
        "sections": sections,
        "overhead": len(data) - sum(sections.values()),
        "tiles": header.tiles,
        "tile_side": header.tile,
        "stages": container.streams.stages,  # of one tile they show only in decoding
        "crc32": data[-CRC_BYTES:][::-1].hex(),
    }


def _body(data: bytes, partial: bool) -> tuple[bytes, bool]:
    """All but the checksum, and whether that is only what is there: of a file that is whole, False."""
    if len(data) < len(MAGIC) and MAGIC.startswith(data) and data:
        raise CorruptStream("the file is truncated: it ends in the magic bytes")
    if not data.startswith(MAGIC):
        raise NotAnMciFile("not a .mci file: the magic bytes are missing")
    if len(data) < len(MAGIC) + 2:
        raise CorruptStream("the file is truncated: it ends in the header")
    if data[4] != VERSION:
        if data[4] > VERSION:
            raise UnsupportedVersion(f"format version {data[4]} is newer than this release reads ({VERSION})")
        raise CorruptStream(f"format version {data[4]} does not exist")
    body, checksum = data[:-CRC_BYTES], data[-CRC_BYTES:]
    if zlib.crc32(body).to_bytes(CRC_BYTES, "little") == checksum:
        return body, False
    if partial:
        return data, True
    cause = "truncated" if _is_short(data) else "damaged"
    raise CorruptStream(f"the file is {cause}: its checksum does not match")


def _header(body: bytes) -> tuple[Header, int]:
    """Header and the place behind it; fields that a later release appended are skipped."""
    begin = len(MAGIC) + 2
    end = begin + body[begin - 1] if len(body) >= begin else len(body) + 1
    if end > len(body):
        raise CorruptStream("the header reaches past the end of the file")
    fields = body[begin:end]
    width, place = leb128.read(fields, 0)
    height, place = leb128.read(fields, place)
    if len(fields) - place < 2 + FINGERPRINT_BYTES:
        raise CorruptStream("the header is too short")
    if width < 1 or height < 1:
        raise CorruptStream(f"the header names a picture of {width}x{height}")
    check_size(width, height)
    level, fingerprint = fields[place], fields[place + 1 : place + 1 + FINGERPRINT_BYTES]
    kind, log2 = divmod(fields[place + 1 + FINGERPRINT_BYTES], 16)
    if kind not in Kind.__members__.values():
        raise CorruptStream(f"samples of an unknown kind {kind}")
    if log2 > MAX_LOG2_TILE:
        raise CorruptStream(f"log2 of the tile side over {MIN_TILE} is {log2}, at most {MAX_LOG2_TILE} is allowed")
    return Header(width, height, level, fingerprint, Kind(kind), MIN_TILE << log2), end


def _is_short(data: bytes) -> bool:
    """Whether header and sections claim more bytes than there are, or no section follows the header."""
    end = len(data) - CRC_BYTES
    place = begin = len(MAGIC) + 2 + data[len(MAGIC) + 1]
    while place < end:
        try:
            length, behind = leb128.read(data, place + 1)
        except CorruptStream:
            return len(data) - place <= leb128.MAX_BYTES  # a number that is cut off; further ahead it is damaged
        place = behind + length
    return place > end or place == begin
