"""Time of each kernel beside its torch reference and beside the floor that bytes and operations set.

    python -m mcodec.bench.kernels --out bench/results/kernels.jsonl

Run from the repository's root: the operation's own tests run first, and one whose tests fail is not timed. Shapes are
like those of the preset `cascade` at stride 8, where nearly all symbols are: its first stage there, with two
sub-codebooks more, and the channels of its context network. A row holds the median with the 20th and 80th
percentile in ms after warm-up, kernels only, no transfer; `floor` is the larger of bytes / copy bandwidth and
operations / matrix rate, both measured just before on the same device. Rows append; `--table` writes them as Markdown.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import click
import torch

from mcodec.bench import machine
from mcodec.files import append_rows

#: name -> (pictures, height, width)
SHAPES = {
    "kodak": (1, 512, 768),
    "1080p": (1, 1080, 1920),
    "16 x 1080p": (16, 1080, 1920),
    "4K": (1, 2160, 3840),
    "4 x 4K": (4, 2160, 3840),
}
STRIDE, GROUPS, CODEWORDS, DIMENSION, CHANNELS = 8, 10, 961, 2, 96
#: A reference that would hold more entries of rows than this is left out,
ROW_ENTRIES = 1 << 28
#: and one that would take more steps in Python.
PYTHON_STEPS = 1 << 12


@dataclass(frozen=True)
class Case:
    """A call to time, what it has to move and to compute, and what its reference does otherwise."""

    run: Callable[[], object]
    bytes: int
    operations: int
    rows: bool = False  # holds whole rows
    steps: int = 0  # steps in Python, one symbol of each lane


def _prior(batch: int, positions: int, device: torch.device) -> tuple[Any, torch.Tensor, torch.Tensor]:
    from mcodec.kernels.mixture_frequencies import MixtureTables
    from mcodec.model.prior import precision_table

    codewords = torch.randint(-240, 241, (GROUPS, CODEWORDS, DIMENSION))
    weights = torch.randint(-400, 1, (GROUPS, CODEWORDS)).to(device)
    tables = MixtureTables.build(codewords.to(device), weights, precision_table(0.16).to(device), cutoff=64 * 64)
    shape = (batch, GROUPS, DIMENSION, positions)
    offset = torch.randint(-60, 61, shape, dtype=torch.int16, device=device)
    return tables, offset, torch.randint(40, 70, shape, dtype=torch.uint8, device=device)


def pvq_assign(batch: int, height: int, width: int, device: torch.device) -> Case:
    """With the rate of the integer prior."""
    from mcodec.kernels.pvq_assign import Prior, pvq_assign

    tables, offset, scale = _prior(batch, height * width, device)
    latents = torch.randn(offset.shape, device=device) * 3
    codewords = tables.codewords.transpose(1, 2) / 16
    symbols = batch * GROUPS * height * width
    return Case(
        lambda: pvq_assign(latents, codewords, 20.0, prior=Prior(tables, offset, scale)),
        symbols * (7 * DIMENSION + 8), symbols * CODEWORDS * (9 * DIMENSION + 8), True,
    )


def pvq_assign_nearest(batch: int, height: int, width: int, device: torch.device) -> Case:
    """Without a rate, of the most codewords that there can be."""
    from mcodec.kernels.pvq_assign import pvq_assign

    groups, size = 2, 8192
    latents = torch.randn(batch, groups, DIMENSION, height * width, device=device) * 3
    codewords = torch.randn(groups, size, DIMENSION, device=device) * 3
    symbols = batch * groups * height * width
    return Case(
        lambda: pvq_assign(latents, codewords, 1.0), symbols * (4 * DIMENSION + 8), symbols * size * (3 * DIMENSION + 3)
    )


def mixture_frequencies(batch: int, height: int, width: int, device: torch.device) -> Case:
    """Intervals of given codes."""
    from mcodec.kernels.mixture_frequencies import mixture_frequencies

    tables, offset, scale = _prior(batch, height * width, device)
    codes = torch.randint(0, CODEWORDS, (batch, GROUPS, height * width), dtype=torch.int32, device=device)
    return Case(
        lambda: mixture_frequencies(tables, offset, scale, codes),
        codes.numel() * (3 * DIMENSION + 12), codes.numel() * CODEWORDS * (6 * DIMENSION + 25), True,
    )


def _lanes(symbols: int) -> int:
    """Lanes of a stream of 2 bits per symbol, nearly."""
    from mcodec.entropy import lanes_for

    return lanes_for(symbols << 15)


def rans_encode(batch: int, height: int, width: int, device: torch.device) -> Case:
    """Intervals to words, one stream per picture."""
    from mcodec.kernels.rans import rans_encode

    n = GROUPS * height * width
    freq = torch.randint(1, 32768, (batch, n), dtype=torch.int32, device=device)
    start = (torch.rand(batch, n, device=device) * (65536 - freq)).int()
    counts = torch.full((batch, 1), n, device=device)
    lanes = torch.full((batch,), _lanes(n), device=device)
    return Case(
        lambda: rans_encode(start, freq, counts, [0], lanes, _lanes(n)), batch * n * 20, batch * n * 30,
        steps=n // _lanes(n),
    )


def rans_decode(batch: int, height: int, width: int, device: torch.device) -> Case:
    """Words, here random ones, to codes; the rows are part of it."""
    from mcodec.kernels.rans import LOWEST, RansStreams, rans_decode

    tables, offset, scale = _prior(batch, height * width, device)
    n = GROUPS * height * width
    words = torch.randint(0, 65536, (batch, n), dtype=torch.int32, device=device)
    lanes = torch.full((batch,), _lanes(n), device=device)

    def run() -> object:
        states = torch.full((batch, _lanes(n)), LOWEST, device=device)
        streams = RansStreams(words, torch.full_like(lanes, n), lanes, states, torch.zeros_like(lanes))
        return rans_decode(tables, offset, scale, (batch, GROUPS, height * width), streams)

    operations = batch * n * CODEWORDS * (6 * DIMENSION + 25)
    return Case(run, batch * n * (3 * DIMENSION + 12), operations, steps=n // _lanes(n))


def context_layer(batch: int, height: int, width: int, device: torch.device) -> Case:
    """One depthwise and one pointwise layer."""
    from mcodec.kernels.context_layer import depthwise, pointwise

    x = torch.randint(-127, 128, (batch, CHANNELS, height, width), device=device).float()
    spatial = torch.randint(-127, 128, (CHANNELS, 3, 3), device=device).float()
    weight = torch.randint(-127, 128, (CHANNELS, CHANNELS), device=device).float()
    bias = torch.zeros(CHANNELS, device=device)

    def run() -> object:
        return pointwise(depthwise(x, spatial, bias, 6, -127, 127), weight, bias, 7, -127, 127)

    return Case(run, 16 * x.numel(), x.numel() * 2 * (CHANNELS + 9))


def dequantize(batch: int, height: int, width: int, device: torch.device) -> Case:
    """Codes to float32 channels."""
    from mcodec.kernels.dequantize import dequantize

    codewords = torch.randn(GROUPS, CODEWORDS, DIMENSION, device=device)
    codes = torch.randint(0, CODEWORDS, (batch, GROUPS, height, width), dtype=torch.int32, device=device)
    return Case(lambda: dequantize(codes, codewords), codes.numel() * (4 + 4 * DIMENSION), 0)


def _feature(batch: int, height: int, width: int, device: torch.device) -> torch.Tensor:
    x = torch.randn((batch, CHANNELS, height, width), device=device)
    return x.contiguous(memory_format=torch.channels_last)


def affine_depthwise(batch: int, height: int, width: int, device: torch.device) -> Case:
    """What a residual block of the transforms begins with, to bfloat16."""
    from mcodec.kernels.residual_block import affine_depthwise

    x, weight = _feature(batch, height, width, device), torch.randn(CHANNELS, 1, 3, 3, device=device)
    bias, factor, shift = torch.randn(CHANNELS, device=device), *torch.randn(2, batch, CHANNELS, 1, 1, device=device)

    def run() -> object:
        with torch.autocast(device.type, torch.bfloat16):
            return affine_depthwise(x, weight, bias, factor, shift)

    return Case(run, 6 * x.numel(), 20 * x.numel())


def scaled_add(batch: int, height: int, width: int, device: torch.device) -> Case:
    """What a residual block ends with, from bfloat16."""
    from mcodec.kernels.residual_block import scaled_add

    x, factor = _feature(batch, height, width, device), torch.randn(batch, 1, 1, 1, device=device)
    added = x.bfloat16()
    return Case(lambda: scaled_add(x, added, factor), 10 * x.numel(), 2 * x.numel())


def pixel_filter(batch: int, height: int, width: int, device: torch.device) -> Case:
    """The filter behind the synthesis, on whole pictures one after the other."""
    from mcodec.kernels.pixel_filter import PAIRS, RINGS, pixel_filter

    pictures = torch.randn(batch, 3, STRIDE * height, STRIDE * width, device=device)
    own, others = torch.randn(3, len(PAIRS) + len(RINGS)), torch.randn(3, 2)

    def run() -> object:
        return [pixel_filter(picture, own, others, 0.05) for picture in pictures]

    return Case(run, 8 * pictures.numel(), (4 * len(PAIRS) + 16 * len(RINGS)) * pictures.numel())


#: name -> (case of a shape, the tests that must pass before)
OPERATIONS: dict[str, tuple[Callable[[int, int, int, torch.device], Case], str]] = {
    "pvq_assign": (pvq_assign, "tests/test_pvq_assign.py"),
    "pvq_assign_nearest": (pvq_assign_nearest, "tests/test_pvq_assign.py"),
    "mixture_frequencies": (mixture_frequencies, "tests/test_mixture_frequencies.py"),
    "rans_encode": (rans_encode, "tests/test_rans.py"),
    "rans_decode": (rans_decode, "tests/test_rans.py"),
    "context_layer": (context_layer, "tests/test_context_layer.py"),
    "dequantize": (dequantize, "tests/test_dequantize.py"),
    "affine_depthwise": (affine_depthwise, "tests/test_residual_block.py"),
    "scaled_add": (scaled_add, "tests/test_residual_block.py"),
    "pixel_filter": (pixel_filter, "tests/test_postfilter.py"),
}


def times(run: Callable[[], object], device: torch.device, repeat: int) -> list[float]:
    """Milliseconds of each repetition, after two that are not counted."""
    out = []
    for count in range(repeat + 2):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            torch.cuda.synchronize(device)
            took = begin.elapsed_time(end)
        else:
            began = time.perf_counter()
            run()
            took = (time.perf_counter() - began) * 1000
        if count >= 2:
            out.append(took)
    return out


def limits(device: torch.device, repeat: int) -> tuple[float, float]:
    """Measured copy bandwidth in bytes/ms, read and written, and bf16 matrix rate in operations/ms."""
    gpu = device.type == "cuda"
    source = torch.zeros(1 << (29 if gpu else 26), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    side = 8192 if gpu else 512
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    copy = statistics.median(times(lambda: target.copy_(source), device, repeat))
    product = statistics.median(times(lambda: a @ b, device, repeat))
    return 2 * source.numel() / copy, 2 * side**3 / product


def tests_pass(path: str) -> bool:
    """Runs an operation's tests as they are; False where they fail or are not there."""
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", path]).returncode == 0


def measure(
    operation: str, shape: str, device: torch.device, repeat: int, floor: tuple[float, float]
) -> list[dict[str, Any]]:
    """Rows of one operation on one shape: Triton's on a GPU, the reference's where it fits."""
    from mcodec.kernels import backend

    batch, height, width = SHAPES[shape]
    grid = -(-height // STRIDE), -(-width // STRIDE)
    torch.manual_seed(0)
    case = OPERATIONS[operation][0](batch, *grid, device)
    least = max(case.bytes / floor[0], case.operations / floor[1])
    rows = []
    for name in ("triton", "reference"):
        too_large = case.rows and batch * GROUPS * grid[0] * grid[1] * CODEWORDS > ROW_ENTRIES
        too_large = too_large or case.steps > PYTHON_STEPS
        if device.type != "cuda" if name == "triton" else too_large:
            continue
        with mock.patch.dict(os.environ, {"MCODEC_KERNELS": name}), torch.no_grad():
            found = sorted(times(case.run, device, repeat if name == "triton" else min(repeat, 3)))
        low, middle, high = (found[min(len(found) - 1, round(q * (len(found) - 1)))] for q in (0.2, 0.5, 0.8))
        rows.append(
            {
                "operation": operation, "implementation": name, "shape": shape, "unit": "ms", "p20": low, "p50": middle,
                "p80": high, "bytes": case.bytes, "operations": case.operations, "floor": least,
                "of_floor": least / middle,
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
                "torch": torch.__version__, "triton": getattr(backend.triton, "__version__", None),
                "commit": machine.commit(), "date": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown of a results file: of each operation, shape, implementation and device the last row."""
    last = {(r["device"], r["operation"], r["shape"], r["implementation"]): r for r in rows}
    lines = ["| device | operation | shape | implementation | ms (p20 to p80) | of the floor |"]
    lines.append("|---|---|---|---|---|---|")
    for (device, operation, shape, implementation), r in last.items():
        spread = f"{r['p50']:.3f} ({r['p20']:.3f} to {r['p80']:.3f})"
        lines.append(f"| {device} | {operation} | {shape} | {implementation} | {spread} | {r['of_floor']:.0%} |")
    return "\n".join(lines)


@click.command()
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--operation", "names", type=click.Choice(list(OPERATIONS)), multiple=True, help="Default: all.")
@click.option("--shape", "shapes", type=click.Choice(list(SHAPES)), multiple=True, help="Default: all.")
@click.option("--repeat", default=50, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=Path("bench/results/kernels.jsonl"))
@click.option("--table", "show", is_flag=True, help="Print the file's rows as Markdown and measure nothing.")
def main(
    device: str, names: tuple[str, ...], shapes: tuple[str, ...], repeat: int, out: Path, show: bool
) -> None:
    """Test, then time kernels, and append rows to a file."""
    if show:
        click.echo(table([json.loads(line) for line in out.read_text().splitlines()]))
        return
    if device == "cuda" and not torch.cuda.is_available():
        click.echo("no CUDA device: there is nothing to time (--device cpu times the torch references)")
        return
    where = torch.device(device)
    chosen = names or tuple(OPERATIONS)
    red = [path for path in dict.fromkeys(OPERATIONS[name][1] for name in chosen) if not tests_pass(path)]
    floor = limits(where, min(repeat, 20))
    for name in chosen:
        if OPERATIONS[name][1] in red:
            click.echo(f"{name}: not timed, because {OPERATIONS[name][1]} fails", err=True)
            continue
        for shape in shapes or tuple(SHAPES):
            rows = measure(name, shape, where, repeat, floor)
            append_rows(out, rows)
            click.echo(table(rows).split("\n", 2)[2] if rows else f"{name}, {shape}: nothing to time")
    if red:
        raise click.ClickException(f"tests fail: {', '.join(red)}")


if __name__ == "__main__":
    main()
