"""The `.mci` file: header, sections, checksum. Specified in docs/FORMAT.md; needs neither torch nor weights."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

from mcodec.errors import CorruptStream, LimitExceeded, NotAnMciFile, UnsupportedVersion

MAGIC = b"\x8bMCI"
VERSION = 1
FINGERPRINT_BYTES = 8
CRC_BYTES = 4
MAX_VARINT_BYTES = 5

#: Limits, checked before anything of that size is allocated.
MAX_SIDE = 65535
MAX_PIXELS = 2**28
MAX_SECTIONS = 4096

#: Section tags. A reader skips unknown tags from OPTIONAL_TAGS on and refuses unknown ones below.
TAG_CODES, TAG_ICC, TAG_EXIF, TAG_XMP, TAG_ALPHA = 1, 2, 3, 4, 5
OPTIONAL_TAGS = 128
_NAMES = {TAG_CODES: "codes", TAG_ICC: "icc", TAG_EXIF: "exif", TAG_XMP: "xmp", TAG_ALPHA: "alpha"}


@dataclass(frozen=True)
class Header:
    """What a decoder must know before it touches the codes."""

    width: int  # pixels, 1..MAX_SIDE
    height: int
    level: int  # quality level 0..255
    fingerprint: bytes  # first 8 bytes of the SHA-256 of the weights file


@dataclass(frozen=True)
class Container:
    """A file's content: header, the stream of coded stages, and further sections as (tag, payload)."""

    header: Header
    codes: bytes
    sections: tuple[tuple[int, bytes], ...] = ()


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
    fields = _varint(header.width) + _varint(header.height) + bytes([header.level]) + header.fingerprint
    out = bytearray(MAGIC + bytes([VERSION, len(fields)]) + fields)
    if 1 + len(container.sections) > MAX_SECTIONS:
        raise LimitExceeded(f"more than {MAX_SECTIONS} sections")
    for tag, _ in container.sections:
        if tag == TAG_CODES or not (tag in _NAMES or OPTIONAL_TAGS <= tag <= 255):
            raise ValueError(f"section tag {tag} cannot be written")
    for tag, payload in ((TAG_CODES, container.codes), *container.sections):
        out += bytes([tag]) + _varint(len(payload)) + payload
    return bytes(out) + zlib.crc32(out).to_bytes(CRC_BYTES, "little")


def unpack(data: bytes) -> Container:
    """Inverse of `pack`; raises only subclasses of FormatError, whatever the bytes."""
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
    if zlib.crc32(body).to_bytes(CRC_BYTES, "little") != checksum:
        cause = "truncated" if _is_short(data) else "damaged"
        raise CorruptStream(f"the file is {cause}: its checksum does not match")
    header, place = _header(body)
    codes: bytes | None = None
    sections: list[tuple[int, bytes]] = []
    while place < len(body):
        if len(sections) + (codes is not None) >= MAX_SECTIONS:
            raise LimitExceeded(f"more than {MAX_SECTIONS} sections")
        tag = body[place]
        length, place = _read_varint(body, place + 1)
        if length > len(body) - place:
            raise CorruptStream(f"section {tag} of {length} bytes reaches past the end of the file")
        payload = body[place : place + length]
        place += length
        if tag == TAG_CODES:
            if codes is not None:
                raise CorruptStream("two sections of coded stages")
            codes = payload
        elif tag in _NAMES or tag >= OPTIONAL_TAGS:
            sections.append((tag, payload))
        else:
            raise CorruptStream(f"unknown section {tag}")
    if codes is None:
        raise CorruptStream("no section of coded stages")
    return Container(header, codes, tuple(sections))


def describe(data: bytes) -> dict[str, Any]:
    """What a file says of itself, without weights; raises as `unpack` does."""
    container = unpack(data)
    header = container.header
    sections = {"codes": len(container.codes)}
    for tag, payload in container.sections:
        name = _NAMES.get(tag, f"section {tag}")
        sections[name] = sections.get(name, 0) + len(payload)
    return {
        "version": data[4],
        "width": header.width,
        "height": header.height,
        "level": header.level,
        "quality": round(1 + header.level * 99 / 255, 1),
        "fingerprint": header.fingerprint.hex(),
        "bytes": len(data),
        "bpp": len(data) * 8 / (header.width * header.height),
        "sections": sections,
        "overhead": len(data) - sum(sections.values()),
        "crc32": data[-CRC_BYTES:][::-1].hex(),
    }


def _header(body: bytes) -> tuple[Header, int]:
    """Header and the place behind it; fields that a later release appended are skipped."""
    begin = len(MAGIC) + 2
    end = begin + body[begin - 1] if len(body) >= begin else len(body) + 1
    if end > len(body):
        raise CorruptStream("the header reaches past the end of the file")
    fields = body[begin:end]
    width, place = _read_varint(fields, 0)
    height, place = _read_varint(fields, place)
    if len(fields) - place < 1 + FINGERPRINT_BYTES:
        raise CorruptStream("the header is too short")
    if width < 1 or height < 1:
        raise CorruptStream(f"the header names a picture of {width}x{height}")
    check_size(width, height)
    return Header(width, height, fields[place], fields[place + 1 : place + 1 + FINGERPRINT_BYTES]), end


def _is_short(data: bytes) -> bool:
    """Whether header and sections claim more bytes than there are, or no section follows the header."""
    end = len(data) - CRC_BYTES
    place = begin = len(MAGIC) + 2 + data[len(MAGIC) + 1]
    while place < end:
        try:
            length, behind = _read_varint(data, place + 1)
        except CorruptStream:
            return len(data) - place <= MAX_VARINT_BYTES  # a number that is cut off; further ahead it is damaged
        place = behind + length
    return place > end or place == begin


def _varint(value: int) -> bytes:
    """LEB128, shortest form."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    """(value, place behind it) of a LEB128 number of at most 5 bytes in its shortest form."""
    value = 0
    for index in range(MAX_VARINT_BYTES):
        if place + index >= len(data):
            raise CorruptStream("the file is truncated inside a number")
        byte = data[place + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if byte == 0 and index:
                raise CorruptStream("a number is not in its shortest form")
            return value, place + index + 1
    raise CorruptStream(f"a number has more than {MAX_VARINT_BYTES} bytes")
