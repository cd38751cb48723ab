"""Golden files: what `.mci` files decode to, recorded once and checked ever after.

    python tests/golden.py check               decodes every file and compares
    python tests/golden.py add FILE.mci...     takes files in, with what they decode to now
    python tests/golden.py make                takes in the CASES of golden_cases.py that are missing

`tests/golden` holds the files, the weights that they name, and manifest.json, which says what comes out. Nothing there
is ever changed or made anew: a change of the format adds files.

Codes are recorded as the SHA-256 of their int32 values and shapes, and must be equal, as must alpha and metadata.
Pixels come from float arithmetic, which may round a sample the other way: they are recorded as the means of a grid of
cells, and must agree within TOLERANCE in each cell and MEAN_TOLERANCE over all of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import click
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mcodec import weights
from mcodec.api import Codec, load
from mcodec.container import describe
from mcodec.image import Raster

FOLDER = Path(__file__).resolve().parent / "golden"
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


def cell_means(raster: Raster) -> NDArray[np.float64]:
    """Means over a grid of at most CELLS x CELLS cells, `[rows, columns, channels]`, in 1/255 of the sample range."""
    array = np.asarray(raster.samples)
    samples = array.reshape(*array.shape[:2], -1).astype(np.float64) * (255 / np.iinfo(array.dtype).max)
    rows, columns = (np.array_split(np.arange(n), min(CELLS, n)) for n in samples.shape[:2])
    return np.array([[samples[r[0] : r[-1] + 1, c[0] : c[-1] + 1].mean((0, 1)) for c in columns] for r in rows])


def record(codec: Codec, data: bytes) -> dict[str, Any]:
    """What is kept of a file, as JSON gives it back."""
    raster, codes = codec.decode_with_codes(data)
    alpha = raster.alpha
    exact = {} if alpha is None else {"alpha": alpha.astype(alpha.dtype.newbyteorder("<")).tobytes()}
    exact |= raster.metadata.info()
    return {
        "file": hashlib.sha256(data).hexdigest(),
        "weights": codec.fingerprint.hex(),
        "codes": codes_hash(codes),
        "size": list(raster.size),
        "kind": raster.kind.name,
        "exact": {name: hashlib.sha256(value).hexdigest() for name, value in exact.items()},
        "cells": cell_means(raster).round(2).tolist(),
    }


def differences(codec: Codec, data: bytes, golden: dict[str, Any]) -> list[str]:
    """What a file decodes to otherwise than recorded; empty where all is well."""
    found = record(codec, data)
    wrong = [key for key in golden if key != "cells" and found[key] != golden[key]]
    if "size" in wrong or "kind" in wrong:
        return wrong
    off = np.abs(np.array(found["cells"]) - np.array(golden["cells"]))
    if off.max() > TOLERANCE or off.mean() > MEAN_TOLERANCE:
        wrong.append(f"pixels (a cell is off by {off.max():.2f}, all by {off.mean():.2f})")
    return wrong


def codec_for(data: bytes, folder: Path = FOLDER) -> Codec:
    """The weights that a file names: of those beside the golden files, or installed."""
    fingerprint = describe(data)["fingerprint"]
    for path in (*sorted((folder / "weights").glob("*.safetensors")), *weights.folder().glob("*.safetensors")):
        if weights.read_card(path)["sha256"].startswith(fingerprint):
            return load(path, "cpu")
    raise click.ClickException(f"there are no weights {fingerprint}")


def manifest(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """File name -> its record."""
    path = folder / "manifest.json"
    found: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    return found


def add(name: str, data: bytes, folder: Path = FOLDER) -> None:
    """Takes a file in; ClickException where there is one of that name, which stays as it is."""
    records = manifest(folder)
    if name in records or (folder / name).exists():
        raise click.ClickException(f"{name} is there already, and golden files are never changed: choose another name")
    records[name] = record(codec_for(data, folder), data)
    with open(folder / name, "xb") as file:
        file.write(data)
    lines = (f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in records.items())
    temporary = folder / "manifest.json.new"
    temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    os.replace(temporary, folder / "manifest.json")


@click.group(help=__doc__)
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), default=FOLDER)
@click.pass_context
def main(context: click.Context, folder: Path) -> None:
    context.obj = folder


@main.command("check")
@click.pass_obj
def check_files(folder: Path) -> None:
    """Decode every file and compare."""
    failed = False
    for name, golden in manifest(folder).items():
        data = (folder / name).read_bytes()
        wrong = differences(codec_for(data, folder), data, golden)
        failed = failed or bool(wrong)
        click.echo(f"{name}: {'differs in ' + ', '.join(wrong) if wrong else 'ok'}")
    if failed:
        raise SystemExit(1)


@main.command("add")
@click.argument("paths", type=click.Path(exists=True, dir_okay=False, path_type=Path), nargs=-1, required=True)
@click.pass_obj
def add_files(folder: Path, paths: tuple[Path, ...]) -> None:
    """Take files in, with what they decode to now."""
    for path in paths:
        add(path.name, path.read_bytes(), folder)
        click.echo(f"{path.name}: added")


@main.command("make")
@click.pass_obj
def make_files(folder: Path) -> None:
    """Take in the cases that are missing, and weights."""
    from golden_cases import CASES, MODELS, build

    (folder / "weights").mkdir(parents=True, exist_ok=True)
    for name, config in MODELS.items():
        path = folder / "weights" / f"{name}.safetensors"
        if not path.exists():
            weights.save(build(config), path, {"name": name, "purpose": "golden files: random, of no use otherwise"})
            click.echo(f"{path.name}: added")
    there = manifest(folder)
    for name, case in CASES.items():
        if f"{name}.mci" not in there:
            codec = load(folder / "weights" / f"{case.model}.safetensors", "cpu")
            add(f"{name}.mci", case.encode(codec), folder)
            click.echo(f"{name}.mci: added")


if __name__ == "__main__":
    main()
