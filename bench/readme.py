"""Markdown tables of results, and the README's sections that show the committed ones."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcodec.bench.metrics import METRICS
from mcodec.bench.results import COMPARED, SPEED_BPP
from mcodec.errors import BenchError

#: A section: the results file, the metric that codecs are compared by, and what is written between.
_SECTION = re.compile(r"(<!-- results (?P<file>\S+) (?P<metric>\S+) -->\n).*?(<!-- /results -->)", re.DOTALL)


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


class _Deltas:
    """What a results file says of codecs compared by a metric."""

    def __init__(self, summary: dict[str, Any], metric: str) -> None:
        self._field, shown = COMPARED[metric], METRICS[metric]
        self.measured: dict[str, Any] = summary.get(f"bd_{self._field}", {})
        self.published: dict[str, Any] = summary.get(f"bd_{self._field}_published", {})
        self._interval = f"between, {shown.unit} {shown.title}"

    def head(self, subject: str) -> list[str]:
        """Titles of the cells of a BD-rate and its interval."""
        return [f"BD-rate of {subject} against it", self._interval]

    def cells(self, found: dict[str, Any]) -> list[str]:
        """The two cells."""
        if "rate_percent" not in found:
            return ["none", found["refused"]] if found else ["", ""]
        low, high = found[f"{self._field}_interval"]
        return [f"{found['rate_percent']:+.1f} %", f"{low:.1f} to {high:.1f}"]


def _efforts(curves: dict[str, Any]) -> list[str]:
    """The subject with more effort, where that was measured too."""
    return [name for name in list(curves)[1:] if "@" in name]


def _published(deltas: _Deltas, subjects: Sequence[str]) -> list[str]:
    """How the subjects compare with published curves."""
    rows = [
        [name, *(cell for subject in subjects for cell in deltas.cells(found.get(subject, {})))]
        for name, found in deltas.published.items()
        if subjects[0] in found
    ]
    head = ["published curve (sources: `mcodec bench anchors`)"]
    return _grid(head + [title for subject in subjects for title in deltas.head(subject)], rows)


def _beside(curves: dict[str, Any], subject: str, deltas: _Deltas) -> list[str]:
    """Every codec: how the subject compares with it, speed and memory."""
    rows = []
    for name, curve in curves.items():
        bd = deltas.cells(deltas.measured.get(name, {}).get(subject, {}))
        speed, memory = curve["speed"], curve["memory_mib"]
        cells = ["", ""] if speed is None else [f"{speed[f'{what}_mpx_s']:.2f}" for what in ("encode", "decode")]
        cells.append("" if memory is None else f"{memory['encode']:.0f} / {memory['decode']:.0f}")
        described = curve["description"].split("; ")
        rows.append([name, f"{described[0]}; {described[1]}", *bd, *cells])
    head = ["codec", "version; settings", *deltas.head(subject)]
    return _grid([*head, "encode, Mpx/s", "decode, Mpx/s", "peak memory, MiB"], rows)


def table(summary: dict[str, Any], metric: str = "psnr") -> str:
    """Markdown of a results file (`mcodec.bench.results.summary`).

    The curve of its first codec is spelled out, and that codec is compared with the others, by `metric`.
    """
    run, curves, deltas = summary["run"], summary["curves"], _Deltas(summary, metric)
    subject = next(iter(curves))
    lines = [f"{len(summary['pictures'])} pictures; {summary['description']}:", ""]
    lines += [*_curve(curves[subject]), "", *_beside(curves, subject, deltas), ""]
    if any(curve["speed"] for curve in curves.values()):
        gpu = "" if run["device"] == "cpu" else f", networks on {run['device']}"
        lines.append(
            f"Speed at the quality nearest to {SPEED_BPP} bits per pixel, {run['threads']} threads of "
            f"{run['processor']}{gpu}; peak memory (encode / decode) is that of a process that codes one picture."
        )
    if deltas.published:
        lines += ["", *_published(deltas, [subject, *_efforts(curves)]), ""]
    versions = ", ".join(f"{name} {release}" for name, release in run["versions"].items())
    lines.append(f"Measured {run['date'][:10]} at commit {run['commit'] or 'unknown'} with {versions}.")
    return "\n".join(lines)


def _section(path: Path, metric: str) -> str:
    """A section of the README: the table, and how to make it again."""
    summary = read(path)
    curves = summary["curves"]
    options = f"--anchors kodak --summary bench/results/{path.name} --codecs {','.join(curves)}"
    for name in _efforts(curves):
        options += f" --qualities {name}={','.join(f'{quality:g}' for quality in curves[name]['results']['quality'])}"
    command = f"mcodec bench rd --images KODAK --out runs/{path.stem} {options}"
    return f"Kodak, {table(summary, metric)}\n\nMeasured by `{command}`; written here by `mcodec bench readme`."


def fill(readme: str, folder: Path) -> str:
    """The README with what is between `<!-- results FILE METRIC -->` and `<!-- /results -->` written from those files.

    Raises BenchError where it has none, or one of a file or metric that is not there.
    """

    def write(found: re.Match[str]) -> str:
        if found["metric"] not in COMPARED:
            raise BenchError(f"codecs are compared by {' or '.join(COMPARED)}, not by {found['metric']!r}")
        return f"{found[1]}{_section(folder / found['file'], found['metric'])}\n{found[4]}"

    text, count = _SECTION.subn(write, readme)
    if not count:
        raise BenchError("no <!-- results FILE METRIC --> and <!-- /results --> in the README")
    return text


def read(path: Path) -> dict[str, Any]:
    """A results file; BenchError where it is none."""
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise BenchError(f"cannot read results from {path}: {error.strerror}") from error
    except ValueError as error:
        raise BenchError(f"{path} is no results file: {error}") from error
    if not isinstance(found, dict) or not {"curves", "run", "bd_psnr", "pictures"} <= set(found):
        raise BenchError(f"{path} is no results file")
    return found
