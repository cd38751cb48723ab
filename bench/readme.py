"""Markdown tables of results, and the README's section that shows the committed ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcodec.bench.metrics import METRICS
from mcodec.bench.results import SPEED_BPP
from mcodec.errors import BenchError

START, END = "<!-- kodak-table -->", "<!-- /kodak-table -->"
#: The codec whose curve is spelled out and that the others are compared with.
SUBJECT = "mcodec"


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def _curve(curve: dict[str, Any]) -> list[str]:
    """Rate and metrics per quality."""
    columns = curve["results"]
    metrics = [m for m in METRICS.values() if m.key in columns]
    rows = []
    for index, quality in enumerate(columns["quality"]):
        means = [columns[m.key][index] for m in metrics]
        cells = ["none" if v is None else f"{m.shown(v):.2f}" for m, v in zip(metrics, means, strict=True)]
        rows.append([f"{quality:g}", f"{columns['bpp'][index]:.3f}", *cells])
    return _grid(["quality", "bits per pixel", *(m.label for m in metrics)], rows)


def _between(found: dict[str, Any]) -> list[str]:
    """Cells of a BD-rate and its interval."""
    if "rate_percent" not in found:
        return ["none", found["refused"]] if found else ["", ""]
    low, high = found["psnr_interval"]
    return [f"{found['rate_percent']:+.1f} %", f"{low:.1f} to {high:.1f}"]


def _efforts(curves: dict[str, Any]) -> list[str]:
    """SUBJECT with more effort, where that was measured too."""
    return [name for name in curves if name.startswith(f"{SUBJECT}@")]


def _published(deltas: dict[str, Any], subjects: Sequence[str]) -> list[str]:
    """How the subjects compare with published curves."""
    rows = [
        [name, *(cell for subject in subjects for cell in _between(found.get(subject, {})))]
        for name, found in deltas.items()
        if SUBJECT in found
    ]
    head = ["published curve (sources: `mcodec bench anchors`)"]
    for subject in subjects:
        head += [f"BD-rate of {subject} against it", "between, dB PSNR"]
    return _grid(head, rows)


def _beside(curves: dict[str, Any], deltas: dict[str, Any]) -> list[str]:
    """Every codec: how SUBJECT compares with it, speed and memory."""
    rows = []
    for name, curve in curves.items():
        bd = _between(deltas.get(name, {}).get(SUBJECT, {}))
        speed, memory = curve["speed"], curve["memory_mib"]
        cells = ["", ""] if speed is None else [f"{speed[f'{what}_mpx_s']:.2f}" for what in ("encode", "decode")]
        cells.append("" if memory is None else f"{memory['encode']:.0f} / {memory['decode']:.0f}")
        described = curve["description"].split("; ")
        rows.append([name, f"{described[0]}; {described[1]}", *bd, *cells])
    head = ["codec", "version; settings", f"BD-rate of {SUBJECT} against it", "between, dB PSNR"]
    return _grid([*head, "encode, Mpx/s", "decode, Mpx/s", "peak memory, MiB"], rows)


def table(summary: dict[str, Any]) -> str:
    """Markdown of a results file (`mcodec.bench.results.summary`)."""
    run, curves = summary["run"], summary["curves"]
    lines = [f"{len(summary['pictures'])} pictures; {summary['description']}:", ""]
    if SUBJECT in curves:
        lines += [*_curve(curves[SUBJECT]), ""]
    lines += [*_beside(curves, summary["bd_psnr"]), ""]
    if any(curve["speed"] for curve in curves.values()):
        lines.append(
            f"Speed at the quality nearest to {SPEED_BPP} bits per pixel, {run['threads']} threads of "
            f"{run['processor']}; peak memory (encode / decode) is that of a process that codes one picture."
        )
    if SUBJECT in curves and summary.get("bd_psnr_published"):
        lines += ["", *_published(summary["bd_psnr_published"], [SUBJECT, *_efforts(curves)]), ""]
    versions = ", ".join(f"{name} {release}" for name, release in run["versions"].items())
    lines.append(f"Measured {run['date'][:10]} at commit {run['commit'] or 'unknown'} with {versions}.")
    return "\n".join(lines)


def section(summary: dict[str, Any]) -> str:
    """The README's section: the table, and how to make it again."""
    curves = summary["curves"]
    options = "--anchors kodak --summary bench/results/kodak.json"
    if efforts := _efforts(curves):
        options += f" --codecs {','.join(curves)}"
    for name in efforts:
        options += f" --qualities {name}={','.join(f'{quality:g}' for quality in curves[name]['results']['quality'])}"
    command = f"mcodec bench rd --images KODAK --out runs/kodak {options}"
    return f"Kodak, {table(summary)}\n\nMeasured by `{command}`; written here by `mcodec bench readme`."


def insert(readme: str, text: str) -> str:
    """The README with what is between the markers replaced; BenchError where they are missing."""
    if START not in readme or END not in readme:
        raise BenchError(f"no {START} and {END} in the README")
    before, rest = readme.split(START, 1)
    return f"{before}{START}\n{text}\n{END}{rest.split(END, 1)[1]}"


def read(path: Path) -> dict[str, Any]:
    """A results file; BenchError where it is none."""
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise BenchError(f"{path} is no results file: {error}") from error
    if not isinstance(found, dict) or not {"curves", "run", "bd_psnr", "pictures"} <= set(found):
        raise BenchError(f"{path} is no results file")
    return found
