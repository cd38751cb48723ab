"""Faults around a command: killed, disk full, closed pipes, unreadable files, two writers. No file is lost or half."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import BROKEN, child, finished, kill
from PIL import Image

from mcodec import files, weights
from mcodec.api import Codec
from mcodec.cli import main as entry

# Forking after torch has started its threads is what a test may do and a program should not.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "in.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)).save(path)
    return path


def test_killed(tmp_path: Path) -> None:
    found = kill(15, 0, tmp_path)
    assert len(found) == 5
    for name, counts in found.items():
        assert not any(counts[what] for what in BROKEN), (name, counts)
        assert counts["new"] >= counts["finished before"], (name, counts)  # what ends by itself has done its work
    assert sum(counts["killed"] for counts in found.values()) > 0


def test_full_disk(picture: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As on a full disk: the write fails on its way. The old file stays, nothing is left over."""
    target = picture.with_suffix(".mci")
    target.write_bytes(b"old")
    before = sorted(picture.parent.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        status = entry.run(["encode", str(picture), str(target), "--force", "--model", str(model)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    err = capsys.readouterr().err
    assert status == 1 and err.startswith("mcodec: error: cannot write") and err.count("\n") == 1
    assert target.read_bytes() == b"old" and sorted(picture.parent.iterdir()) == before


@pytest.mark.parametrize("command", ["encode", "decode", "info"])
@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file that fails to be read")
def test_unreadable_file(command: str, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that opens, and fails at the first read."""
    out = [] if command == "info" else [str(tmp_path / "out.png"), "--model", str(model)]
    status = entry.run([command, "/proc/self/mem", *out])
    captured = capsys.readouterr()
    assert (status, captured.out) == (1, "")
    assert captured.err.startswith("mcodec: error: ") and captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_closed_pipe(picture: Path, model: Path) -> None:
    """Nobody reads the output: the work is done, and no traceback is shown."""
    read, write = os.pipe()
    os.close(read)
    target = picture.with_suffix(".mci")
    command = [sys.executable, "-m", "mcodec.cli", "encode", str(picture), "--device", "cpu", "--model", str(model)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    network, fingerprint = weights.load(model)
    assert Codec(network, fingerprint).decode(target.read_bytes()).size == (80, 60)


def test_two_writers(picture: Path, model: Path) -> None:
    """Two processes write one target at once: it is one of the two files, whole."""
    target = picture.with_suffix(".mci")
    network, fingerprint = weights.load(model)
    expected = {Codec(network, fingerprint).encode(Image.open(picture), quality) for quality in (20, 80)}
    found = set()
    for _ in range(4):
        arguments = ["encode", str(picture), str(target), "--force", "--device", "cpu", "--model", str(model)]
        writers = [child([*arguments, "-q", quality]) for quality in ("20", "80")]
        assert [finished(pid) for pid in writers] == [0, 0]
        found.add(target.read_bytes())
    assert found <= expected
    assert {path.name for path in picture.parent.iterdir()} == {"in.png", "in.mci"}


@pytest.fixture(params=[True, False], ids=["unnamed", "named"])
def unnamed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both kinds of temporary file."""
    if not request.param:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    return bool(request.param) and hasattr(os, "O_TMPFILE")


def test_replaces(tmp_path: Path, unnamed: bool) -> None:
    target = tmp_path / "file"
    with files.atomic(target) as file:
        file.write(b"first")
        assert not target.exists() and (unnamed or len(list(tmp_path.iterdir())) == 1)
    files.write_bytes(target, b"second")
    assert target.read_bytes() == b"second" and list(tmp_path.iterdir()) == [target]
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.usefixtures("unnamed")
@pytest.mark.parametrize("links", [True, False])
def test_does_not_replace(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there are no links."""
    if not links:
        def link(source: object, target: object, **more: object) -> None:
            if more:  # of a file without a name
                return real(source, target, **more)
            raise PermissionError(1, "Operation not permitted")

        real: Any = os.link
        monkeypatch.setattr(os, "link", link)
    target = tmp_path / "file"
    files.write_bytes(target, b"first", replace=False)
    with pytest.raises(FileExistsError) as caught:
        files.write_bytes(target, b"second", replace=False)
    assert caught.value.filename == str(target)
    assert target.read_bytes() == b"first" and list(tmp_path.iterdir()) == [target]


@pytest.mark.usefixtures("unnamed")
def test_failures_leave_nothing(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(OSError):
        files.write_bytes(target, b"data")
    with pytest.raises(FileNotFoundError):
        files.write_bytes(tmp_path / "none" / "file", b"data")
    with pytest.raises(KeyboardInterrupt), files.atomic(tmp_path / "file") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [target]


def test_only_files_are_replaced(picture: Path, tmp_path: Path) -> None:
    """A link goes on naming its file; what is no file stays what it is."""
    kept, link, pipe = tmp_path / "kept.mci", tmp_path / "link.mci", tmp_path / "pipe"
    kept.write_bytes(b"old")
    link.symlink_to(kept.name)
    files.write_bytes(link, b"new")
    assert link.is_symlink() and kept.read_bytes() == b"new"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="not a regular file"):
        files.write_bytes(pipe, b"new")
    assert pipe.is_fifo()
