"""One row per training run: what was changed, what it cost, and what real files of held-out pictures say."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcodec import api, rate
from mcodec.files import append_rows
from mcodec.training.data import load_pictures
from mcodec.training.export import export

QUALITIES = (5, 25, 50, 75, 95)


def validation_curve(
    codec: api.Codec, pictures: Sequence[NDArray[np.uint8]]
) -> dict[str, list[float]]:
    """Mean bpp of real files and mean RGB PSNR in dB at QUALITIES; pictures are `[H, W, 3]` uint8.

    Of weights trained for MS-SSIM, its mean too.
    """
    curve: dict[str, list[float]] = {"quality": list(QUALITIES), "bpp": [], "psnr-rgb": []}
    similar = codec.model.config.distortion == "ms-ssim"
    if similar:
        curve["ms-ssim-rgb"] = []
    for quality in QUALITIES:
        found: dict[str, list[float]] = {name: [] for name in curve if name != "quality"}
        for picture in pictures:
            data = codec.encode(picture, quality)
            decoded = codec.decode_array(data)
            found["bpp"].append(len(data) * 8 / picture[..., 0].size)
            found["psnr-rgb"].append(rate.psnr(picture, decoded, 255))
            if similar:
                found["ms-ssim-rgb"].append(rate.ms_ssim(picture, decoded, 255))
        for name, values in found.items():
            curve[name].append(float(np.mean(values)))
    return curve


def record(
    checkpoint: Path,
    results: Path,
    name: str,
    notes: dict[str, str],
    validation: Sequence[str | Path],
    limit: int | None = None,
    typical: Sequence[str | Path] = (),
) -> dict[str, Any]:
    """Measure a run's checkpoint and append its row to `results` (JSON lines); returns the row.

    notes: free text under keys of the caller's choice (what was changed, what it was expected to give). The
    checkpoint is exported first, as by `export` with the pictures `typical`, so that what is measured is what a release
    would be.
    """
    pictures = [p.permute(1, 2, 0).numpy() for p in load_pictures(validation, limit)]
    with tempfile.TemporaryDirectory() as folder:
        path = export(checkpoint, Path(folder), name, pictures=typical)
        card = json.loads(path.with_suffix(".json").read_text())
        curve = validation_curve(api.load(path, "cpu"), pictures)
    row = {
        "name": name,
        **notes,
        "date": datetime.now(UTC).date().isoformat(),
        **{key: card[key] for key in ("architecture", "parameters", "kmac_per_pixel", "steps")},
        **{key: card[key] for key in ("training_pixels", "training_hours", "training")},
        "pictures": len(pictures),
        "validation": curve,
    }
    append_rows(results, [row])
    return row
