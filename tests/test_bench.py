"""Benchmarks: metrics against their definitions, and README tables that are current."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mcodec.bench import kernels, readme
from mcodec.bench.rd import bd_rate, jpeg, measure, psnr

ROOT = Path(__file__).parent.parent


def curve(bpp: list[float], db: list[float]) -> dict[str, object]:
    return {"results": {"bpp": bpp, "psnr-rgb": db}}


def test_psnr() -> None:
    a = np.zeros((4, 4, 3), np.uint8)
    assert psnr(a, a + 1) == pytest.approx(48.1308, abs=1e-4)
    assert psnr(a, a) == 99.0


def test_bd_rate_of_a_shifted_curve() -> None:
    """A curve with 20 % less rate at every quality has a BD-rate of -20 %."""
    pytest.importorskip("bjontegaard")
    bpp, db = [0.1, 0.2, 0.4, 0.8, 1.6], [26.0, 29.0, 32.0, 35.0, 38.0]
    result = bd_rate(curve(bpp, db), curve([0.8 * b for b in bpp], db))
    assert result["percent"] == pytest.approx(-20, abs=0.01) and result["psnr_window"] == [26.0, 38.0]
    with pytest.raises(ValueError, match=r"overlap from 40\.00 to 38\.00 dB only"):
        bd_rate(curve(bpp, db), curve(bpp, [d + 14 for d in db]))


def test_rows_are_bytes_of_files() -> None:
    pictures = {str(i): np.full((16, 24, 3), 40 * i, np.uint8) for i in range(2)}
    steps: list[int] = []
    result = measure(jpeg, pictures, (10, 90), lambda: steps.append(1))
    assert len(steps) == len(result["images"]) == 4
    assert result["images"][0]["bytes"] == len(jpeg(pictures["0"], 10)[0])
    assert result["results"]["bpp"][0] == pytest.approx(np.mean([r["bpp"] for r in result["images"][:2]]))


def test_kernels_are_not_timed_on_red(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "kernels.jsonl"
    arguments = ["--device", "cpu", "--operation", "dequantize", "--shape", "kodak", "--repeat", "3", "--out", str(out)]
    monkeypatch.setattr(kernels, "tests_pass", lambda path: False)
    monkeypatch.setattr(kernels, "limits", lambda device, repeat: (1e6, 1e9))
    result = CliRunner().invoke(kernels.main, arguments)
    assert result.exit_code == 1 and "tests/test_dequantize.py fails" in result.output and not out.exists()
    monkeypatch.setattr(kernels, "tests_pass", lambda path: True)
    for count in (1, 2):
        assert CliRunner().invoke(kernels.main, arguments).exit_code == 0
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert len(rows) == count and 0 < rows[-1]["p20"] <= rows[-1]["p50"] <= rows[-1]["p80"]
    assert rows[0]["implementation"] == "reference" and rows[0]["bytes"] == 10 * 64 * 96 * 12
    printed = CliRunner().invoke(kernels.main, ["--table", "--out", str(out)]).output
    assert printed.count("| dequantize | kodak | reference |") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device to time")
def test_nothing_to_time_without_a_gpu() -> None:
    result = CliRunner().invoke(kernels.main, [])
    assert result.exit_code == 0 and result.output.startswith("no CUDA device: there is nothing to time")


@pytest.mark.parametrize("operation", list(kernels.OPERATIONS))
def test_every_operation_runs(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each case on a grid of 2 x 3 positions, by its reference."""
    case = kernels.OPERATIONS[operation][0](2, 2, 3, torch.device("cpu"))
    assert case.run() is not None and case.bytes > 0


def test_readme_table_is_current() -> None:
    """The README shows the committed results, and those are of the released weights."""
    from mcodec import weights

    results = json.loads((ROOT / "bench/results/kodak.json").read_text())
    text = (ROOT / "README.md").read_text()
    assert readme.insert(text, readme.table(results)) == text
    assert results["weights"] == weights.read_card(weights.find())["sha256"]
