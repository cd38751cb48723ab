"""Golden files decode to what was recorded; the tool that guards them lets a rounding step pass, and nothing else."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import golden
import numpy as np
import pytest
from click.testing import CliRunner, Result
from golden import cell_means, codec_for, codes_hash, differences, record
from golden_cases import CASES, MODELS
from numpy.typing import NDArray
from settings import CODERS, coded_by
from tiny import TINY, lively

from mcodec.api import Codec
from mcodec.container import Kind, describe

Make = Callable[..., NDArray[np.uint8]]
GOLDEN = golden.manifest()
#: What Triton's interpreter decodes within seconds.
INTERPRETED = ("pixel-bilevel-alpha-metadata.mci", "static.mci", "sections-reversed.mci", "reach-best.mci")


@pytest.mark.parametrize("size", [(1, 1), (5, 70), (64, 65)], ids=str)
def test_round_trip(tiny: Codec, picture: Make, size: tuple[int, int]) -> None:
    data = tiny.encode(picture(*size), 60)
    recorded = json.loads(json.dumps(record(tiny, data)))
    assert differences(tiny, data, recorded) == []
    assert np.array(recorded["cells"]).shape == (min(8, size[0]), min(8, size[1]), 3)


def test_tolerance(tiny: Codec, picture: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fifth sample off by one is a rounding; a shift of a corner, or of all by one, is not."""
    data = tiny.encode(picture(64, 64), 60)
    recorded = record(tiny, data)
    raster, codes = tiny.decode_with_codes(data)
    exact = np.asarray(raster.samples).clip(2, 250)
    recorded["cells"] = cell_means(replace(raster, samples=exact)).tolist()

    def decoded(change: NDArray[np.int64]) -> list[str]:
        other = replace(raster, samples=(exact + change).astype(np.uint8))
        monkeypatch.setattr(tiny, "decode_with_codes", lambda _: (other, codes))
        return [what.split(" ")[0] for what in differences(tiny, data, recorded)]

    noise = np.random.default_rng(0).choice([-1, 0, 0, 0, 0, 0, 0, 0, 0, 1], exact.shape)
    corner = np.zeros_like(noise)
    corner[:8, :8] = 2
    assert decoded(noise) == []
    assert decoded(corner) == decoded(np.ones_like(noise)) == ["pixels"]


def test_codes_and_file_are_exact(tiny: Codec, picture: Make) -> None:
    data, other = (tiny.encode(picture(40, 40, seed), 50) for seed in (0, 1))
    assert {"file", "codes"} <= set(differences(tiny, other, record(tiny, data)))
    codes = tiny.codes(data)
    before = codes_hash(codes)
    codes[-1][0, 0, 0] += 1
    assert codes_hash(codes) != before


@functools.cache
def codec_of(fingerprint: str) -> Codec:
    return codec_for((golden.FOLDER / next(n for n, r in GOLDEN.items() if r["weights"] == fingerprint)).read_bytes())


@pytest.mark.parametrize(
    "coder, name", [(c, n) for c in CODERS for n in (INTERPRETED if c == "interpreter" else GOLDEN)]
)
def test_every_coder_reads_every_golden_file(coder: str, name: str) -> None:
    """With the weights that the file names, loaded from where they are committed."""
    with coded_by(coder, codec_of(GOLDEN[name]["weights"])) as codec:
        assert differences(codec, (golden.FOLDER / name).read_bytes(), GOLDEN[name]) == []


def test_golden_files_are_complete() -> None:
    """Every file has its record, every record its file, and all cases and weights are there."""
    files = {path.name for path in golden.FOLDER.glob("*.mci")}
    assert files == set(GOLDEN) and {f"{name}.mci" for name in CASES} <= files and set(INTERPRETED) <= files
    assert {path.stem for path in (golden.FOLDER / "weights").glob("*.safetensors")} >= set(MODELS)
    assert sum(path.stat().st_size for path in golden.FOLDER.rglob("*")) < 700_000
    held = [describe((golden.FOLDER / name).read_bytes()) for name in GOLDEN]
    assert {record["kind"] for record in GOLDEN.values()} == {kind.name for kind in Kind}
    assert max(fields["tiles"] for fields in held) > 10 and min(fields["bytes"] for fields in held) < 50
    assert {len(codec_of(record["weights"]).model.stages) for record in GOLDEN.values()} == {1, 2, 3, 5}


def test_golden_files_are_never_changed(tmp_path: Path) -> None:
    """Made where they are missing, refused where one is there, whether by file or by record."""
    folder = tmp_path / "golden"
    shutil.copytree(golden.FOLDER, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(golden.main, ["--folder", str(folder), *map(str, arguments)])

    assert run("make").output == ""
    other = tmp_path / "pixel.mci"
    other.write_bytes((folder / "static.mci").read_bytes())
    for damage in (lambda: None, (folder / "pixel.mci").unlink):
        damage()
        done = run("add", other)
        assert done.exit_code == 1 and "pixel.mci is there already" in done.output
    (folder / "pixel.mci").write_bytes(before[folder / "pixel.mci"])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert run("add", other.rename(tmp_path / "new.mci")).output == "new.mci: added\n"
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    records = golden.manifest(folder)
    assert records["new.mci"] == records["static.mci"] and {**records, "new.mci": None} == {**GOLDEN, "new.mci": None}
    assert {path for path in after if after[path] != before.get(path)} == {folder / "new.mci", folder / "manifest.json"}
    stranger = tmp_path / "stranger.mci"
    stranger.write_bytes(Codec(lively(TINY), b"tinytiny").encode(np.zeros((1, 1), np.uint8)))
    assert "there are no weights" in run("add", stranger).output
