"""The file of measurements: one JSON object per line, appended as it is measured, so that any moment is a valid end.

Kinds of rows:

    run      what was asked for and on what machine; the last one is what a report shows
    point    one picture coded once: bytes, metrics, seconds
    failure  what could not be measured (`of`: point, crop or memory), with the reason
    crop     a crop for the viewer, from a file of about a wanted size
    memory   peak memory of a codec in a process of its own
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mcodec.errors import BenchError
from mcodec.files import append_rows

Row = dict[str, Any]

#: Where rows and crops lie in the folder of a run.
ROWS, CROPS = "rows.jsonl", "crops"
#: What makes a codec the same one. Times depend on device, threads and processor.
CODEC = ("codec", "version", "settings", "device", "threads", "processor")
#: What makes a measurement the same one.
KEY = (*CODEC, "quality", "image", "image_sha256")


def memory_quality(qualities: Sequence[float]) -> float:
    """At which of a codec's qualities its memory is measured."""
    return qualities[len(qualities) // 2]


def key(row: Row) -> tuple[Any, ...]:
    """Identity of a measured row."""
    return (row["kind"], row.get("of"), row.get("target_bpp"), *(row.get(k) for k in KEY))


class Rows:
    """A measurement file, read on opening and appended to. BenchError where it is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: list[Row] = []
        self._measured: dict[tuple[Any, ...], Row] = {}
        if path.exists():
            text = path.read_bytes()
            whole = text.rfind(b"\n") + 1  # a line without its end was cut off in writing
            if whole < len(text):
                with open(path, "r+b") as file:
                    file.truncate(whole)
            for number, line in enumerate(text[:whole].splitlines(), 1):
                try:
                    self._keep(json.loads(line))
                except (ValueError, TypeError, KeyError) as error:
                    raise BenchError(f"{path} is no file of measurements: line {number} is no row") from error

    def _keep(self, row: Row) -> None:
        self._rows.append(row)
        if row["kind"] != "run":
            self._measured[key(row)] = row

    def add(self, row: Row) -> None:
        """Append a row; it is on its way to the disk when this returns."""
        append_rows(self.path, [row])
        self._keep(row)

    def find(self, row: Row) -> Row | None:
        """The latest row with this row's identity."""
        return self._measured.get(key(row))

    def of(self, kind: str) -> Iterator[Row]:
        """Latest rows of a kind; all of them for runs."""
        rows = self._rows if kind == "run" else list(self._measured.values())
        return (row for row in rows if row["kind"] == kind)
