"""Colour profile, EXIF and XMP: taken from a picture, carried in a file, handed back on writing.

EXIF blocks are patched in place, byte for byte, rather than written anew: maker notes hold offsets that do not
survive a new layout.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

ORIENTATION, GPS_IFD = 0x0112, 0x8825
#: Of the directory of the thumbnail: where its JPEG data lie, and their size.
_THUMBNAIL, _THUMBNAIL_BYTES = 0x0201, 0x0202
#: Tags of a TIFF file that describe the picture rather than how it is stored.
_DESCRIPTIVE = (0x010E, 0x010F, 0x0110, ORIENTATION, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x8298)
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_PREFIX = b"Exif\0\0"
_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation(?:\s*=\s*[\"']|>))[2-8]")
_XMP_GPS = re.compile(
    rb"(?<!\s)\s+exif:GPS\w+\s*=\s*(?:\"[^\"]*\"|'[^']*')|<exif:GPS(\w+)\b[^<>]*(?:(?<=/)>|>.*?</exif:GPS\1>)",
    re.DOTALL,
)

#: A larger packet that names the position is left out as a whole.
_MOST_XMP = 2**16
#: A block with more pointers to a position than this is left out as a whole: each moves and wipes what follows it.
_MOST_POINTERS = 8


@dataclass(frozen=True)
class Metadata:
    """What is not pixels. EXIF is the TIFF structure alone, without the prefix that JPEG puts before it."""

    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None

    def upright(self, turned: bool = False) -> Metadata:
        """Saying that the pixels stand upright, and without a thumbnail where they were turned.

        EXIF that cannot be parsed stays as it is.
        """
        xmp = _XMP_ORIENTATION.sub(rb"\g<1>1", self.xmp) if self.xmp else self.xmp
        found = replace(self, exif=_upright(self.exif) if self.exif else self.exif, xmp=xmp)
        return found.without_thumbnail() if turned else found

    def without_thumbnail(self) -> Metadata:
        """Without the small picture in EXIF, which is of the whole picture as the camera held it."""
        return replace(self, exif=_without_thumbnail(self.exif) if self.exif else self.exif)

    def without_gps(self) -> Metadata:
        """Without the place where the picture was taken. A block that cannot be parsed is dropped as a whole."""
        return replace(
            self,
            exif=_exif_without_gps(self.exif) if self.exif else None,
            xmp=_xmp_without_gps(self.xmp) if self.xmp else None,
        )

    def kept(self, which: str) -> Metadata:
        """What a file carries of it: "all", "no-gps" or "none" of it."""
        return {"all": self, "no-gps": self.without_gps(), "none": Metadata()}[which]

    def dropped(self, which: str) -> list[str]:
        """What goes although it was not asked to go, in words."""
        if which != "no-gps":
            return []
        kept = self.kept(which)
        names = [name.upper() for name in ("exif", "xmp") if getattr(self, name) and not getattr(kept, name)]
        return [f"{name} is left out as a whole: the GPS position could not be cut out of it" for name in names]

    def info(self) -> dict[str, bytes]:
        """As Pillow keeps it in `Image.info`."""
        entries = {"icc_profile": self.icc, "exif": _PREFIX + self.exif if self.exif else None, "xmp": self.xmp}
        return {key: value for key, value in entries.items() if value}


def of_image(image: Image.Image) -> Metadata:
    """The metadata of a PIL image; damaged blocks are carried as they are or left out."""
    exif = image.info.get("exif")
    if not isinstance(exif, bytes):
        exif = _collected(image)
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
    if isinstance(xmp, str):
        xmp = xmp.encode()
    icc = image.info.get("icc_profile")
    return Metadata(
        icc if isinstance(icc, bytes) and icc else None,
        exif.removeprefix(_PREFIX).removeprefix(_PREFIX) or None if exif else None,  # some cameras write it twice
        xmp if isinstance(xmp, bytes) and xmp else None,
    )


def orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 where there is none or it cannot be read."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow's EXIF parser raises many types
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _collected(image: Image.Image) -> bytes | None:
    """EXIF that Pillow keeps elsewhere: the directory of a TIFF file, text of an old PNG."""
    try:
        found = image.getexif()
        if not found:
            return None
        kept: Any = Image.Exif()
        for tag in _DESCRIPTIVE:
            if tag in found:
                kept[tag] = found[tag]
        for pointer in (0x8769, GPS_IFD):
            if entries := dict(found.get_ifd(pointer)):
                kept[pointer] = entries  # get_ifd of a new block is not written by every Pillow
        data: bytes = kept.tobytes()
    except Exception:  # as above
        return None
    return data if len(kept) else None


def _entries(exif: bytearray, order: str, offset: int) -> Iterator[tuple[int, int, int, int]]:
    """(place, tag, bytes of the value, place of the value) per entry; ValueError beyond the block."""
    if offset < 8 or offset + 2 > len(exif):
        raise ValueError("a directory lies outside of the block")
    (count,) = struct.unpack_from(order + "H", exif, offset)
    for place in range(offset + 2, offset + 2 + 12 * count, 12):
        if place + 12 > len(exif):
            raise ValueError("a directory reaches past the end of the block")
        tag, form, number = struct.unpack_from(order + "HHI", exif, place)
        size = _TYPE_BYTES.get(form, 1) * number
        value = place + 8 if size <= 4 else struct.unpack_from(order + "I", exif, place + 8)[0]
        yield place, tag, size, value


def _open(exif: bytes) -> tuple[bytearray, str, int]:
    """(block, byte order for struct, place of the first directory)."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8 or exif[2:4] not in (b"*\0", b"\0*"):  # Pillow takes either after either
        raise ValueError("not a TIFF structure")
    return bytearray(exif), order, struct.unpack_from(order + "I", exif, 4)[0]


def _upright(exif: bytes) -> bytes:
    block = bytearray(exif)
    with suppress(ValueError):  # of a directory that is cut off, readers take what there is
        block, order, first = _open(exif)
        for place, tag, _, _ in _entries(block, order, first):
            if tag == ORIENTATION:
                struct.pack_into(order + "HIHH", block, place + 2, 3, 1, 1, 0)
    return bytes(block)


def _without_thumbnail(exif: bytes) -> bytes:
    """The link to the second directory goes, and the JPEG data that it names; anything else there is left alone."""
    try:
        block, order, first = _open(exif)
        link = first + 2 + 12 * len(list(_entries(block, order, first)))
        second, end = struct.unpack_from(order + "I", block, link)[0], len(block)
        entries = {tag: value for _, tag, size, value in _entries(block, order, second) if size == 4}
        places = entries[_THUMBNAIL], entries[_THUMBNAIL_BYTES]
        start, size = (struct.unpack_from(order + "I", block, place)[0] for place in places)
    except (ValueError, KeyError, struct.error):
        return exif
    if block[start : start + 2] != b"\xff\xd8":
        return exif
    struct.pack_into(order + "I", block, link, 0)
    block[start : start + size] = bytes(min(size, end - start))
    return bytes(block[:start] if start + size >= end else block)  # the last thing in most


def _exif_without_gps(exif: bytes) -> bytes | None:
    try:
        block, order, first = _open(exif)
        pointers = [place for place, tag, _, _ in _entries(block, order, first) if tag == GPS_IFD]
        if len(pointers) > _MOST_POINTERS:
            raise ValueError("too many pointers to a position")
        offsets = [struct.unpack_from(order + "I", block, pointer + 8)[0] for pointer in pointers]
        for pointer in reversed(pointers):  # their places move as entries go
            (count,) = struct.unpack_from(order + "H", block, first)
            end = first + 2 + 12 * count + 4  # behind the pointer to the next directory
            if end > len(block):
                raise ValueError("a directory reaches past the end of the block")
            block[pointer:end] = block[pointer + 12 : end] + bytes(12)
            struct.pack_into(order + "H", block, first, count - 1)
        for offset in offsets:  # only now: a crafted one may lie in the directory that names it
            _wipe(block, order, offset)
    except ValueError:
        return None
    return bytes(block)


def _wipe(block: bytearray, order: str, offset: int) -> None:
    """Zero a directory and its values."""
    entries = list(_entries(block, order, offset))
    if sum(size for _, _, size, _ in entries) > len(block):  # of overlapping values; zeroing them all takes for ever
        raise ValueError("a directory has more values than the block has room")
    for _, _, size, value in entries:
        if value + size > len(block):
            raise ValueError("a value reaches past the end of the block")
        block[value : value + size] = bytes(size)
    end = offset + 2 + 12 * len(entries)
    block[offset:end] = bytes(end - offset)


def _xmp_without_gps(xmp: bytes) -> bytes | None:
    if b"GPS" not in xmp:
        kept = xmp  # nothing to look for, however long
    elif len(xmp) > _MOST_XMP:
        return None  # the pattern looks for an end behind every beginning
    else:
        kept = _XMP_GPS.sub(b"", xmp)
    # what is left may say it in another way, or in UTF-16, which the pattern does not see
    return None if b"GPS" in kept or b"\0" in kept.rstrip(b"\0") else kept
