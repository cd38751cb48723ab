"""Peak memory of one codec, measured in a process of its own.

The figure is the peak resident set while one picture is encoded, or decoded, by a fresh process: interpreter,
libraries and weights included, pictures in memory as arrays. `idle` is the resident set just before. On Linux the
kernel's high-water mark is reset between the two; elsewhere the peak since the process began is all there is.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from mcodec.errors import BenchError

MIB = 2**20


def _status(field: str) -> int | None:
    """A field of /proc/self/status in bytes, None where there is no such file.

    Not getrusage: its peak survives exec, so that a child would inherit that of the process that started it.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), None)


def _reset() -> None:
    with suppress(OSError):  # no Linux, or not allowed: the peak is that of the whole life of the process
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Most resident memory of this process so far (Linux: since `_reset`)."""
    peak = _status("VmHWM")
    if peak is not None:
        return peak
    import resource  # not on every system

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(spec: str, device: str, threads: int, quality: float, picture: Path) -> dict[str, float]:
    """MiB at the peak of encoding and of decoding a picture, and idle; on a GPU also the peak of its memory.

    Raises BenchError with the child's last line, or else its status, where it fails.
    """
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "coded"
        for phase in ("encode", "decode"):
            arguments = [spec, device, str(threads), str(quality), str(picture), str(file), phase]
            done = subprocess.run([sys.executable, "-m", __name__, *arguments], capture_output=True, text=True)
            if done.returncode:
                lines = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]  # -9: killed
                raise BenchError(f"{phase} in a process of its own: {lines[-1]}")
            child = json.loads(done.stdout)
            found |= {f"{phase}_{k}": v for k, v in child.items()}
    return found


@click.command()
@click.argument("spec")
@click.argument("device")
@click.argument("threads", type=int)
@click.argument("quality", type=float)
@click.argument("picture", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("phase")
def main(spec: str, device: str, threads: int, quality: float, picture: Path, file: Path, phase: str) -> None:
    """The child: encode PICTURE into FILE, or decode FILE; print JSON."""
    from mcodec.bench import codecs
    from mcodec.bench.pictures import rgb
    from mcodec.image import read_image

    codec = codecs.make(spec, device, threads)
    if codec.device != "cpu" or "torch" in sys.modules:
        import torch

        torch.set_num_threads(threads)
    pixels = rgb(read_image(picture))
    small = pixels[:64, :64]
    codec.decode(codec.encode(small, quality))  # libraries and weights are loaded lazily
    if phase == "encode":
        _reset()
        idle = _status("VmRSS") or peak_bytes()
        file.write_bytes(codec.encode(pixels, quality))
    else:
        data = file.read_bytes()
        _reset()
        idle = _status("VmRSS") or peak_bytes()
        codec.decode(data)
    result: dict[str, Any] = {"mib": round(peak_bytes() / MIB, 1), "idle_mib": round(idle / MIB, 1)}
    if codec.device == "cuda":
        result["gpu_mib"] = round(torch.cuda.max_memory_allocated() / MIB, 1)
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
