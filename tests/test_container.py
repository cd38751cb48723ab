"""The container: literal bytes, limits, and errors for whatever else comes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcodec.container import MAX_SECTIONS, TAG_EXIF, Container, Header, describe, pack, unpack
from mcodec.errors import CorruptStream, FormatError, LimitExceeded, NotAnMciFile, UnsupportedVersion

PRINT = bytes(range(8))


def seal(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


@pytest.mark.parametrize(
    "container, golden",
    [
        (Container(Header(1, 1, 0, PRINT), b""), "8b4d4349010b0101000001020304050607" "0100" "fe3a19e0"),
        (
            Container(Header(768, 512, 127, PRINT), b"abc", ((TAG_EXIF, b"x"),)),
            "8b4d4349010d800680047f0001020304050607" "0103616263" "030178" "41f1cbf1",
        ),
    ],
    ids=["smallest", "with a section"],
)
def test_golden_bytes(container: Container, golden: str) -> None:
    data = pack(container)
    assert data.hex() == golden
    assert unpack(data) == container


def test_overhead() -> None:
    """At most 28 bytes beyond the codes, up to 8192 x 8192 with two megabytes of codes."""
    for side, length in ((1, 10), (768, 20000), (8192, 2_000_000), (16383, 2**21)):
        assert len(pack(Container(Header(side, side, 9, PRINT), bytes(length)))) - length <= 28


@given(st.integers(1, 65535), st.integers(1, 4096), st.integers(0, 255), st.binary(max_size=300))
def test_round_trip(width: int, height: int, level: int, codes: bytes) -> None:
    container = Container(Header(width, height, level, PRINT), codes, ((200, b"later"), (2, b"")))
    data = pack(container)
    assert unpack(data) == container
    described = describe(data)
    assert described["width"] == width and described["bytes"] == len(data)
    assert described["overhead"] + sum(described["sections"].values()) == len(data)


SMALL = pack(Container(Header(300, 200, 100, PRINT), b"some codes"))


def test_every_truncation_is_detected() -> None:
    for length in range(len(SMALL)):
        with pytest.raises(NotAnMciFile if length == 0 else CorruptStream, match="truncated" if length else "magic"):
            unpack(SMALL[:length])


def test_every_flipped_bit_is_detected() -> None:
    for bit in range(8 * len(SMALL)):
        data = bytearray(SMALL)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            unpack(bytes(data))


@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_are_refused_politely(tail: bytes, sealed: bool) -> None:
    data = SMALL[:6] + tail
    with contextlib.suppress(FormatError):
        unpack(seal(data) if sealed else data)


@pytest.mark.parametrize(
    "data, error, message",
    [
        (b"\x89PNG\r\n", NotAnMciFile, "not a .mci file: the magic bytes are missing"),
        (SMALL[:4] + b"\7" + SMALL[5:], UnsupportedVersion, "format version 7 is newer than this release reads (1)"),
        (SMALL[:6] + b"\xff\xff\x7f" + SMALL[9:], CorruptStream, "the file is damaged: its checksum does not match"),
        (SMALL[:-1] + b"\0", CorruptStream, "the file is damaged: its checksum does not match"),
        (seal(SMALL[:-4] + b"\x06\x01a"), CorruptStream, "unknown section 6"),
        (seal(SMALL[:-4] + b"\x01\x01a"), CorruptStream, "two sections of coded stages"),
        (seal(SMALL[:-4] + b"\x80\x7fa"), CorruptStream, "section 128 of 127 bytes reaches past the end of the file"),
        (seal(SMALL[:19]), CorruptStream, "no section of coded stages"),
        (seal(SMALL[:4] + b"\1\x0d\xff\xff\x07\1\0" + PRINT), LimitExceeded,
         "picture of 131071x1: no side may be longer than 65535"),
        (seal(SMALL[:4] + b"\1\x0b\0\1\0" + PRINT), CorruptStream, "the header names a picture of 0x1"),
        (seal(SMALL[:4] + b"\1\x0c\x81\0\1\0" + PRINT), CorruptStream, "a number is not in its shortest form"),
    ],
)
def test_messages(data: bytes, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        unpack(data)
    assert str(caught.value) == message


def test_a_longer_header_is_read() -> None:
    body = SMALL[:-4]
    longer = body[:5] + bytes([body[5] + 2]) + body[6 : 6 + body[5]] + b"??" + body[6 + body[5] :]
    assert unpack(seal(longer)) == unpack(SMALL)


def test_number_of_sections() -> None:
    """The limit counts the codes, in whatever place they stand."""
    most = pack(Container(Header(1, 1, 0, PRINT), b"", ((200, b""),) * (MAX_SECTIONS - 1)))
    assert len(unpack(most).sections) == MAX_SECTIONS - 1
    begin = 6 + most[5]
    moved = most[:begin] + most[begin + 2 : -4] + most[begin : begin + 2]
    assert unpack(seal(moved)) == unpack(most)
    for data in (most[:-4], moved):
        with pytest.raises(LimitExceeded, match="more than 4096 sections"):
            unpack(seal(data + b"\xc8\0"))
    with pytest.raises(LimitExceeded, match="more than 4096 sections"):
        pack(Container(Header(1, 1, 0, PRINT), b"", ((200, b""),) * MAX_SECTIONS))


def test_needs_no_torch() -> None:
    code = f"import sys; from mcodec.container import describe; describe({SMALL!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_callers_mistakes() -> None:
    for header in (Header(0, 1, 0, PRINT), Header(1, 1, 256, PRINT), Header(1, 1, 0, b"short")):
        with pytest.raises(ValueError):
            pack(Container(header, b""))
    for tag in (0, 1, 6, 127, 256):  # what unpack would refuse
        with pytest.raises(ValueError, match=f"section tag {tag} cannot be written"):
            pack(Container(Header(1, 1, 0, PRINT), b"", ((tag, b""),)))
    with pytest.raises(LimitExceeded, match="more than 268435456 pixels"):
        pack(Container(Header(65535, 65535, 0, PRINT), b""))
