"""`mcodec encode --verify`: a file that does not hold what was encoded never takes its name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tiny import TINY, lively

from mcodec import container, files, rate, verification, weights
from mcodec.api import Codec
from mcodec.cli import main as entry
from mcodec.container import TAG_ALPHA, TAG_ICC
from mcodec.errors import VerificationError
from mcodec.image import Metadata, to_raster

Make = Callable[..., NDArray[np.uint8]]
Damage = Callable[[bytes], bytes]


@pytest.fixture
def source(tmp_path: Path, picture: Make) -> Path:
    path = tmp_path / "in.png"
    Image.fromarray(np.dstack([picture(40, 50), picture(40, 50, 1)[..., 0]])).save(path, icc_profile=b"profile")
    return path


@pytest.fixture
def damage(monkeypatch: pytest.MonkeyPatch) -> list[Damage]:
    """What happens to files on their way to disk; the first is taken for the first file, and so on."""
    todo: list[Damage] = []
    atomic = files.atomic

    @contextmanager
    def damaging(path: Path, replace: bool) -> Iterator[Any]:
        class File:
            def __init__(self, file: BinaryIO) -> None:
                self.seek, self.read = file.seek, file.read
                self.write = lambda data: file.write(todo.pop(0)(data) if todo else data)

        with atomic(path, replace) as file:
            yield File(file)

    monkeypatch.setattr(files, "atomic", damaging)
    return todo


def changed(data: bytes, **fields: object) -> bytes:
    """A file with other fields of the header or sections, and a right checksum."""
    file = container.unpack(data)
    header = {key: fields.pop(key) for key in tuple(fields) if key in ("level", "width")}
    return container.pack(replace(file, header=replace(file.header, **header), **fields))


def flipped(data: bytes) -> bytes:
    return data[:30] + bytes([data[30] ^ 1]) + data[31:]


def resealed(data: bytes) -> bytes:
    """The last word of the codes is another, and the checksum right again."""
    codes = bytearray(container.unpack(data).codes)
    codes[-1] ^= 1
    return changed(data, codes=bytes(codes))


def another(data: bytes) -> bytes:
    """A whole file of the same size and weights, of another quality: of other codes."""
    return Codec(lively(TINY), container.unpack(data).header.fingerprint).encode(np.full((40, 50, 4), 9, np.uint8), 9)


def without_alpha(data: bytes) -> bytes:
    return changed(data, sections=tuple(s for s in container.unpack(data).sections if s[0] != TAG_ALPHA))


def other_profile(data: bytes) -> bytes:
    return changed(data, sections=(*(s for s in container.unpack(data).sections if s[0] != TAG_ICC), (TAG_ICC, b"x")))


def extended(data: bytes) -> bytes:
    """By a section that readers pass over."""
    return changed(data, sections=(*container.unpack(data).sections, (200, b"more")))


def narrower(data: bytes) -> bytes:
    return changed(data, width=49)


DAMAGE = {
    flipped: "cannot be decoded: the file is damaged: its checksum does not match",
    resealed: "what was written ",
    another: "is not what was encoded: the codes of stage 1 differ",
    without_alpha: "is not what was encoded: alpha differ",
    other_profile: "is not what was encoded: the metadata differ",
    extended: "is not what was encoded: the bytes differ",
    narrower: "cannot be decoded: the alpha section is no PNG or WebP of 49x40",
    lambda data: b"": "cannot be decoded: not a .mci file",
}


def encode(model: Path, *arguments: str | Path) -> int:
    return entry.run(["encode", "--device", "cpu", "--model", str(model), *map(str, arguments)])


@pytest.mark.parametrize("what", DAMAGE, ids=lambda what: what.__name__)
def test_damage_between_writing_and_verification(
    what: Damage, source: Path, model: Path, damage: list[Damage], capsys: pytest.CaptureFixture[str]
) -> None:
    target = source.with_suffix(".mci")
    damage.append(what)
    assert encode(model, source, "--verify") == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("mcodec: error: what was written ") and err.count("\n") == 1
    assert DAMAGE[what] in err
    assert list(source.parent.iterdir()) == [source]
    target.write_bytes(b"old")
    damage.append(what)
    assert encode(model, source, "--verify", "--force") == 1
    assert target.read_bytes() == b"old" and len(list(source.parent.iterdir())) == 2
    damage.append(what)  # and it is the verification that sees it
    assert encode(model, source, "--force") == 0


def test_whole_files(source: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Named as verified, and the same bytes as without; the target of a size too."""
    plain, checked = source.with_name("plain.mci"), source.with_name("checked.mci")
    size = len(Codec(*weights.load(model)).encode(Image.open(source), 40))
    for options in ([], ["--target-bytes", str(size)]):
        assert encode(model, source, plain, "--force", *options) == 0
        capsys.readouterr()
        assert encode(model, source, checked, "--verify", "--force", "--json", *options) == 0
        assert json.loads(capsys.readouterr().out)["verified"] is True
        assert plain.read_bytes() == checked.read_bytes()
    assert encode(model, source, checked, "--verify", "--force", "--strip") == 0
    assert capsys.readouterr().out.endswith(", verified\n")
    assert encode(model, "--help") == 0 and "--verify" in capsys.readouterr().out


def test_a_target_that_no_higher_effort_reaches(
    source: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is verified is the file of effort 1 that meets it, not one of the effort that was asked for."""
    monkeypatch.setattr(rate, "_dearer", lambda *_: None)
    codec, target = Codec(*weights.load(model)), source.with_suffix(".mci")
    data, dearer = (codec.encode(Image.open(source), 40, effort=effort) for effort in (1, 4))
    assert data != dearer
    assert encode(model, source, "--verify", "--effort", "4", "--target-bytes", str(len(data))) == 0
    assert abs(target.stat().st_size - len(data)) <= rate.TOLERANCE["bytes"] * len(data)
    found = rate.find(codec, Image.open(source), rate.Target("bytes", len(data)), effort=4)
    assert target.read_bytes() == found.data


def test_folders(source: Path, model: Path, damage: list[Damage], capsys: pytest.CaptureFixture[str]) -> None:
    """The bad file is reported and missing, the rest goes on."""
    pictures, out = source.parent / "pictures", source.parent / "out"
    pictures.mkdir()
    for name in "abc":
        (pictures / f"{name}.png").write_bytes(source.read_bytes())
    damage += [lambda data: data, resealed]
    assert encode(model, pictures, out, "--verify", "--jobs", "1") == 1
    captured = capsys.readouterr()
    assert captured.out == "2 done, 0 skipped, 1 failed\n"
    assert captured.err.startswith(f"mcodec: error: {pictures / 'b.png'}: what was written ")
    assert sorted(path.name for path in out.iterdir()) == ["a.mci", "c.mci"]


def test_standard_output(
    source: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Nothing is written before it is verified."""
    assert encode(model, source, "-", "--verify") == 0
    out, err = capsysbinary.readouterr()
    assert Codec(*weights.load(model)).decode(out).size == (50, 40) and err.endswith(b", verified\n")
    encoded = Codec.encode_with_codes
    monkeypatch.setattr(
        Codec, "encode_with_codes", lambda *a: (flipped(encoded(*a)[0]), encoded(*a)[1])
    )
    assert encode(model, source, "-", "--verify") == 1
    assert capsysbinary.readouterr().out == b""


@pytest.mark.parametrize("effort", [1, 4])
@pytest.mark.parametrize("tile", [64, 1024])
def test_codes_of_the_encoder(tile: int, effort: int, picture: Make) -> None:
    """Equal to those that a decoder reads, of one tile and of many, searched or not; a single other code is seen."""
    codec = Codec(lively(TINY), b"tinytiny")
    codec.tile = tile
    raster = replace(to_raster(picture(70, 150)), metadata=Metadata(xmp=b"packet"))
    data, codes = codec.encode_with_codes(raster, 60, effort=effort)
    assert data == codec.encode(raster, 60, effort=effort)
    found = codec.codes(data)
    assert [c.shape for c in codes] == [c.shape for c in found]
    assert all(torch.equal(a.int(), b.int()) for a, b in zip(codes, found, strict=True))
    verification.verify(codec, raster, codes, "all", data)
    for metadata in ("none", "no-gps"):
        without = codec.encode(raster, 60, metadata, effort)
        verification.verify(codec, raster, codes, metadata, without)
    with pytest.raises(VerificationError, match="the metadata differ"):
        verification.verify(codec, raster, codes, "all", codec.encode(raster, 60, "none", effort))
    codes[-1][0, -1, -1] ^= 1
    with pytest.raises(VerificationError, match=f"the codes of stage {len(codes)} differ"):
        verification.verify(codec, raster, codes, "all", data)
