"""Golden files: what a `.mci` file decodes to, recorded once and checked ever after.

    python tests/golden.py record FILE.mci...       writes FILE.json beside each; refuses to change one
    python tests/golden.py check tests/golden/      decodes and compares

Codes are recorded as the SHA-256 of their int32 values and shapes, and must be equal. Pixels come from float
arithmetic, which may round a sample the other way: they are recorded as the means of a grid of cells, and must agree
within TOLERANCE in each cell and MEAN_TOLERANCE over all of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mcodec import weights
from mcodec.api import Codec, load

CELLS = 8  # along each side
TOLERANCE = 1.0  # of 255; what every sample may be off by
MEAN_TOLERANCE = 0.25


def codes_hash(codes: Sequence[Tensor]) -> str:
    """SHA-256 over each stage's shape and values, int32 little-endian, in C order."""
    digest = hashlib.sha256()
    for stage in codes:
        array = stage.cpu().numpy().astype("<i4")
        digest.update(np.array(array.shape, "<i4").tobytes() + array.tobytes())
    return digest.hexdigest()


def cell_means(image: Image.Image) -> NDArray[np.float64]:
    """Means over a grid of at most CELLS x CELLS cells, `[rows, columns, channels]`, in 1/255 of the sample range."""
    array = np.asarray(image)
    samples = array.reshape(*array.shape[:2], -1).astype(np.float64)
    if array.dtype == np.bool_:
        samples *= 255
    elif array.dtype.itemsize > 1:
        samples /= 257
    rows, columns = (np.array_split(np.arange(n), min(CELLS, n)) for n in samples.shape[:2])
    return np.array([[samples[r[0] : r[-1] + 1, c[0] : c[-1] + 1].mean((0, 1)) for c in columns] for r in rows])


def record(codec: Codec, data: bytes) -> dict[str, Any]:
    """What is kept of a file."""
    image = codec.decode(data)
    return {
        "file": hashlib.sha256(data).hexdigest(),
        "weights": codec.fingerprint.hex(),
        "codes": codes_hash(codec.codes(data)),
        "size": list(image.size),
        "mode": image.mode,
        "cells": cell_means(image).round(2).tolist(),
    }


def differences(codec: Codec, data: bytes, golden: dict[str, Any]) -> list[str]:
    """What a file decodes to otherwise than recorded; empty where all is well."""
    found = record(codec, data)
    wrong = [key for key in ("file", "weights", "codes", "size", "mode") if found[key] != golden[key]]
    if "size" in wrong or "mode" in wrong:
        return wrong
    off = np.abs(np.array(found["cells"]) - np.array(golden["cells"]))
    if off.max() > TOLERANCE or off.mean() > MEAN_TOLERANCE:
        wrong.append(f"pixels (a cell is off by {off.max():.2f}, all by {off.mean():.2f})")
    return wrong


def codec_for(data: bytes) -> Codec:
    """The installed weights that a file names."""
    from mcodec.container import describe

    fingerprint = describe(data)["fingerprint"]
    names = [Path(card["file"]).stem for card in weights.list_models() if card["sha256"].startswith(fingerprint)]
    if not names:
        raise click.ClickException(f"weights {fingerprint} are not installed")
    return load(names[0], "cpu")


@click.group(help=__doc__)
def main() -> None: ...


@main.command("record")
@click.argument("paths", type=click.Path(exists=True, dir_okay=False, path_type=Path), nargs=-1)
def record_files(paths: tuple[Path, ...]) -> None:
    for path in paths:
        data = path.read_bytes()
        with open(path.with_suffix(".json"), "x") as file:  # a golden file is never regenerated
            file.write(json.dumps(record(codec_for(data), data)) + "\n")
        click.echo(f"{path}: recorded")


@main.command("check")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def check_files(folder: Path) -> None:
    failed = False
    for path in sorted(folder.glob("*.mci")):
        data = path.read_bytes()
        wrong = differences(codec_for(data), data, json.loads(path.with_suffix(".json").read_text()))
        failed = failed or bool(wrong)
        click.echo(f"{path}: {'differs in ' + ', '.join(wrong) if wrong else 'ok'}")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
