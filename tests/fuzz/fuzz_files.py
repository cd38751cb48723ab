"""Coverage-guided fuzzing of container and API with atheris (pip install atheris).

    python tests/fuzz/fuzz_files.py -max_total_time=3600 -max_len=2048 WORK tests/fuzz/corpus/files

WORK is a folder for what it finds. The mutator makes the checksum right again, mostly, so that the decoder is reached.
"""

from __future__ import annotations

import contextlib
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import atheris  # type: ignore[import-untyped]

with atheris.instrument_imports(include=["mcodec"]):
    from mcodec import container
    from mcodec.api import Codec
    from mcodec.errors import CodecError, FormatError

import torch
from fuzz.mutations import CRC_BYTES, seal
from tiny import TINY, lively

MAX_PIXELS = 2**14

torch.set_num_threads(1)
CODEC = Codec(lively(TINY), b"tinytiny")


def mutator(data: bytes, max_size: int, seed: int) -> bytes:
    """libFuzzer's own mutation of the body; the checksum is right in 15 of 16."""
    body = atheris.Mutate(data[:-CRC_BYTES], max(1, max_size - CRC_BYTES))
    return body + data[-CRC_BYTES:] if random.Random(seed).random() < 1 / 16 else seal(body)


def test_one_input(data: bytes) -> None:
    """A documented exception or a picture."""
    try:
        described = container.describe(data)
    except FormatError:
        return
    if described["width"] * described["height"] <= MAX_PIXELS:
        with contextlib.suppress(CodecError):
            CODEC.decode(data)


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input, custom_mutator=mutator)
    atheris.Fuzz()
