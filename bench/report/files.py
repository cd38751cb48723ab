"""Everything that is made from a measurement folder, in one go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mcodec.bench import plots, readme
from mcodec.bench.anchors import Published
from mcodec.bench.report.page import render
from mcodec.bench.results import Results, compressai, dumps, summary
from mcodec.files import write_bytes


def write(results: Results, published: Sequence[Published], folder: Path) -> list[Path]:
    """Write report.html, results.json, table.md, rd-METRIC.png and compressai/CODEC.json; their paths."""
    whole = summary(results, published)
    texts = {
        "report.html": render(results, published),
        "results.json": dumps(whole),
        "table.md": readme.table(whole) + "\n",
    }
    for measured in results.codecs:
        # A codec's name may hold the path of its weights.
        name = "".join(c if c.isalnum() or c in "-_." else "_" for c in measured.name)
        texts[f"compressai/{name}.json"] = dumps(compressai(results, measured))
    paths = []
    for name, text in texts.items():
        paths.append(folder / name)
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        write_bytes(paths[-1], text.encode())
    return paths + plots.plot(results, published, folder)
