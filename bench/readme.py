"""Write the README's table from committed results.

    python -m mcodec.bench.readme README.md bench/results/kodak.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

START, END = "<!-- kodak-table -->", "<!-- /kodak-table -->"


def table(result: dict[str, Any]) -> str:
    """Markdown of one results file of mcodec.bench.rd."""
    curve = result["curves"]["mcodec"]["results"]
    bd = result["bd_rate_vs_jpeg"]
    low, high = bd["psnr_window"]
    lines = [
        f"Kodak ({result['images']} images), {result['description']}:",
        "",
        "| quality | bits per pixel | PSNR, dB |",
        "|---|---|---|",
    ]
    for quality, bpp, psnr in zip(curve["quality"], curve["bpp"], curve["psnr-rgb"], strict=True):
        lines.append(f"| {quality} | {bpp:.3f} | {psnr:.2f} |")
    lines += [
        "",
        f"BD-rate against Pillow {result['pillow']}'s JPEG (optimized, 4:2:0): **{bd['percent']:+.1f} %** "
        f"between {low:.1f} and {high:.1f} dB.",
        "",
        "Measured by `python -m mcodec.bench.rd --images KODAK --out bench/results/kodak.json`; this table is written "
        "by `python -m mcodec.bench.readme README.md bench/results/kodak.json`.",
    ]
    return "\n".join(lines)


def insert(readme: str, text: str) -> str:
    """The README with the section between the markers replaced; ValueError where they are missing."""
    if START not in readme or END not in readme:
        raise ValueError("the README has no table markers")
    before, rest = readme.split(START, 1)
    return f"{before}{START}\n{text}\n{END}{rest.split(END, 1)[1]}"


@click.command()
@click.argument("readme", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("results", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(readme: Path, results: Path) -> None:
    """Replace the README's table by that of a results file."""
    readme.write_text(insert(readme.read_text(), table(json.loads(results.read_text()))))


if __name__ == "__main__":
    main()
