"""Hostile files: mutations from a seed, every single bit, and the compiled coder under sanitizers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import golden
import numpy as np
import pytest
from fuzz.bulk import Hang, Seed, decode_picture, outcomes
from fuzz.mutations import CRC_BYTES, seal

from mcodec.api import Codec
from mcodec.errors import CorruptStream, FormatError, WrongModel

FUZZ = Path(__file__).parent / "fuzz"


def test_mutated_files_in_bounded_memory() -> None:
    """Only documented exceptions, within 64 MiB of address space beyond the warm decoder's (small pictures)."""
    command = [sys.executable, str(FUZZ / "bulk.py"), "--codes", "2000", "--decode", "80", "--memory", "64"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "container and coder: 2,000 mutated" in done.stdout and "whole decoder: 80 mutated" in done.stdout
    assert all(f" {what}" in done.stdout for what in ("decoded", "CorruptStream", "NotAnMciFile"))


def _pixel(tiny: Codec) -> tuple[Codec, bytes]:
    return tiny, tiny.encode(np.full((1, 1, 3), 128, np.uint8), 1)


def _sections(_: Codec) -> tuple[Codec, bytes]:
    data = (golden.FOLDER / "pixel-bilevel-alpha-metadata.mci").read_bytes()
    return golden.codec_for(data), data


def _tiles(_: Codec) -> tuple[Codec, bytes]:
    codec = golden.codec_for((golden.FOLDER / "static-pixel.mci").read_bytes())
    codec.tile = 64
    return codec, codec.encode(np.full((1, 65), 128, np.uint8), 50)


@pytest.mark.parametrize("make", [_pixel, _sections, _tiles])
def test_every_flipped_bit(make: Callable[[Codec], tuple[Codec, bytes]], tiny: Codec) -> None:
    """Detected by the checksum; where that is made right again, decoded or refused by a documented exception."""
    codec, data = make(tiny)
    ends = set()
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            codec.decode(bytes(damaged))
        if bit < 8 * (len(data) - CRC_BYTES):
            try:
                decode_picture(codec, seal(bytes(damaged[:-CRC_BYTES])), 2**16)
                ends.add("decoded")
            except (FormatError, WrongModel) as error:
                ends.add(type(error).__name__)
    assert {"decoded", "CorruptStream", "NotAnMciFile", "UnsupportedVersion", "WrongModel"} <= ends


def test_the_driver_notices() -> None:
    """Other exceptions leave with the file, and what never ends is ended."""
    files = [Seed(bytes(range(60)), [])]

    def undocumented(*_: object) -> None:
        raise IndexError("oops")

    def refused(*_: object) -> None:
        raise CorruptStream("fine")

    def endless(*_: object) -> None:
        while True:
            pass

    assert outcomes(5, files, refused, 0, 60, 60)[0] == {"CorruptStream": 5}
    with pytest.raises(IndexError) as caught:
        outcomes(5, files, undocumented, 0, 60, 60)
    assert bytes.fromhex(caught.value.__notes__[0].removeprefix("file: "))
    with pytest.raises(Hang):
        outcomes(5, files, endless, 0, 60, 1)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_compiled_coder_under_sanitizers(tmp_path: Path) -> None:
    """The fuzzer's corpus, once."""
    program = tmp_path / "fuzz_rans"
    flags = ["-O1", "-g", "-DSTANDALONE", "-DMCODEC_NO_CLONES", "-fsanitize=address,undefined"]
    command = ["cc", *flags, "-fno-sanitize-recover=all", "-o", str(program), str(FUZZ / "fuzz_rans.c")]
    built = subprocess.run(command, capture_output=True, text=True)
    if "-lasan" in built.stderr or "-fsanitize" in built.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert built.returncode == 0, built.stderr
    corpus = sorted(str(path) for path in (FUZZ / "corpus" / "rans").iterdir())
    done = subprocess.run([str(program), *corpus], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{len(corpus)} inputs\n"), done.stderr
    assert len(corpus) > 20
