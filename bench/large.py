"""A large picture through the command: peak memory as the operating system counts it, times, seams, one region.

    python -m mcodec.bench.large --width 12000 --height 9000 --folder large/

The picture is photographs side by side (`--image`, mirrored so that they join) or, without one, smooth noise. Each
command runs in a process of its own; peak memory is its maximum resident set (Linux: VmHWM). PPM (the default) and
TIFF are read and written in parts, of other formats (`--format png`) the picture is held. Seam energy is the squared
error in the two pixels on either side of the tiles' borders, beside that along the other lines of the coarsest stage's
grid, and beside that of the same pixels where the surroundings of a crossing of borders are coded as one tile.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

import mcodec
from mcodec import Codec
from mcodec.bench.memory import MIB
from mcodec.container import MAX_PIXELS, describe

REGION = 512
#: Of the crossings of tiles' borders on the diagonal, so many are also coded without the borders.
CROSSINGS = 4


def picture(width: int, height: int, image: Path | None) -> NDArray[np.uint8]:
    """uint8 `[height, width, 3]`."""
    if image is None:
        rng = np.random.default_rng(0)
        coarse = rng.integers(0, 256, (height // 64 + 2, width // 64 + 2, 3)).astype(np.uint8)
        return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    one = np.asarray(Image.open(image).convert("RGB"))[5:, 5:]  # no side that divides a tile's: joins are not borders
    rows, columns = -(-height // one.shape[0]), -(-width // one.shape[1])
    tiles = [[one[:: -1 if r % 2 else 1, :: -1 if c % 2 else 1] for c in range(columns)] for r in range(rows)]
    return np.concatenate([np.concatenate(row, 1) for row in tiles])[:height, :width]


def run(arguments: list[str]) -> dict[str, float]:
    """Wall time and peak resident set (MiB) of a command in a child process."""
    code = "import sys; from mcodec.cli.main import run; from mcodec.bench.memory import peak_bytes; "
    code += "status = run(sys.argv[1:]); print(peak_bytes()); sys.exit(status)"
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise click.ClickException(f"mcodec {' '.join(arguments)} failed")
    peak = int(done.stdout.split()[-1])
    return {"seconds": round(time.perf_counter() - began, 2), "peak_mib": round(peak / MIB)}


def seams(original: NDArray[np.uint8], decoded: NDArray[np.uint8], side: int) -> dict[str, float]:
    """Mean squared error beside the tiles' borders, beside all other lines of the 64-pixel grid, and their spread."""
    columns, rows = np.zeros(original.shape[1]), np.zeros(original.shape[0])
    for y, (a, b) in enumerate(zip(original, decoded, strict=True)):  # as a whole it does not fit as floats
        error = np.square(a.astype(np.float32) - b).mean(1)
        columns += error / len(rows)
        rows[y] = error.mean()
    lines = [(k, v[k - 2 : k + 2].mean()) for v in (columns, rows) for k in range(64, len(v) - 2, 64)]
    borders = [float(error) for k, error in lines if k % side == 0]
    others = [float(error) for k, error in lines if k % side]
    return {
        "mse_beside_borders": float(np.mean(borders)) if borders else 0.0,
        "mse_beside_other_lines": float(np.mean(others)),
        "spread_of_other_lines": float(np.std(others)),
        "mse": float(rows.mean()),
    }


def crossings(
    original: NDArray[np.uint8], decoded: NDArray[np.uint8], side: int, codec: Codec, quality: float
) -> dict[str, float]:
    """Mean squared error beside borders near some of their crossings: in the picture, and of the same pixels where
    the square around the crossing, as large as a tile, is coded alone and so without a border."""
    height, width = original.shape[:2]
    places = list(zip(range(side, height - side // 2, side), range(side, width - side // 2, side), strict=False))
    half, errors = side // 2, []
    for y, x in places[:CROSSINGS]:
        square = slice(y - half, y + half), slice(x - half, x + half)
        alone = codec.decode_array(codec.encode(original[square], quality))
        for picture in (decoded[square], alone):
            error = np.square(original[square].astype(np.float32) - picture).mean(2)
            errors.append(float((error[half - 2 : half + 2].mean() + error[:, half - 2 : half + 2].mean()) / 2))
    if not errors:
        return {}
    return {"mse_near_crossings": float(np.mean(errors[::2])), "mse_there_in_one_tile": float(np.mean(errors[1::2]))}


@click.command()
@click.option("--width", default=12000, show_default=True)
@click.option("--height", default=9000, show_default=True)
@click.option("--image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--format", "form", default="ppm", show_default=True, help="suffix of the pictures read and written")
@click.option("--quality", default="50", show_default=True)
@click.option("--model", default=None, help="released name or path of weights")
def main(
    width: int, height: int, image: Path | None, folder: Path, form: str, quality: str, model: str | None
) -> None:
    """Print one JSON object."""
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    folder.mkdir(parents=True, exist_ok=True)
    source, coded, copy, part = (folder / name for name in (f"in.{form}", "out.mci", f"copy.{form}", "part.png"))
    original = picture(width, height, image)
    Image.fromarray(original).save(source)
    weights = ["--model", model] if model else []
    results: dict[str, Any] = {"width": width, "height": height, "format": form, "quality": quality}
    results["encode"] = run(["encode", str(source), str(coded), "-q", quality, "--force", *weights])
    options = ["--force", "--max-pixels", str(MAX_PIXELS), *weights]
    results["decode"] = run(["decode", str(coded), str(copy), *options])
    middle = f"{width // 2 - REGION // 2},{height // 2 - REGION // 2},{REGION},{REGION}"
    results["region"] = run(["decode", str(coded), str(part), "--region", middle, *options])
    results["start"] = run(["--version"])  # the interpreter and torch alone
    fields = describe(coded.read_bytes())
    results |= {key: fields[key] for key in ("bytes", "bpp", "tiles", "tile_side")}
    with Image.open(copy) as decoded:
        pixels = np.asarray(decoded)
    results |= seams(original, pixels, fields["tile_side"])
    results |= crossings(original, pixels, fields["tile_side"], mcodec.load(model, "cpu"), float(quality))
    click.echo(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
