"""The kernels' benchmark: nothing is timed on red, every case runs, rows are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from mcodec.bench import kernels, machine


def test_kernels_are_not_timed_on_red(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "kernels.jsonl"
    arguments = ["--device", "cpu", "--operation", "dequantize", "--shape", "kodak", "--repeat", "3", "--out", str(out)]
    monkeypatch.setattr(kernels, "tests_pass", lambda path: False)
    monkeypatch.setattr(machine, "commit", lambda: "0123456789")
    monkeypatch.setattr(kernels, "limits", lambda device, repeat: (1e6, 1e9))
    result = CliRunner().invoke(kernels.main, arguments)
    assert result.exit_code == 1 and "tests/test_dequantize.py fails" in result.output and not out.exists()
    monkeypatch.setattr(kernels, "tests_pass", lambda path: True)
    for count in (1, 2):
        assert CliRunner().invoke(kernels.main, arguments).exit_code == 0
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert len(rows) == count and 0 < rows[-1]["p20"] <= rows[-1]["p50"] <= rows[-1]["p80"]
    assert rows[0]["commit"] == "0123456789"
    assert rows[0]["implementation"] == "reference" and rows[0]["bytes"] == 10 * 64 * 96 * 12
    printed = CliRunner().invoke(kernels.main, ["--table", "--out", str(out)]).output
    assert printed.count("| dequantize | kodak | reference |") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device to time")
def test_nothing_to_time_without_a_gpu() -> None:
    result = CliRunner().invoke(kernels.main, [])
    assert result.exit_code == 0 and result.output.startswith("no CUDA device: there is nothing to time")


@pytest.mark.parametrize("operation", list(kernels.OPERATIONS))
def test_every_operation_runs(operation: str) -> None:
    """Each case on a grid of 2 x 3 positions, by its reference."""
    case = kernels.OPERATIONS[operation][0](2, 2, 3, torch.device("cpu"))
    assert case.run() is not None and case.bytes > 0
