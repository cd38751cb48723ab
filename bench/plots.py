"""Rate-distortion plots as PNG files, by matplotlib (extra `bench`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mcodec.bench.anchors import Published
from mcodec.bench.metrics import METRICS
from mcodec.bench.results import Results

#: Colours of measured codecs, in order (Okabe and Ito, distinguishable without red or green); greys for published.
COLOURS = ("#d55e00", "#1f7fc4", "#009e73", "#cc79a7", "#d99a00", "#56b4e9", "#8a63d2", "#8c6d31", "#b5179e", "#6b8e23")
GREYS = ("#555555", "#777777", "#999999", "#bbbbbb")


def plot(results: Results, published: Sequence[Published], folder: Path) -> list[Path]:
    """One picture per metric that has curves; published ones dashed, hollow and named so. The paths."""
    try:
        from matplotlib.figure import Figure
    except ImportError:  # it comes with the extra; a report is complete without them
        return []

    paths = []
    for metric in results.metrics:
        curves = {m.name: m.curve(metric, results.pictures) for m in results.codecs}
        if not any(curves.values()):  # no picture is large enough for this metric
            continue
        figure = Figure(figsize=(9, 6), layout="constrained")
        axes = figure.subplots()
        for index, (name, curve) in enumerate(curves.items()):
            if curve is not None:
                axes.plot(curve.bpp, curve.quality, "o-", ms=4, color=COLOURS[index % len(COLOURS)], label=name)
        left, right = axes.get_xlim()
        bottom, top = axes.get_ylim()
        for index, other in enumerate(p for p in published if metric in p.curves):
            curve = other.curves[metric]
            (line,) = axes.plot(curve.bpp, curve.quality, "--", ms=5, mfc="none", label=f"{other.name} (published)")
            line.set(color=GREYS[index % len(GREYS)], marker="sD^v"[index // len(GREYS) % 4])
        axes.set_xlim(max(0, left), right)
        axes.set_ylim(bottom, top)
        axes.set_xlabel("bits per pixel (bytes of files)")
        axes.set_ylabel(METRICS[metric].label)
        axes.set_title(f"mean of {len(results.codecs[0].having(metric, results.pictures))} pictures")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        paths.append(folder / f"rd-{metric}.png")
        figure.savefig(paths[-1], dpi=120)
    return paths
