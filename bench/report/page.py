"""The HTML page: the template beside this file with the results put in as JSON."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from typing import Any

from mcodec.bench.anchors import KODAK, Published
from mcodec.bench.bd import Curve, NotComparable, delta
from mcodec.bench.metrics import METRICS
from mcodec.bench.plots import COLOURS
from mcodec.bench.results import SPEED_BPP, Measured, Results
from mcodec.bench.rows import CROPS

_PLACE = "/*RESULTS*/"
_RUN = ("date", "commit", "processor", "cores", "device", "threads", "versions", "skipped")


def render(results: Results, published: Sequence[Published]) -> str:
    """One self-contained page."""
    template = resources.files(__name__.rpartition(".")[0]).joinpath("template.html").read_text(encoding="utf-8")
    # "<" would let a file name end the script element.
    data = json.dumps(_data(results, published), allow_nan=False).replace("<", "\\u003c")
    return template.replace(_PLACE, data)


def _data(results: Results, published: Sequence[Published]) -> dict[str, Any]:
    run = results.run
    return {
        "run": {k: run[k] for k in _RUN},
        "pictures": results.pictures,
        "marked": {p["image"]: p["note"] for p in run["pictures"] if p["note"]} | results.left_out,
        "comparable": set(results.pictures) == KODAK,
        "metrics": [{"name": m, "label": METRICS[m].label} for m in results.metrics],
        "speedBpp": SPEED_BPP,
        "codecs": [_codec(results, m, COLOURS[i % len(COLOURS)]) for i, m in enumerate(results.codecs)],
        "published": [
            {"name": p.name, "source": p.source, "note": p.note, "curves": {k: asdict(c) for k, c in p.curves.items()}}
            for p in published
        ],
        "deltas": {m: _deltas(results, published, m) for m in results.metrics if METRICS[m].higher_is_better},
        "crops": [_crop(results, row) for row in results.crops],
        "originals": {
            p["image"]: _image(results, f"{p['image_sha256'][:16]}.webp")
            for p in run["pictures"]
            if any(row["image"] == p["image"] for row in results.crops)
        },
    }


def _rounded(curve: Curve | None) -> dict[str, list[float]] | None:
    if curve is None:
        return None
    return {"bpp": [round(r, 5) for r in curve.bpp], "quality": [round(q, 4) for q in curve.quality]}


def _codec(results: Results, measured: Measured, colour: str) -> dict[str, Any]:
    memory = measured.memory
    return {
        **measured.codec,
        "colour": colour,
        "qualities": measured.qualities,
        "curves": {m: _rounded(measured.curve(m, results.pictures)) for m in results.metrics},
        "images": {name: [_point(row) for row in rows] for name, rows in measured.points.items()},
        "speed": measured.speed(results.pictures),
        "memory": None if memory is None else {k: memory[f"{k}_mib"] for k in ("encode", "decode")},
    }


def _point(row: dict[str, Any]) -> dict[str, Any]:
    shown = {k: v if v is None else round(METRICS[k].shown(v), 3) for k, v in row["metrics"].items()}
    return {"bytes": row["bytes"], "bpp": round(row["bpp"], 5), **shown}


def _deltas(results: Results, published: Sequence[Published], metric: str) -> dict[str, dict[str, Any]]:
    """anchor -> test -> figures or the reason why there are none; published names end in " (published)".

    Published curves are compared with measured ones only where the pictures are theirs, the 24 of Kodak.
    """
    own = {m.name: m.curve(metric, results.pictures) for m in results.codecs}
    others = {f"{p.name} (published)": p.curves.get(metric) for p in published}
    groups = [own | others] if set(results.pictures) == KODAK else [own, others]
    found: dict[str, dict[str, Any]] = {}
    for group in groups:
        known = {name: curve for name, curve in group.items() if curve is not None}
        for anchor, curve in known.items():
            found[anchor] = {test: _delta(curve, other) for test, other in known.items() if test != anchor}
    return found


def _delta(anchor: Curve, test: Curve) -> dict[str, Any]:
    try:
        found = delta(anchor, test)
    except NotComparable as error:
        return {"refused": str(error)}
    return {
        "rate": round(found.rate, 2),
        "quality": None if math.isnan(found.quality) else round(found.quality, 2),
        "over": [round(v, 2) for v in found.quality_interval],
        "rates": [round(v, 2) for v in found.rate_interval],
    }


def _crop(results: Results, row: dict[str, Any]) -> dict[str, Any]:
    image = next(p for p in results.run["pictures"] if p["image"] == row["image"])
    return {
        "image": row["image"],
        "codec": row["codec"],
        "target": row["target_bpp"],
        "bytes": row["bytes"],
        "bpp": round(row["bytes"] * 8 / (image["width"] * image["height"]), 4),
        "quality": row["at_quality"],
        "src": _image(results, row["file"]),
    }


def _image(results: Results, name: str) -> str:
    assert results.folder is not None
    data = (results.folder / CROPS / name).read_bytes()
    return "data:image/webp;base64," + base64.b64encode(data).decode()
