"""Damage to files, from a seed: cut, flip, overwrite, splice, repeat, with the checksum made right again."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence

CRC_BYTES = 4
#: Values at which lengths and counts go wrong.
EDGES = (b"\0", b"\x7f", b"\x80", b"\xff", b"\xff\xff\xff\xff\x0f", b"\x80\0", b"\0\0\0\0\0\0")


def seal(body: bytes) -> bytes:
    """The body with the checksum that a reader expects, so that damage gets past it."""
    return body + zlib.crc32(body).to_bytes(CRC_BYTES, "little")


def mutate(random: random.Random, data: bytes, others: Sequence[bytes], head: int) -> bytes:
    """One to four changes to a file; nine of ten results have a right checksum.

    head: bytes of the file before its sections. Most changes go behind them, since a changed header is mostly refused
    at once.
    """
    body = bytearray(data[:-CRC_BYTES])
    for _ in range(random.randint(1, 4)):
        low = 0 if random.random() < 0.2 else min(head, len(body))
        at = random.randint(low, len(body))
        match random.randrange(6):
            case 0:
                del body[at:]
            case 1:
                if at < len(body):
                    body[at] ^= 1 << random.randrange(8)
            case 2:
                edge = random.choice(EDGES)
                body[at : at + random.choice((0, len(edge)))] = edge
            case 3:
                length = random.randint(1, 8)
                body[at : at + length] = random.randbytes(length)
            case 4:
                other = random.choice(others)
                begin = random.randint(0, len(other))
                length = random.randint(0, len(other) - begin)
                body[at : at + random.choice((0, length))] = other[begin : begin + length]
            case 5:
                del body[at : at + random.randint(1, 8)]
    if random.random() < 0.1:
        return bytes(body) + random.choice((data[-CRC_BYTES:], b"", random.randbytes(CRC_BYTES)))
    return seal(bytes(body))
