"""`mcodec verify`: one line per file, and an exit status that says whether all are whole."""

from __future__ import annotations

import json
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mcodec import container, weights
from mcodec.api import Codec
from mcodec.cli import main as entry


@pytest.fixture
def coded(tmp_path: Path, model: Path) -> Path:
    path = tmp_path / "a.mci"
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    path.write_bytes(Codec(*weights.load(model)).encode(picture))
    return path


def verify(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, list[str]]:
    status = entry.run(["verify", "--device", "cpu", *map(str, arguments)])
    captured = capsys.readouterr()
    assert captured.err == ""
    return status, captured.out.splitlines()


def damaged(path: Path, name: str, at: int, reseal: bool) -> Path:
    """A copy with one bit flipped, its checksum made right again or not."""
    body = bytearray(path.read_bytes()[:-4])
    body[at] ^= 1
    checksum = zlib.crc32(body).to_bytes(4, "little") if reseal else path.read_bytes()[-4:]
    out = path.with_name(name)
    out.write_bytes(bytes(body) + checksum)
    return out


def test_whole_files(coded: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Path(shutil.copy(coded, coded.with_name("b.mci")))
    size = coded.stat().st_size
    codes = sum(c.numel() for c in Codec(*weights.load(model)).codes(coded.read_bytes()))
    line = f"ok, 50 x 40, {size:,} bytes, {codes:,} codes"
    assert verify(capsys, coded, other, "--model", model) == (0, [f"{coded}: {line}", f"{other}: {line}"])
    assert verify(capsys, coded, "--deep", "--model", model) == (0, [f"{coded}: {line}, pixels"])


def test_many_files_as_json(coded: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [shutil.copy(coded, coded.with_name(f"{index}.mci")) for index in range(5)]
    flipped = damaged(coded, "flipped.mci", -10, reseal=False)
    status, lines = verify(capsys, *names, flipped, "--jobs", "3", "--json", "--model", model)
    rows = {row.pop("file"): row for row in map(json.loads, lines)}
    assert status == 1 and set(rows) == {*map(str, names), str(flipped)}
    size, codes = coded.stat().st_size, sum(c.numel() for c in Codec(*weights.load(model)).codes(coded.read_bytes()))
    found = {"status": "ok", "width": 50, "height": 40, "bytes": size}
    found |= {"weights": weights.load(model)[1].hex(), "codes": codes, "pixels": False}
    assert all(rows[str(name)] == found for name in names)
    assert rows[str(flipped)] == {"status": "failed", "error": "the file is damaged: its checksum does not match"}


def test_structure_alone_takes_no_weights(
    coded: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever weights a file names."""
    monkeypatch.setattr("mcodec.cli.verify.Codecs", lambda *_: pytest.fail("weights were looked for"))
    line = f"ok, 50 x 40, {coded.stat().st_size:,} bytes"
    assert verify(capsys, coded, "--quick") == (0, [f"{coded}: {line}"])
    status, lines = verify(capsys, damaged(coded, "flipped.mci", -10, reseal=False), "--quick")
    assert status == 1 and "its checksum does not match" in lines[0]
    file = container.unpack(coded.read_bytes())
    header = replace(file.header, width=300, height=200, tile=64)  # more tiles than its table has
    coded.write_bytes(container.pack(replace(file, header=header, codes=b"\x06\x7f" + file.codes)))
    status, lines = verify(capsys, coded, "--quick")
    assert status == 1 and "FAILED" in lines[0] and "checksum" not in lines[0]
    assert entry.run(["verify", "--quick", "--deep", str(coded)]) == 2


def test_every_bad_file_has_its_line(coded: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flipped = damaged(coded, "flipped.mci", -10, reseal=False)
    wrong = damaged(coded, "wrong.mci", -10, reseal=True)
    missing = coded.with_name("missing.mci")
    picture = coded.with_name("x.png")
    picture.write_bytes(b"\x89PNG")
    empty = coded.with_name("folder")
    empty.mkdir()
    status, lines = verify(capsys, flipped, wrong, missing, empty, picture, coded, "--model", model)
    assert status == 1 and len(lines) == 6
    assert lines[0] == f"{flipped}: FAILED, the file is damaged: its checksum does not match"
    assert lines[1].startswith(f"{wrong}: FAILED, ") and "checksum" not in lines[1]  # found by decoding the codes
    assert lines[2] == f"{missing}: FAILED, No such file or directory"
    assert lines[3] == f"{empty}: FAILED, there is no .mci file in it"
    assert lines[4] == f"{picture}: FAILED, not a .mci file: the magic bytes are missing"
    assert lines[5].startswith(f"{coded}: ok, ")


def test_folders(coded: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    below = coded.parent / "below" / "b.MCI"
    below.parent.mkdir()
    shutil.copy(coded, below)
    coded.with_name("x.png").write_bytes(b"no .mci file")
    status, lines = verify(capsys, coded.parent, "--model", model)
    assert status == 0 and [line.split(":")[0] for line in lines] == [str(coded)]
    damaged(coded, "z.mci", -10, reseal=False)
    status, lines = verify(capsys, coded.parent, "--recursive", "--model", model)
    assert status == 1
    assert [line.split(",")[0] for line in lines] == [
        f"{coded}: ok", f"{coded.with_name('z.mci')}: FAILED", f"{below}: ok"
    ]


def test_a_file_too_large(
    coded: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its line like any other, and the rest goes on."""
    other, codes = Path(shutil.copy(coded, coded.with_name("b.mci"))), Codec.codes
    errors = [RuntimeError("DefaultCPUAllocator: can't allocate memory")]

    def limited(self: Codec, data: bytes, max_pixels: int) -> list[torch.Tensor]:
        if errors:
            raise errors.pop()
        return codes(self, data, max_pixels)

    monkeypatch.setattr(Codec, "codes", limited)
    status, lines = verify(capsys, coded, other, "--model", model)
    assert status == 1 and lines[0] == f"{coded}: FAILED, not enough memory for this picture"
    assert lines[1].startswith(f"{other}: ok, ")


def test_weights_are_found_by_the_file(
    coded: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among the installed weights; where they are missing, the error names both fingerprints."""
    status, lines = verify(capsys, coded)
    fingerprint = weights.read_card(model)["sha256"][:16]
    assert status == 1 and f"FAILED, the file was made by weights {fingerprint}, but " in lines[0]
    monkeypatch.setattr(weights, "folder", lambda: model.parent)
    assert verify(capsys, coded)[0] == 0


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.run(["verify", "--help"]) == 0
    out = capsys.readouterr().out
    assert "  mcodec verify photo.mci" in out and "--deep" in out
    assert entry.run(["verify"]) == 2
