"""Mutated files by the million, through container and coder and through the whole decoder.

    python tests/fuzz/bulk.py --codes 1000000 --decode 10000

Files of a tiny model are damaged (mutations.py). `--codes` unpacks them and decodes their stream with the intact
file's tables and prior parameters; `--decode` decodes them to pictures. Anything but a picture or a documented
exception (FormatError, WrongModel), a stream that takes longer than `--hang`, or memory beyond `--memory` ends the run
with the file in hexadecimal. A file whose header asks for more than `--pixels` is unpacked but not decoded.
"""

from __future__ import annotations

import collections
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import click
import numpy as np
import torch
from fuzz.mutations import mutate
from numpy.typing import NDArray
from tiny import TINY, lively

from mcodec import container, entropy
from mcodec.api import Codec
from mcodec.errors import FormatError, WrongModel

SIZES = ((1, 1), (40, 50), (33, 70), (64, 64))
QUALITIES = (5, 60)
Prior = tuple[NDArray[np.int16] | None, NDArray[np.uint8] | None]


@dataclass(frozen=True)
class Seed:
    """An intact file and what its stream is decoded with."""

    data: bytes
    stages: list[tuple[entropy.PriorTables, Prior, tuple[int, int]]]

    @property
    def head(self) -> int:
        """Bytes before the sections."""
        return 6 + self.data[5]


def seeds() -> tuple[Codec, list[Seed]]:
    """The tiny codec, and files it made of noise."""
    codec = Codec(lively(TINY), b"tinytiny")
    rng = np.random.default_rng(0)
    out = []
    kept: list[tuple[entropy.PriorTables, Prior, tuple[int, int]]] = []
    decode_stage = entropy.Decoder.decode_stage

    def spy(self: entropy.Decoder, tables: entropy.PriorTables, offset: Any, scale: Any, shape: Any) -> Any:
        kept.append((tables, (offset, scale), shape))
        return decode_stage(self, tables, offset, scale, shape)

    with mock.patch.object(entropy.Decoder, "decode_stage", spy):
        for size in SIZES:
            for quality in QUALITIES:
                data = codec.encode(rng.integers(0, 256, (*size, 3)).astype(np.uint8), quality)
                kept.clear()
                codec.codes(data)
                out.append(Seed(data, kept[:]))
    return codec, out


def decode_codes(data: bytes, seed: Seed) -> None:
    """Container and coder; codes out of range are an error of ours."""
    decoder = entropy.Decoder(container.unpack(data).codes)
    for tables, prior, shape in seed.stages:
        codes = decoder.decode_stage(tables, *prior, shape)
        if codes.min(initial=0) < 0 or codes.max(initial=0) >= tables.codewords.shape[1]:
            raise AssertionError("a code is out of range")
    decoder.finish()


def decode_picture(codec: Codec, data: bytes, pixels: int) -> bool:
    """The whole decoder; False where the file is larger than the run allows."""
    described = container.describe(data)
    if described["width"] * described["height"] > pixels:
        return False
    picture = codec.decode(data)
    if picture.size != (described["width"], described["height"]):
        raise AssertionError("the picture has another size")
    return True


class Hang(BaseException):
    """A stream took too long."""


def _on_alarm(*_: object) -> None:
    raise Hang


def outcomes(
    count: int, files: list[Seed], work: Callable[[bytes, Seed], object], seed: int, seconds: float, hang: int
) -> tuple[collections.Counter[str], float]:
    """Works on `count` mutated files (or for some seconds): how often each outcome came, and the slowest file's time.

    Any exception that is not documented leaves with the file in a note.
    """
    generator = random.Random(seed)
    others = [s.data for s in files]
    counts: collections.Counter[str] = collections.Counter()
    slowest, end = 0.0, time.monotonic() + seconds
    signal.signal(signal.SIGALRM, _on_alarm)
    for _ in range(count):
        origin = generator.choice(files)
        data = mutate(generator, origin.data, others, origin.head)
        began = time.monotonic()
        signal.alarm(hang)
        try:
            counts["too large for this run" if work(data, origin) is False else "decoded"] += 1
        except (FormatError, WrongModel) as error:
            counts[type(error).__name__] += 1
        except BaseException as error:
            error.add_note(f"file: {data.hex()}")
            raise
        finally:
            signal.alarm(0)
        now = time.monotonic()
        slowest = max(slowest, now - began)
        if now > end:
            break
    return counts, slowest


def peak() -> int:
    """Peak resident memory of this process, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def limit_memory(more: int) -> None:
    """No more than `more` bytes of address space beyond what is taken now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more,) * 2)


@click.command(help=__doc__)
@click.option("--codes", type=int, default=0, help="Files through container and coder.")
@click.option("--decode", type=int, default=0, help="Files through the whole decoder.")
@click.option("--seed", type=int, default=0)
@click.option("--seconds", type=float, default=float("inf"), help="Of each of the two, at most.")
@click.option("--hang", type=int, default=60, help="Seconds of one file that count as a hang.")
@click.option("--memory", type=int, default=256, help="MiB beyond what the warm decoder holds.")
@click.option("--pixels", type=int, default=2**16, help="Larger pictures are not decoded.")
def main(codes: int, decode: int, seed: int, seconds: float, hang: int, memory: int, pixels: int) -> None:
    torch.set_num_threads(1)
    codec, files = seeds()
    for intact in files:
        codec.decode(intact.data)
    warm = peak()
    limit_memory(memory << 20)
    jobs: list[tuple[str, int, Callable[[bytes, Seed], object]]] = [
        ("container and coder", codes, decode_codes),
        ("whole decoder", decode, lambda data, _: decode_picture(codec, data, pixels)),
    ]
    for name, count, work in jobs:
        if not count:
            continue
        began = time.monotonic()
        counts, slowest = outcomes(count, files, work, seed, seconds, hang)
        taken, done = time.monotonic() - began, counts.total()
        listed = ", ".join(f"{n:,} {what}" for what, n in counts.most_common())
        click.echo(f"{name}: {done:,} mutated files in {taken:.1f} s ({done / taken:.0f}/s), slowest {slowest:.3f} s")
        click.echo(f"  {listed}")
    click.echo(f"peak resident memory {(peak() - warm) >> 20} MiB above the warm decoder's {warm >> 20} MiB")


if __name__ == "__main__":
    main()
