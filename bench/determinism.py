"""Bounds of the integer context network, and a replay that runs it in every form that must not matter.

    python -m mcodec.bench.determinism                                  # bounds of the default weights
    python -m mcodec.bench.determinism --replay KODAK --quality 30 --quality 80 --out FILE.json

The replay encodes pictures, takes their codes, and runs the context network over them in each of FORMS: offsets and
scales of every stage are compared with those of the reference form. Then it computes all logits of the reference,
once as the coder does (int32) and once in float64 by another order, and compares these. Exit status 1 where a bound
does not hold or anything differs. docs/DETERMINISM.md is the text to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from mcodec import container, weights
from mcodec.api import Codec, load
from mcodec.entropy import PriorTables, rans
from mcodec.kernels.context_layer import requantize
from mcodec.model import Cascade, level_of, shifts
from mcodec.model.bounds import EXACT, Bound, bounds
from mcodec.model.context import IntegerLayer, upsample

#: product(x `[B, C, h, w]`, weight `[O, C]` or `[C, 3, 3]`, bias `[O]`) -> accumulators `[B, O, h, w]`.
Product = Callable[[Tensor, Tensor, Tensor], Tensor]

# Entries of a logit row that are held at once.
_CHUNK = 1 << 20


# ---- other ways to take the products of a layer ----


def convolutions(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The library's convolutions, whatever algorithm they choose."""
    if weight.dim() == 3:
        return F.conv2d(x, weight[:, None], bias, padding=1, groups=len(weight))
    return F.conv2d(x, weight[:, :, None, None], bias)


def bfloat16_operands(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Operands rounded to bfloat16, sums in float32; the matrix product may use bfloat16 hardware."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        return shuffled(x.bfloat16().float(), weight.bfloat16().float(), bias)
    finally:
        torch.set_float32_matmul_precision(before)


def shuffled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Products summed in a random order, the bias somewhere among them."""
    h, w = x.shape[-2:]
    if weight.dim() == 3:
        padded = F.pad(x, (1, 1, 1, 1))
        terms = [weight[:, i, j, None, None] * padded[:, :, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    else:
        order = torch.randperm(x.shape[1])
        terms = [
            torch.matmul(weight[:, part], x[:, part].flatten(2)).unflatten(2, (h, w)) for part in order.tensor_split(3)
        ]
    terms.append(bias[:, None, None].expand_as(terms[0]))
    acc = torch.zeros_like(terms[0])
    for place in torch.randperm(len(terms)).tolist():
        acc = acc + terms[place]
    return acc


@dataclass(frozen=True)
class Form:
    """One way to run the context network."""

    dtype: torch.dtype = torch.float32
    threads: int = 1
    batch: int = 1
    memory_format: torch.memory_format = torch.contiguous_format
    onednn: bool = True
    product: Product | None = None  # None: what ships


REFERENCE = Form()
FORMS = {
    "float64": Form(torch.float64),
    "int64": Form(torch.int64),
    "int32": Form(torch.int32),
    "bfloat16 operands, float32 sums": Form(product=bfloat16_operands),
    "shuffled summation": Form(product=shuffled),
    "shuffled summation, float64": Form(torch.float64, product=shuffled),
    "library convolutions": Form(product=convolutions),
    "library convolutions, oneDNN off": Form(onednn=False, product=convolutions),
    "oneDNN off": Form(onednn=False),
    "2 threads": Form(threads=2),
    "batches of 3": Form(batch=3),
    "batches of 8": Form(batch=8),
    "channels last": Form(memory_format=torch.channels_last),
    "batches of 8, channels last, 2 threads, library convolutions": Form(
        threads=2, batch=8, memory_format=torch.channels_last, product=convolutions
    ),
}


@contextmanager
def applied(form: Form) -> Iterator[None]:
    """Threads, oneDNN and products of a form; everything is put back."""
    product = form.product

    def forward(layer: IntegerLayer, x: Tensor) -> Tensor:
        assert product is not None
        weight, bias = (value.to(x.dtype) for value in layer.integers())
        out: Tensor = requantize(product(x, weight, bias), layer.shift, layer.low, layer.high)
        return out

    shipped = IntegerLayer.forward if product is None else forward
    threads = torch.get_num_threads()
    onednn = torch.backends.mkldnn.set_flags(_enabled=form.onednn)[0]  # `flags` warns of TF32 on a CPU
    torch.set_num_threads(form.threads)
    try:
        with torch.no_grad(), mock.patch.object(IntegerLayer, "forward", shipped):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.mkldnn.set_flags(_enabled=onednn)


# ---- the replay ----


@dataclass(frozen=True)
class Coded:
    """A picture's codes, per stage `[M, h, w]`, the level they were coded at, and each stage's shift of scales."""

    codes: list[Tensor]
    level: int
    shifts: list[int]

    @staticmethod
    def of(codec: Codec, picture: NDArray[Any], quality: float) -> Coded:
        """A picture as a file holds it; of tiles, the shifts of the first."""
        data = codec.encode(picture, quality)
        return Coded(codec.codes(data), level_of(quality), container.unpack(data).shifts(codec.stages)[0])


#: Offset and scale of every stage, `[M * d, h, w]` integers.
Parameters = list[tuple[Tensor, Tensor]]


def parameters(model: Cascade, coded: Sequence[Coded], form: Form) -> list[Parameters]:
    """What the context network says of pictures of one size, run as one batch."""
    level = torch.tensor([item.level for item in coded], dtype=torch.float32)
    stride = model.stage(0).stride
    u = torch.zeros(len(coded), model.config.context_channels, *coded[0].codes[0].shape[1:], dtype=form.dtype)
    found: list[tuple[Tensor, Tensor]] = []
    with applied(form):
        for index in range(len(model.stages)):
            stage = model.stage(index)
            while stride > stage.stride:
                u, stride = upsample(u), stride // 2
            u = u.contiguous(memory_format=form.memory_format)
            u, offset, scale = stage.context.parameters_of(u, level)
            found.append((offset.to(torch.int16), scale.to(torch.int16)))
            if index + 1 < len(model.stages):
                codes = torch.stack([item.codes[index] for item in coded]).long()
                u = stage.context.absorb(u, stage.codebooks.lookup_coordinates(codes))
    return [[(offset[item], scale[item]) for offset, scale in found] for item in range(len(coded))]


def batches(coded: Sequence[Coded], size: int) -> Iterator[list[int]]:
    """Indices of pictures of one size, at most `size` at a time."""
    groups: dict[torch.Size, list[int]] = {}
    for index, item in enumerate(coded):
        groups.setdefault(item.codes[0].shape, []).append(index)
    for members in groups.values():
        for first in range(0, len(members), size):
            yield members[first : first + size]


def float64_logits(
    tables: PriorTables, offset: NDArray[np.int16], scale: NDArray[np.uint8], group: int, positions: NDArray[np.intp]
) -> NDArray[np.float64]:
    """The law of docs/ENTROPY.md in float64, components from the last to the first: exact below 2^53."""
    _, size, dimension = tables.codewords.shape
    cost = np.full((len(positions), size), 512.0)
    for j in reversed(range(dimension)):
        a = tables.precision[scale[group, j, positions]].astype(np.float64)[:, None]
        difference = tables.codewords[group, :, j].astype(np.float64) - offset[group, j, positions, None]
        cost += a * np.minimum(difference * difference, np.floor((2**31 - 1) / (dimension * a)))
    logit: NDArray[np.float64] = tables.log_weights[group] - np.floor(cost / 1024)
    return logit


@dataclass
class Count:
    """How many values were compared, and how many of them differed."""

    compared: int = 0
    different: int = 0

    def add(self, a: Any, b: Any) -> None:
        """Two arrays of one shape, numpy or torch."""
        self.compared += int(np.prod(a.shape))
        self.different += int((a != b).sum())


@dataclass
class Replay:
    """Outcome: parameters by form, logits by arithmetic."""

    pictures: int = 0
    forms: dict[str, Count] = field(default_factory=dict)
    logits: Count = field(default_factory=Count)

    @property
    def parameters(self) -> Count:
        """All forms together."""
        counts = self.forms.values()
        return Count(sum(c.compared for c in counts), sum(c.different for c in counts))

    @property
    def agrees(self) -> bool:
        """Whether nothing differed."""
        return not (self.parameters.different or self.logits.different)


def replay(
    codec: Codec, coded: Sequence[Coded], forms: dict[str, Form], advance: Callable[[], object] = lambda: None
) -> Replay:
    """Runs the forms over coded pictures; `advance` is called once per picture and form, and once for its logits."""
    out = Replay(len(coded))
    reference = [parameters(codec.model, [item], REFERENCE)[0] for item in coded]
    for name, form in forms.items():
        count = out.forms[name] = Count()
        for members in batches(coded, form.batch):
            for index, found in zip(
                members, parameters(codec.model, [coded[i] for i in members], form), strict=True
            ):
                for stage, expected in zip(found, reference[index], strict=True):
                    for a, b in zip(stage, expected, strict=True):
                        count.add(a, b)
                advance()
    for item, found in zip(coded, reference, strict=True):
        for place, (offset, scale) in enumerate(found):
            shifted = shifts.moved(scale[None], torch.tensor([item.shifts[place]]))[0]
            _compare_logits(codec, place, (offset, shifted), out.logits)
        advance()
    return out


def _compare_logits(codec: Codec, index: int, pair: tuple[Tensor, Tensor], count: Count) -> None:
    stage = codec.model.stage(index)
    tables = codec.model.tables(index)
    offset, scale = (stage.codebooks.vectors(value[None])[0].numpy() for value in pair)
    indices = scale.astype(np.uint8)
    groups, size, _ = tables.codewords.shape
    step = max(1, _CHUNK // size)
    for group in range(groups):
        for first in range(0, offset.shape[2], step):
            positions = np.arange(first, min(first + step, offset.shape[2]))
            coder = rans.logits(*tables.arguments[:3], offset, indices, group, positions)
            count.add(coder, float64_logits(tables, offset, indices, group, positions))


# ---- the command ----


def table(rows: Sequence[Bound]) -> str:
    """The bounds as a table in Markdown."""
    lines = ["| layer | fan-in | input | weight | bias | accumulator | of 2^24 |", "|---|---|---|---|---|---|---|"]
    for b in rows:
        share = f"{100 * b.accumulator / EXACT:.2f} %"
        lines.append(f"| {b.layer} | {b.fan_in} | {b.input} | {b.weight} | {b.bias} | {b.accumulator} | {share} |")
    return "\n".join(lines)


def coded_pictures(codec: Codec, folder: Path, qualities: Sequence[float], limit: int | None) -> list[Coded]:
    """Codes of the PNG pictures of a folder at some qualities."""
    paths = sorted(folder.glob("*.png"))[:limit]
    if not paths:
        raise click.ClickException(f"no PNG pictures in {folder}")
    return [
        Coded.of(codec, np.asarray(Image.open(path).convert("RGB")), quality)
        for path in track(paths, "encoding", transient=True)
        for quality in qualities
    ]


@click.command()
@click.option("--replay", "folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--quality", "qualities", type=float, multiple=True, default=(50.0,), show_default=True)
@click.option("--pictures", "limit", type=int, help="only the first ones of the folder")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="write all figures as JSON")
@click.option("--model", default=None, help="released name or path of weights")
def main(
    folder: Path | None, qualities: tuple[float, ...], limit: int | None, out: Path | None, model: str | None
) -> None:
    """Print the bounds of the weights; with --replay, run pictures through every form."""
    torch.set_num_threads(1)
    codec = load(model, "cpu")
    rows = list(bounds(codec.model))
    click.echo(table(rows))
    good = all(b.holds for b in rows)
    click.echo(f"\nlargest accumulator {max(b.accumulator for b in rows)}: " + ("exact" if good else "NOT EXACT"))
    result: dict[str, Any] = {
        "weights": weights.read_card(weights.find(model))["sha256"],
        "torch": torch.__version__,
        "bounds": [asdict(b) for b in rows],
    }
    if folder is not None:
        coded = coded_pictures(codec, folder, qualities, limit)
        steps = iter(track(range(len(coded) * (len(FORMS) + 1)), "replay", transient=True))
        done = replay(codec, coded, FORMS, lambda: next(steps, None))
        click.echo(f"\n{done.pictures} coded pictures, qualities {', '.join(f'{q:g}' for q in qualities)}")
        for name, count in {**done.forms, "all parameters": done.parameters, "logits": done.logits}.items():
            click.echo(f"{name}: {count.compared:,} compared, {count.different:,} differ")
        result["replay"] = {"qualities": qualities, **asdict(done)}
        good = good and done.agrees
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")
    if not good:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
