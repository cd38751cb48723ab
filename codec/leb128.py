"""The variable-length numbers of a .mci file: 7 bits a byte, least significant first (LEB128, unsigned)."""

from __future__ import annotations

from mcodec.errors import CorruptStream

MAX_BYTES = 5


def encode(value: int) -> bytes:
    """The shortest form of a number from 0 on."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read(data: bytes, place: int) -> tuple[int, int]:
    """(value, place behind it) of a number of at most 5 bytes in its shortest form; CorruptStream otherwise."""
    value = 0
    for index in range(MAX_BYTES):
        if place + index >= len(data):
            raise CorruptStream("the file is truncated inside a number")
        byte = data[place + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if byte == 0 and index:
                raise CorruptStream("a number is not in its shortest form")
            return value, place + index + 1
    raise CorruptStream(f"a number has more than {MAX_BYTES} bytes")
