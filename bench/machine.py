"""Where a measurement was made: what every result states."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def commit() -> str | None:
    """The commit of the checkout that this package runs from ("-dirty" with changes), None outside of one."""
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # not some other repository around site-packages
        return _git("describe", "--always", "--dirty", "--abbrev=10", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def code() -> str | None:
    """What codes pictures: the last commit of `codec` and `kernels`, with a hash of what was changed there since."""
    if commit() is None:
        return None
    places = "--", "../codec", "../kernels"
    changed = _git("diff", "HEAD", *places)
    mark = f"-{hashlib.sha256(changed.encode()).hexdigest()[:8]}" if changed else ""
    return _git("log", "-1", "--format=%h", "--abbrev=10", *places) + mark


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def hardware(device: str) -> str:
    """What a codec on a device works with: the processor, and the GPU."""
    if device != "cuda":
        return _processor()
    import torch

    return f"{_processor()}, {torch.cuda.get_device_name()}"


def describe(device: str, threads: int) -> dict[str, Any]:
    """Date, commit, processor, devices, threads and versions."""
    import torch

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": threads,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("mcodec", "torch", "numpy", "pillow")},
    }
