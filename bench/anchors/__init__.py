"""Published curves: figures of other people, never mixed with what is measured here.

A file of them is a JSON object, name -> `source`, `bpp`, `psnr` (dB, RGB), optionally `ms_ssim_db` and `note`.
`kodak.json` ships with the package: mean over the 24 Kodak pictures, each curve with the file it was taken from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from mcodec.bench.bd import Curve
from mcodec.errors import BenchError

KODAK = frozenset(f"kodim{i:02d}.png" for i in range(1, 25))
#: Shown of the shipped file unless others are asked for: classical codecs, and the ladder of learned ones.
SELECTION = (
    "jpeg",
    "webp",
    "vtm",
    "bpg444",
    "av1",
    "compressai-bmshj2018-hyperprior",
    "compressai-mbt2018-mean",
    "compressai-cheng2020-anchor",
    "elic",
    "hpcm-large",
)
#: Fields of the file by metric.
FIELDS = {"psnr": "psnr", "ms-ssim": "ms_ssim_db"}


@dataclass(frozen=True)
class Published:
    """One published curve."""

    name: str
    source: str
    note: str
    curves: dict[str, Curve]  # by metric


def load(path: str | Path) -> list[Published]:
    """The curves of a file, or of the shipped file "kodak". Raises BenchError naming what is wrong."""
    try:
        if str(path) == "kodak":
            text = resources.files(__name__).joinpath("kodak.json").read_text()
        else:
            text = Path(path).read_text()
        return [_published(name, entry) for name, entry in json.loads(text).items()]
    except OSError as error:
        raise BenchError(f"cannot read published curves from {path}: {error.strerror}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BenchError(f"{path} is no file of published curves: {error}") from error


def _published(name: str, entry: dict[str, object]) -> Published:
    curves = {}
    for metric, field in FIELDS.items():
        if field in entry:
            values, rates = entry[field], entry["bpp"]
            if not isinstance(values, list) or not isinstance(rates, list) or len(values) != len(rates):
                raise ValueError(f"{name}: bpp and {field} must be lists of one length")
            curves[metric] = Curve([float(r) for r in rates], [float(v) for v in values])
    if "psnr" not in curves:
        raise ValueError(f"{name} has no psnr")
    return Published(name, str(entry["source"]), str(entry.get("note", "")), curves)


def choose(curves: Sequence[Published], names: Sequence[str] | None) -> list[Published]:
    """Those of some names, in that order. None: of the shipped file SELECTION, of another all.

    Raises BenchError for a name that is not there.
    """
    known = {curve.name: curve for curve in curves}
    if names is None:
        return [known[name] for name in SELECTION] if set(SELECTION) <= set(known) else list(curves)
    for name in names:
        if name not in known:
            raise BenchError(f"no published curve {name!r}; there are {', '.join(known)}")
    return [known[name] for name in names]
