"""`mcodec info`, `mcodec models` and `mcodec --version`; of them only `info --stages` loads weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from mcodec.cli.many import named
from mcodec.cli.options import FILE, Codecs, check_device, max_pixels_option, model_option, read
from mcodec.errors import CodecError

INFO_EXAMPLES = """\b
Examples:
  mcodec info photo.mci
  mcodec info photo.mci --json
  mcodec info photo.mci --stages
"""
MODELS_EXAMPLES = """\b
Examples:
  mcodec models
  mcodec models --json
"""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _plain(value: Any) -> str:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(_plain(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def _about(source: Path) -> Iterator[None]:
    """Errors name the file."""
    try:
        yield
    except CodecError as error:
        raise CodecError(named(str(error), source)) from error


def _to_json(value: Any) -> str:
    return json.dumps(value, indent=2, default=_plain)


@click.command(epilog=INFO_EXAMPLES)
@click.argument("source", metavar="FILE", type=FILE)
@json_option
@click.option("--stages", is_flag=True, help="List the bytes of each stage; of a single tile this loads the weights.")
@max_pixels_option
@model_option
def info(source: Path, as_json: bool, stages: bool, max_pixels: int, model: str | None) -> None:
    """Print every header field of a .mci file; with --stages the bytes of each stage, coarse to fine."""
    from mcodec.container import describe, unpack

    data = read(source)
    with _about(source):
        fields = describe(data)
    if stages and fields["stages"] is None:
        codec = Codecs(model, "auto").of(unpack(data))
        with _about(source):
            fields["stages"] = codec.stage_bytes(data, max_pixels)
    if as_json:
        click.echo(_to_json(fields))
        return
    width = max(map(len, fields))
    for name, value in fields.items():
        if value is None:
            continue
        click.echo(f"{name.replace('_', ' '):<{width}}  {_plain(value)}")


@click.command(epilog=MODELS_EXAMPLES)
@json_option
def models(as_json: bool) -> None:
    """List the installed weights; the default is marked with *."""
    from mcodec import weights

    cards = weights.list_models()
    if as_json:
        click.echo(_to_json(cards))
        return
    for card in cards:
        mark = "*" if card["default"] else " "
        size = f"{card['parameters'] / 1e6:.1f} M parameters" if "parameters" in card else ""
        place = "" if card["folder"] == str(weights.folder()) else card["folder"]
        click.echo(f"{mark} {Path(card['file']).stem:<16} {card['sha256'][:8]}  {size}  {place}".rstrip())
    for problem in weights.problems():
        click.echo(f"mcodec: note: {problem}", err=True)


def version() -> str:
    """Package, default weights and backends, one per line."""
    import torch

    from mcodec import __version__, entropy, weights
    from mcodec.kernels.backend import use_triton

    check_device("auto")
    default = [card for card in weights.list_models() if card["default"]]
    named = f"{weights.DEFAULT} {default[0]['sha256'][:8]}" if default else "none installed"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fused = "triton" if use_triton(device) else "reference"
    return "\n".join(
        [
            f"mcodec {__version__}",
            f"weights: {named}",
            f"backends: entropy coder {entropy.backend()}, torch {torch.__version__}, kernels {fused}",
        ]
    )
