"""From measured rows to curves: what reports, tables and committed results are made of.

Means are over the pictures that every codec of the run coded at every quality, so that curves compare like with
like; other pictures are listed with the reason. Bits per pixel and PSNR are means of those of the pictures, MS-SSIM
is averaged before it is turned into decibels (CompressAI's conventions).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcodec.bench.anchors import KODAK, Published
from mcodec.bench.bd import Curve, NotComparable, delta
from mcodec.bench.metrics import METRICS
from mcodec.bench.rows import CODEC, KEY, ROWS, Row, Rows, memory_quality
from mcodec.errors import BenchError

#: Rate at which speeds are compared, bits per pixel: the quality nearest to it is taken.
SPEED_BPP = 0.75
#: Metrics whose deltas are kept, and what their fields begin with.
COMPARED = {"psnr": "psnr", "ms-ssim": "ms_ssim"}


@dataclass(frozen=True)
class Measured:
    """One codec of a run. Lists run over `qualities`, points over the pictures of the run."""

    codec: Row  # codec, version, settings, device, threads, processor
    qualities: list[float]
    points: dict[str, list[Row]]  # picture name -> point rows, only whole ones
    memory: Row | None

    @property
    def name(self) -> str:
        return str(self.codec["codec"])

    def mean(self, field: str, pictures: Sequence[str]) -> list[float]:
        """Mean of a field of the rows (bpp, encode_s, decode_s) or of a metric that they have, per quality."""
        means = []
        for index in range(len(self.qualities)):
            rows = [self.points[p][index] for p in pictures]
            values = [row["metrics"][field] if field in METRICS else row[field] for row in rows]
            means.append(sum(values) / len(values))
        return means

    def speed(self, pictures: Sequence[str]) -> dict[str, float]:
        """Throughput of the quality whose mean rate is nearest to SPEED_BPP, million pixels a second."""
        rates = self.mean("bpp", pictures)
        index = min(range(len(rates)), key=lambda i: abs(rates[i] - SPEED_BPP))
        rows = [self.points[p][index] for p in pictures]
        pixels = sum(row["bytes"] * 8 / row["bpp"] for row in rows) / 1e6
        return {
            "quality": self.qualities[index],
            "bpp": round(rates[index], 4),
            "encode_mpx_s": round(pixels / max(1e-9, sum(row["encode_s"] for row in rows)), 3),
            "decode_mpx_s": round(pixels / max(1e-9, sum(row["decode_s"] for row in rows)), 3),
        }

    def curve(self, metric: str, pictures: Sequence[str]) -> Curve | None:
        """Rate against a metric as it is shown, over the pictures that have it; None where none does."""
        pictures = self.having(metric, pictures)
        if not pictures:
            return None
        rates, means = self.mean("bpp", pictures), self.mean(metric, pictures)
        return Curve(rates, [METRICS[metric].shown(m) for m in means])

    def having(self, metric: str, pictures: Sequence[str]) -> list[str]:
        """Those that are not too small for a metric."""
        return [p for p in pictures if all(row["metrics"][metric] is not None for row in self.points[p])]


@dataclass(frozen=True)
class Results:
    """The last run of a measurement file."""

    run: Row
    codecs: list[Measured]
    pictures: list[str]  # that the means are over
    left_out: dict[str, str]  # picture, codec or figure -> why it is missing
    crops: list[Row]
    folder: Path | None = None

    @property
    def metrics(self) -> list[str]:
        return list(self.run["metrics"])


def _points(rows: Rows, codec: Row, picture: Row, metrics: Sequence[str]) -> list[Row] | None:
    """The point rows of a picture, one per quality of the plan; None where one is missing or lacks a metric."""
    found = []
    for quality in codec["qualities"]:
        identity = {k: codec.get(k, picture.get(k)) for k in KEY} | {"kind": "point", "quality": quality}
        row = rows.find(identity)
        if row is None or not set(metrics) <= set(row["metrics"]):
            return None
        found.append(row)
    return found


def _memory(rows: Rows, codec: Row, pictures: Sequence[Row]) -> Row | None:
    """That of the picture and the quality that the run measures, not what another run measured last."""
    largest, qualities = max(pictures, key=lambda p: p["width"] * p["height"]), codec["qualities"]
    identity = {k: codec.get(k, largest.get(k)) for k in KEY}
    return rows.find(identity | {"kind": "memory", "quality": memory_quality(qualities)})


def _same_codec(row: Row, codec: Row) -> bool:
    return all(row.get(k) == codec.get(k) for k in CODEC)


def load(folder: Path) -> Results:
    """The results of a folder that `rd` wrote. Raises BenchError where there is nothing to show."""
    path = folder / ROWS
    if not path.is_file():
        raise BenchError(f"no measurements in {folder}: there is no {ROWS}")
    rows = Rows(path)
    runs = list(rows.of("run"))
    if not runs:
        raise BenchError(f"{path} holds no run")
    run = runs[-1]
    failures = list(rows.of("failure"))
    left_out = {p["image"]: p["note"] for p in run["pictures"] if not p["averaged"]}
    codecs = []
    for codec in run["codecs"]:
        points = {p["image"]: _points(rows, codec, p, run["metrics"]) for p in run["pictures"]}
        whole = {name: found for name, found in points.items() if found}
        if not any(p["averaged"] and p["image"] in whole for p in run["pictures"]):
            reasons = [f["reason"] for f in failures if f["of"] == "point" and _same_codec(f, codec)]
            left_out[codec["codec"]] = reasons[-1] if reasons else "no picture measured at all qualities yet"
            continue
        memory = _memory(rows, codec, run["pictures"])
        codecs.append(Measured({k: codec.get(k) for k in CODEC}, codec["qualities"], whole, memory))
    if not codecs:
        raise BenchError("no codec has a curve: " + "; ".join(f"{k}: {v}" for k, v in left_out.items()))
    pictures = []
    for picture in run["pictures"]:
        name = picture["image"]
        missing = [m for m in codecs if name not in m.points]
        if picture["averaged"] and not missing:
            pictures.append(name)
        elif picture["averaged"]:
            reasons = [
                f"{f['codec']}: {f['reason']}"
                for f in failures
                if f["of"] == "point" and f["image"] == name and any(_same_codec(f, m.codec) for m in missing)
            ]
            left_out[name] = "; ".join(reasons) or "not measured yet by " + ", ".join(m.name for m in missing)
    if not pictures:
        raise BenchError("no picture is measured by all codecs: " + "; ".join(f"{k}: {v}" for k, v in left_out.items()))
    for failure in failures:
        done = rows.find(failure | {"kind": failure["of"], "of": None})
        if failure["of"] != "point" and done is None and any(_same_codec(failure, m.codec) for m in codecs):
            left_out[f"{failure['codec']}, {failure['of']} of {failure['image']}"] = failure["reason"]
    crops = [row for row in rows.of("crop") if any(_same_codec(row, m.codec) for m in codecs)]
    shown = [row for row in crops if row["image"] in run["crops"]]
    return Results(run, codecs, pictures, left_out, shown, folder)


def compressai(results: Results, measured: Measured) -> dict[str, Any]:
    """One codec in CompressAI's results format, with the qualities added; without metrics that a picture lacks."""
    codec = measured.codec
    columns = {"quality": list(measured.qualities), "bpp": measured.mean("bpp", results.pictures)}
    for metric in results.metrics:
        if measured.having(metric, results.pictures) == results.pictures:
            columns[METRICS[metric].key] = measured.mean(metric, results.pictures)
    columns["encoding_time"] = measured.mean("encode_s", results.pictures)
    columns["decoding_time"] = measured.mean("decode_s", results.pictures)
    described = f"{codec['version']}; {codec['settings']}; {codec['device']}, {codec['threads']} threads"
    return {"name": measured.name, "description": described, "results": columns}


def summary(results: Results, published: Sequence[Published] = ()) -> dict[str, Any]:
    """All that is worth keeping of a run: machine, curves, rows per picture, deltas. Plain JSON.

    Deltas against published curves only where the pictures are theirs, the 24 of Kodak.
    """
    curves = {}
    for measured in results.codecs:
        memory = measured.memory
        curves[measured.name] = compressai(results, measured) | {
            "version": measured.codec["version"],
            "speed": measured.speed(results.pictures),
            "memory_mib": None if memory is None else {k: memory[f"{k}_mib"] for k in ("encode", "decode")},
            "images": {name: _columns(rows) for name, rows in measured.points.items()},
        }
    run = {k: v for k, v in results.run.items() if k not in ("kind", "pictures", "codecs", "crops")}
    deltas: dict[str, Any] = {}
    for metric, field in COMPARED.items():
        if metric in results.metrics:
            own = {m.name: curve for m in results.codecs if (curve := m.curve(metric, results.pictures))}
            deltas[f"bd_{field}"] = {
                name: {other: _figures(anchor, own[other], field) for other in own if other != name}
                for name, anchor in own.items()
            }
            deltas[f"bd_{field}_published"] = {
                p.name: {"source": p.source}
                | {name: _figures(p.curves[metric], curve, field) for name, curve in own.items()}
                for p in (published if set(results.pictures) == KODAK else ())
                if metric in p.curves
            }
    return {
        "name": "mcodec",
        "description": "real files, header included; PSNR in RGB per image, then averaged",
        "run": run,
        "pictures": results.pictures,
        "left_out": results.left_out,
        "curves": curves,
        **deltas,
    }


def _columns(rows: list[Row]) -> dict[str, list[float]]:
    """Bytes and PSNR of one picture over the qualities."""
    return {"bytes": [r["bytes"] for r in rows], "psnr": [round(r["metrics"]["psnr"], 4) for r in rows]}


def _figures(anchor: Curve, test: Curve, field: str) -> dict[str, Any]:
    """BD, or why there is none."""
    try:
        d = delta(anchor, test)
    except NotComparable as error:
        return {"refused": str(error)}
    return {
        "rate_percent": round(d.rate, 2),
        f"{field}_db": None if math.isnan(d.quality) else round(d.quality, 3),
        f"{field}_interval": [round(v, 2) for v in d.quality_interval],
    }


def dumps(value: Any) -> str:
    """JSON with one line per list of numbers, so that a change of results is a readable change of the file."""
    text = json.dumps(value, indent=1, allow_nan=False)
    flat = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: "[" + re.sub(r"\s*\n\s*", " ", m[1]) + "]", text)
    return flat + "\n"
