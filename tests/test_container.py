"""The container: literal bytes, limits, and errors for whatever else comes."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcodec import tiles
from mcodec.container import (
    MAX_DECODED_PIXELS,
    MAX_LOG2_TILE,
    MAX_PIXELS,
    MAX_SECTIONS,
    TAG_EXIF,
    TAG_ICC,
    TAG_XMP,
    Container,
    Header,
    Kind,
    describe,
    pack,
    unpack,
)
from mcodec.errors import CorruptStream, FormatError, LimitExceeded, NotAnMciFile, UnsupportedVersion

PRINT = bytes(range(8))


def seal(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


@pytest.mark.parametrize(
    "container, golden",
    [
        (Container(Header(1, 1, 0, PRINT), b""), "8b4d4349010c0101000001020304050607" "04" "0100" "1cd5360c"),
        (
            Container(Header(768, 512, 127, PRINT, Kind.GREY16, 64), b"abc", ((TAG_ICC, b"i"), (TAG_EXIF, b"x"))),
            "8b4d4349010e800680047f0001020304050607" "30" "020169" "0103616263" "030178" "16eec367",
        ),
    ],
    ids=["smallest", "with sections"],
)
def test_golden_bytes(container: Container, golden: str) -> None:
    data = pack(container)
    assert data.hex() == golden
    assert unpack(data) == container


def test_overhead() -> None:
    """At most 28 bytes beyond the codes of one tile, of up to 16383 x 16383 with two megabytes of codes."""
    for side, length in ((1, 10), (768, 20000), (1024, 2_000_000), (16383, 2**21 - 1)):
        assert len(pack(Container(Header(side, side, 9, PRINT, tile=16384), bytes(length)))) - length <= 28


@given(st.integers(1, 65535), st.integers(1, 4096), st.integers(0, 255), st.binary(max_size=300))
def test_round_trip(width: int, height: int, level: int, codes: bytes) -> None:
    container = Container(Header(width, height, level, PRINT), codes, ((2, b""), (200, b"later")))
    data = pack(container)
    assert unpack(data) == container
    described = describe(pack(replace(container, header=replace(container.header, tile=65536))))
    assert described["width"] == width and described["bytes"] == len(data)
    assert described["overhead"] + sum(described["sections"].values()) == len(data)


SMALL = pack(Container(Header(300, 200, 100, PRINT), b"some codes"))


def test_pixels_claimed() -> None:
    """What a caller decodes ends the claim of a header, and a picture of 108 megapixels is within the default."""
    for width, height, limit in ((12000, 9000, MAX_DECODED_PIXELS), (16384, 16384, MAX_PIXELS), (16384, 16384, None)):
        data = pack(Container(Header(width, height, 0, PRINT), b""))
        assert unpack(data, max_pixels=limit).header.width == width
        with pytest.raises(LimitExceeded, match=rf"{width}x{height}: more than \d+ pixels.*--max-pixels"):
            unpack(data, max_pixels=width * height - 1)
    with pytest.raises(LimitExceeded):
        describe(data, max_pixels=MAX_DECODED_PIXELS)


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
        (seal(SMALL[:-4] + b"\x07\x01a"), CorruptStream, "unknown section 7"),
        (seal(SMALL[:-4] + b"\x01\x01a"), CorruptStream, "two sections of codes"),
        (seal(SMALL[:-4] + b"\x80\x7fa"), CorruptStream, "section 128 of 127 bytes reaches past the end of the file"),
        (seal(SMALL[:20]), CorruptStream, "no section of codes"),
        (seal(SMALL[:4] + b"\1\x0e\xff\xff\x07\1\0" + PRINT + b"\4"), LimitExceeded,
         "picture of 131071x1: no side may be longer than 65535"),
        (seal(SMALL[:19] + b"\x54" + SMALL[20:-4]), CorruptStream, "samples of an unknown kind 5"),
        (seal(SMALL[:19] + b"\x0b" + SMALL[20:-4]), CorruptStream,
         "log2 of the tile side over 64 is 11, at most 10 is allowed"),
        (seal(SMALL[:-4] + b"\4\1a\4\1b"), CorruptStream, "two sections of xmp"),
        (seal(SMALL[:4] + b"\1\x0c\0\1\0" + PRINT + b"\4"), CorruptStream, "the header names a picture of 0x1"),
        (seal(SMALL[:4] + b"\1\x0d\x81\0\1\0" + PRINT + b"\4"), CorruptStream, "a number is not in its shortest form"),
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
    for side in (0, 32, 96, 64 << MAX_LOG2_TILE + 1):
        with pytest.raises(ValueError, match="tiles must have a side of 64 times a power of two"):
            pack(Container(Header(1, 1, 0, PRINT, tile=side), b""))
    for tag in (0, 1, 7, 127, 256):  # what unpack would refuse
        with pytest.raises(ValueError, match=f"section tag {tag} cannot be written"):
            pack(Container(Header(1, 1, 0, PRINT), b"", ((tag, b""),)))
    with pytest.raises(LimitExceeded, match="more than 268435456 pixels"):
        pack(Container(Header(65535, 65535, 0, PRINT), b""))


# ---- tiles ----


def test_grid() -> None:
    assert tiles.grid(1024, 1, 1024) == [(0, 0, 1024, 1)]
    assert tiles.grid(130, 65, 64) == [
        (0, 0, 64, 64), (64, 0, 128, 64), (128, 0, 130, 64), (0, 64, 64, 65), (64, 64, 128, 65), (128, 64, 130, 65),
    ]
    assert tiles.count(130, 65, 64) == 6


STREAMS = [bytes([65 + i]) * 10 for i in range(3)]
ENDS = [[4, 8, 10], [6, 6, 10], [10, 10, 10]]
TABLE = "03" "04060a" "040000" "020400"


def test_golden_tiles() -> None:
    """Stage by stage: a tile's piece of a stage may be empty."""
    payload = tiles.pack(STREAMS, ENDS)
    assert payload.hex() == TABLE + (b"AAAA" b"BBBBBB" b"CCCCCCCCCC" b"AAAA" b"AA" b"BBBB").hex()
    streams = tiles.unpack(payload, 3)
    assert [streams.stream(tile) for tile in range(3)] == STREAMS
    assert [streams.stream(tile, 1) for tile in range(3)] == [b"AAAA", b"BBBBBB", b"CCCCCCCCCC"]
    assert streams.stages == [20, 4, 6]
    assert tiles.unpack(b"ABCDE", 1).stream(0) == tiles.pack([b"ABCDE"]) == b"ABCDE"


def test_the_beginning_of_a_section() -> None:
    payload = tiles.pack(STREAMS, ENDS)
    head = len(TABLE) // 2
    for length, stages in ((head, 0), (head + 19, 0), (head + 20, 1), (head + 23, 1), (head + 24, 2), (head + 30, 3)):
        streams = tiles.unpack(payload[:length], 3, len(payload))
        assert {len(tile) for tile in streams.pieces} == {stages}
        for tile, (stream, ends) in enumerate(zip(STREAMS, ENDS, strict=True)):
            assert streams.stream(tile) == stream[: [0, *ends][stages]]
    assert tiles.unpack(b"ABCDE", 1, 8).stream(0) == b"ABCD"  # whole words, counted from the end


@pytest.mark.parametrize(
    "payload, message",
    [
        (b"", "the table of tiles has no stage"),
        (b"\0\1\1\1", "the table of tiles has no stage"),
        (b"\2\1\1\1", "the table of 3 tiles and 2 stages reaches past the end of the codes"),
        (b"\1\1\1\1abcd", "the tiles take 7 bytes, but their section has 8"),
        (b"\1\1\1\x81\0", "a number is not in its shortest form"),
        (b"\1\xff\xff\xff\xff\xff", "a number has more than 5 bytes"),
    ],
)
def test_bad_tables(payload: bytes, message: str) -> None:
    with pytest.raises(CorruptStream) as caught:
        tiles.unpack(payload, 3)
    assert str(caught.value) == message


def test_any_beginning_of_a_file() -> None:
    """Sections that are whole are there, and of the codes what there is."""
    container = Container(Header(300, 200, 100, PRINT), b"some codes", ((TAG_ICC, b"profile"), (TAG_XMP, b"packet")))
    data = pack(container)
    assert unpack(data, partial=True) == container
    begin = data.index(b"some codes")
    for length in range(len(data)):
        head = data[:length]
        if length < begin:
            with pytest.raises(FormatError):
                unpack(head, partial=True)
            continue
        found = unpack(head, partial=True)
        assert found.codes == b"some codes"[: length - begin]
        assert found.codes_size == (10 if length < begin + 10 else None)
        assert found.section(TAG_ICC) == b"profile"
        assert found.section(TAG_XMP) == (b"packet" if length >= len(data) - 4 else None)
    rng = random.Random(0)
    for _ in range(300):
        damaged = bytearray(data[: rng.randrange(1, len(data))])
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        with contextlib.suppress(FormatError):
            _ = unpack(bytes(damaged), partial=True).streams


def test_what_is_left_of_a_checksum_is_no_section() -> None:
    """Of a file with a damaged byte, or cut off in its last four, the codes are found whatever the checksum."""
    rng = random.Random(0)
    for _ in range(1000):
        codes = rng.randbytes(20)
        data = bytearray(pack(Container(Header(300, 200, 100, PRINT), codes, ((TAG_ICC, b"profile"),))))
        data[data.index(codes)] ^= 1
        for cut in range(4):
            found = unpack(bytes(data[: len(data) - cut]), partial=True)
            assert found.codes[1:] == codes[1:] and found.section(TAG_ICC) == b"profile"
