"""A folder of mixed files with broken ones among them, through the command; images per second and what came of them.

    python -m mcodec.bench.folder --files 1000 --broken 10 --jobs 4 --folder mixed/
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
from PIL import Image

SUFFIXES = (".png", ".jpg", ".webp", ".tif", ".bmp", ".gif")


def fill(folder: Path, files: int, broken: int, size: int) -> None:
    """Small smooth pictures of several formats; every so often one that is cut off."""
    rng = np.random.default_rng(0)
    every = files // broken if broken else files + 1
    for index in range(files):
        coarse = rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)
        path = folder / f"{index // 100:03}" / f"{index:05}{SUFFIXES[index % len(SUFFIXES)]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = (int(side) for side in rng.integers(size // 2, size, 2))
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
        if index % every == every - 1 and index // every < broken:
            path.write_bytes(path.read_bytes()[:20])


@click.command()
@click.option("--files", default=1000, show_default=True)
@click.option("--broken", default=10, show_default=True)
@click.option("--size", default=256, show_default=True, help="longest side, pixels")
@click.option("--jobs", default=4, show_default=True)
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), required=True)
def main(files: int, broken: int, size: int, jobs: int, folder: Path) -> None:
    """Print one JSON object per run: the first, and a second that must find nothing to do."""
    source, out = folder / "in", folder / "out"
    if not source.exists():
        fill(source, files, broken, size)
    command = [sys.executable, "-m", "mcodec.cli", "encode", str(source), str(out), "--recursive", "--jobs", str(jobs)]
    for _ in range(2):
        began = time.perf_counter()
        done = subprocess.run([*command, "--json"], capture_output=True, text=True)
        seconds = time.perf_counter() - began
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        counts = {status: sum(row["status"] == status for row in rows) for status in ("done", "skipped", "failed")}
        written = [path for path in out.rglob("*") if path.is_file()]
        click.echo(
            json.dumps(
                {
                    **counts,
                    "status": done.returncode,
                    "outputs": len(written),
                    "partial": sum(path.suffix != ".mci" for path in written),
                    "seconds": round(seconds, 1),
                    "per_second": round(counts["done"] / seconds, 2),
                }
            )
        )


if __name__ == "__main__":
    main()
