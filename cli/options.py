"""What several commands share: options, where output goes, loading a codec."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import click

from mcodec.container import MAX_DECODED_PIXELS
from mcodec.errors import CodecError, is_lack_of_memory

if TYPE_CHECKING:
    from mcodec.api import Codec
    from mcodec.container import Container

#: Standard input or output.
STREAM = Path("-")


class Folder(type(Path())):  # type: ignore[misc]
    """A path that was written with a separator at its end: a folder, there or not."""


class _Place(click.Path):
    """Existence is checked on reading, with the file named in one line."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        if value == "":  # to pathlib the current folder; to who wrote it, a variable that was not set
            self.fail("a name is empty", parameter, context)
        path = super().convert(value, parameter, context)
        return Folder(path) if str(value).endswith((os.sep, os.altsep or os.sep)) else path  # Windows has both


FILE = _Place(path_type=Path)


class Number(click.FloatRange):
    """Click's range lets "nan" through, which is neither below nor above, and "inf" where there is no upper end."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        number = super().convert(value, parameter, context)
        if not math.isfinite(number):
            self.fail(f"{value} is no number.", parameter, context)
        return number


model_option = click.option(
    "--model", metavar="NAME|PATH|SHA", help="Weights to use, also by the first 8 digits that `mcodec models` shows."
)
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where the networks run; auto takes a CUDA GPU if there is one.",
)
force_option = click.option("--force", is_flag=True, help="Overwrite the output file if it exists.")
max_pixels_option = click.option(
    "--max-pixels",
    type=click.IntRange(1),
    default=MAX_DECODED_PIXELS,
    show_default=True,
    metavar="N",
    help="Refuse files that claim more pixels than this: a tiny file may claim a huge picture.",
)


def read(source: Path) -> bytes:
    """The content of a file or of standard input."""
    return sys.stdin.buffer.read() if source == STREAM else source.read_bytes()


def check_apart(source: Path, target: Path) -> None:
    """CodecError where both names are of one file."""
    if os.path.exists(target) and os.path.exists(source) and os.path.samefile(target, source):
        raise CodecError(f"{target} is both input and output")


def output_path(source: Path, target: Path | None, suffix: str, force: bool) -> Path:
    """Where to write: beside the source by default, into `target` if it is a folder. Checked first."""
    folder = target if isinstance(target, Folder) else None
    if target is None:
        target = source.with_suffix(suffix)
    elif folder or target.is_dir():
        target = target / source.with_suffix(suffix).name
    check_apart(source, target)
    if target.exists() and not force:
        raise exists(target)
    if folder and source.exists():
        folder.mkdir(parents=True, exist_ok=True)
    elif not folder and not target.parent.is_dir():
        raise CodecError(f"no such folder: {target.parent}")
    return target


def exists(target: Path) -> CodecError:
    """What is said rather than to overwrite a file."""
    return CodecError(f"{target} exists; use --force to overwrite it")


def reason(error: Exception) -> str | None:
    """Why a command, or its work on one file, failed; None for an error that is the program's own."""
    if isinstance(error, CodecError):
        return str(error)
    if isinstance(error, OSError):
        text = error.strerror or str(error)
        return f"{error.filename}: {text}" if error.filename else text
    if is_lack_of_memory(error):
        return "not enough memory for this picture"
    return None


def check_device(device: str) -> None:
    """A device, or a backend of the environment, that is not there is the user's error, not an internal one."""
    import torch

    from mcodec import entropy
    from mcodec.kernels.backend import use_triton

    found = torch.cuda.is_available()
    if device == "cuda" and not found:
        raise CodecError("no CUDA device is available; use --device cpu")
    try:
        entropy.backend()
        use_triton(torch.device("cuda" if found and device != "cpu" else "cpu"))
    except (ValueError, ImportError) as error:
        raise CodecError(str(error)) from error


class Codecs:
    """Codecs for .mci files, each loaded once: of the weights that `model` names, else of those that the file does."""

    def __init__(self, model: str | None, device: str, jobs: int = 1) -> None:
        self._model, self._device, self._jobs = model, device, jobs
        self._loaded: dict[str | None, Codec] = {}
        self._lock = Lock()

    def of(self, file: Container) -> Codec:
        """Safe to call from several threads."""
        from mcodec import weights

        with self._lock:
            name = self._model or weights.named_by(file)
            if name not in self._loaded:
                self._loaded[name] = load_codec(name, self._device, self._jobs)
            return self._loaded[name]


def load_codec(model: str | None, device: str, jobs: int = 1) -> Codec:
    """The codec with the named weights (default: the released ones), for so many files at a time."""
    from mcodec.api import load

    check_device(device)
    codec = load(model, device=device)
    if jobs > 1:  # files at a time, not tiles of each as well: they would take its memory and threads
        codec.tile_workers = 1
    return codec
