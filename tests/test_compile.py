"""Kernels compile for a GPU, with or without one here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_kernels_compile(tmp_path: Path) -> None:
    script = Path(__file__).with_name("compile_kernels.py")
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script)], env=environment, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "kernels compiled for 90" in done.stdout
