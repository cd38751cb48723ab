"""Pictures as people have them, through the command: kinds of files, streams, many files, targets, previews."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from mcodec import files
from mcodec.api import Codec
from mcodec.bench.metrics import psnr
from mcodec.bench.pictures import look
from mcodec.cli import main as entry
from mcodec.cli import many
from mcodec.container import describe
from mcodec.image import read_raster

Make = Callable[..., NDArray[np.uint8]]
WIDTH, HEIGHT = 72, 56


@pytest.fixture(autouse=True)
def _small(plain: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command with a small model."""
    for module in ("coding", "options"):
        monkeypatch.setattr(f"mcodec.cli.{module}.load_codec", lambda *_: plain)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # the command raises it
    Image.init()
    monkeypatch.delitem(Image.EXTENSION, ".mci", raising=False)  # of a plugin that another test has registered


@pytest.fixture
def colours() -> NDArray[np.uint8]:
    """Smooth colours: what is left of the error is the codec's."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([3 * x, 4 * y, 255 - 2 * x], -1).clip(0, 255).astype(np.uint8)


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """(exit status, standard output, standard error) of a command line."""
    status = entry.run([str(a) for a in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


# ---- kinds of files ----


@dataclass(frozen=True)
class Case:
    """One kind of input: how to make the file, and what comes back as which mode."""

    name: str  # suffix included
    mode: str  # of the PIL image that is saved; "RGB;16" and the like are arrays
    out: str  # mode of the decoded PNG as Pillow opens it
    save: dict[str, Any]
    orientation: int = 1
    profile: bool = False
    metadata: bool = False

    def __str__(self) -> str:
        extra = f"-{self.orientation}" if self.orientation > 1 else ""
        return f"{self.mode}-{self.name}{extra}{'-icc' if self.profile else ''}{'-meta' if self.metadata else ''}"


def _cases() -> list[Case]:
    jpeg = {"quality": 95, "subsampling": 0}
    cases = [
        Case("a.jpg", "RGB", "RGB", jpeg),
        Case("a.jpg", "L", "L", jpeg),
        Case("a.jpg", "CMYK", "RGB", jpeg),
        Case("a.jpg", "YCbCr", "RGB", jpeg),
        Case("prog.jpg", "RGB", "RGB", {**jpeg, "progressive": True}),
        Case("a.webp", "RGB", "RGB", {"quality": 95}),
        Case("lossless.webp", "RGBA", "RGBA", {"lossless": True}),
        Case("a.avif", "RGB", "RGB", {"quality": 95}),
        Case("a.avif", "RGBA", "RGBA", {"quality": 95}),
        Case("a.bmp", "RGB", "RGB", {}),
        Case("a.bmp", "L", "L", {}),
        Case("a.bmp", "1", "1", {}),
        Case("a.gif", "P", "RGB", {}),
        Case("a.gif", "L", "L", {}),
        Case("two.gif", "P", "RGB", {"save_all": True}),
        Case("a.jp2", "RGB", "RGB", {}),
        Case("a.tga", "RGBA", "RGBA", {}),
        Case("a.ppm", "RGB", "RGB", {}),
        Case("a.pgm", "L", "L", {}),
        Case("a.pbm", "1", "1", {}),
        Case("a.ico", "RGBA", "RGBA", {"sizes": [(WIDTH, HEIGHT)]}),
        Case("wide.tif", "CMYK", "RGB", {}),
        Case("lzw.tif", "RGB", "RGB", {"compression": "tiff_lzw"}),
        Case("fax.tif", "1", "1", {"compression": "group4"}),
        Case("a.png", "RGB;16", "RGB", {}),
        Case("a.png", "RGBA;16", "RGBA", {}),
        Case("a.png", "LA;16", "RGBA", {}),
        Case("a.tif", "RGB;16", "RGB", {}),
        Case("a.tif", "I;16", "I;16", {}),
        Case("a.tif", "F", "L", {}),
        Case("a.tif", "I", "I;16", {}),
        Case("a.png", "RGB", "RGB", {}, profile=True, metadata=True),
        Case("a.tif", "RGB", "RGB", {}, profile=True, metadata=True),
        Case("a.webp", "RGB", "RGB", {"quality": 95}, profile=True, metadata=True),
        Case("a.jpg", "CMYK", "RGB", jpeg, metadata=True),
    ]
    cases += [Case("a.png", mode, out, {}) for mode, out in (("1", "1"), ("L", "L"), ("LA", "LA"), ("P", "RGB"))]
    cases += [Case("a.png", mode, mode, {}) for mode in ("RGB", "RGBA", "I;16")]
    cases += [Case("a.jpg", "RGB", "RGB", jpeg, turn, profile=turn == 6, metadata=True) for turn in range(2, 9)]
    return cases


CASES = _cases()


def _source(case: Case, colours: NDArray[np.uint8], path: Path) -> None:
    """The case's file."""
    if case.mode.endswith(";16") and case.mode != "I;16":
        imagecodecs, tifffile = pytest.importorskip("imagecodecs"), pytest.importorskip("tifffile")
        wide = colours.astype(np.uint16) * 257
        alpha = (np.arange(HEIGHT * WIDTH, dtype=np.uint16) * 16).reshape(HEIGHT, WIDTH)
        channels = {"RGB": [wide], "RGBA": [wide, alpha], "LA": [wide[..., 0], alpha]}[case.mode[:-3]]
        array = np.dstack(channels) if len(channels) > 1 else channels[0]
        if case.name.endswith("png"):
            path.write_bytes(imagecodecs.png_encode(array))
        else:
            tifffile.imwrite(path, array, photometric="rgb")
        return
    image = Image.fromarray(colours)
    if case.mode in ("I;16", "I"):
        image = Image.fromarray(colours[..., 0].astype(np.uint16 if case.mode == "I;16" else np.int32) * 257)
    elif case.mode == "1":
        image = Image.fromarray(colours[..., 0] > 100)
    elif case.mode == "P":
        image = image.quantize(256)
    elif case.mode.endswith("A"):
        image = image.convert(case.mode)
        image.putalpha(Image.fromarray((np.arange(HEIGHT * WIDTH) % 256).astype(np.uint8).reshape(HEIGHT, WIDTH)))
    elif case.mode != "RGB":
        image = image.convert(case.mode)
    options = dict(case.save)
    if case.name.startswith("two"):
        options["append_images"] = [Image.new("P", image.size)]
    exif = Image.Exif()
    if case.metadata:
        exif[0x010F], exif[0x8298], exif[0x0112] = "Maker", "Somebody", case.orientation
        if not case.name.endswith((".png", ".tif")):
            options["xmp"] = b"<x:xmpmeta>a packet</x:xmpmeta>"
        options["exif"] = exif
    if case.profile:
        options["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image.save(path, **options)


def _looked_at(path: Path) -> Image.Image:
    """The source as a viewer shows it."""
    image = Image.open(io.BytesIO(path.read_bytes()))
    image.load()
    return ImageOps.exif_transpose(image)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kinds_of_files(
    case: Case, colours: NDArray[np.uint8], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Size, mode, depth, orientation, alpha, profile, metadata and PSNR after encode and decode by the command."""
    source, coded, copy = tmp_path / case.name, tmp_path / "coded.mci", tmp_path / "copy.png"
    _source(case, colours, source)
    status, _, err = run(capsys, "encode", source, coded, "-q", "40")
    assert status == 0, err
    assert ("the first of 2 pictures in the file is taken" in err) == case.name.startswith("two")
    status, _, err = run(capsys, "decode", coded, copy)
    assert (status, err) == (0, "")

    before, after = read_raster(source), read_raster(copy)
    assert after.kind is before.kind and after.size == before.size == _looked_at(source).size
    with Image.open(copy) as image:
        assert image.mode == case.out
    peak = 65535 if before.kind.bits == 16 else 255
    a, b = (np.asarray(r.samples).astype(np.float64) * 255 / peak for r in (before, after))
    assert psnr(a, b) > (11 if before.kind.bits == 1 else 22), psnr(a, b)  # type: ignore[arg-type]
    if before.alpha is not None:
        assert np.array_equal(before.alpha, after.alpha)
    assert (before.alpha is None) == (after.alpha is None)
    assert after.metadata.icc == before.metadata.icc and (before.metadata.icc is not None) == case.profile
    assert after.metadata.xmp == before.metadata.xmp
    if case.metadata:
        exif = after.image().getexif()
        assert (exif[0x010F], exif[0x8298], exif.get(0x0112, 1)) == ("Maker", "Somebody", 1)
        if ".jpg" in case.name or ".webp" in case.name:
            assert after.metadata.xmp == b"<x:xmpmeta>a packet</x:xmpmeta>"


def test_there_are_enough_kinds() -> None:
    assert len({str(case) for case in CASES}) == len(CASES) >= 40


@pytest.mark.parametrize("case", [c for c in CASES if c.name == "a.png" and not c.metadata], ids=str)
def test_pixels_that_are_measured(case: Case, colours: NDArray[np.uint8], tmp_path: Path) -> None:
    """Of any depth and kind they are those that are coded, as 8-bit RGB."""
    _source(case, colours, tmp_path / case.name)
    (picture,) = look(tmp_path)
    wanted = np.asarray(read_raster(tmp_path / case.name).samples).astype(int)
    wanted = wanted // 257 if wanted.max() > 255 else wanted
    assert np.array_equal(picture.pixels(), np.broadcast_to(wanted.reshape(HEIGHT, WIDTH, -1), (HEIGHT, WIDTH, 3)))


def test_strip(colours: NDArray[np.uint8], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif[0x8825] = {1: "N"}
    source = tmp_path / "a.jpg"
    Image.fromarray(colours).save(source, exif=exif, xmp=b"<x/>", icc_profile=b"profile")
    sections = {}
    for option in ("--force", "--strip", "--strip-gps"):
        assert run(capsys, "encode", source, option, "--force")[0] == 0
        sections[option] = describe(source.with_suffix(".mci").read_bytes())["sections"].keys() - {"shifts", "filter"}
    assert sections["--force"] == sections["--strip-gps"] == {"codes", "icc", "exif", "xmp"}
    assert sections["--strip"] == {"codes"}


def test_the_position_alone_goes(
    colours: NDArray[np.uint8], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--strip-gps takes it out of EXIF and XMP; what else they say comes back, from JPEG over .mci to TIFF."""
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif[0x8769] = {0x829A: 0.25}
    exif[0x8825] = {1: "N", 2: (48.0, 2.0, 3.0)}
    xmp = b'<rdf:Description exif:GPSLatitude="48,2.5N" dc:title="A"/>'
    Image.fromarray(colours).save(tmp_path / "a.jpg", exif=exif, xmp=xmp)
    for option, kept in (("--json", True), ("--strip-gps", False)):
        assert run(capsys, "encode", tmp_path / "a.jpg", option, "--force")[0] == 0
        assert run(capsys, "decode", tmp_path / "a.mci", tmp_path / "b.tif", "--force")[0] == 0
        with Image.open(tmp_path / "b.tif") as image:
            found = image.getexif()
            assert found[0x010F] == "Maker" and found.get_ifd(0x8769) == {0x829A: 0.25}
            assert (found.get_ifd(0x8825).get(1) == "N") is kept
            assert b'dc:title="A"' in image.info["xmp"] and (b"GPS" in image.info["xmp"]) is kept
    Image.fromarray(colours).save(tmp_path / "b.jpg", exif=exif.tobytes()[:-6], xmp=xmp.replace(b"dc:title", b"dc:GPS"))
    status, _, err = run(capsys, "encode", tmp_path / "b.jpg", "--strip-gps")
    lines = [f"mcodec: note: {tmp_path / 'b.jpg'}: {name} is left out as a whole" for name in ("EXIF", "XMP")]
    assert status == 0 and [line.rpartition(":")[0] for line in err.splitlines()] == lines


def test_grey_costs_less(colours: NDArray[np.uint8], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = []
    for mode in ("L", "RGB"):
        Image.fromarray(colours).convert(mode).save(tmp_path / "a.png")
        assert run(capsys, "encode", tmp_path / "a.png", "--force")[0] == 0
        sizes.append((tmp_path / "a.mci").stat().st_size)
    assert sizes[0] < sizes[1]


@pytest.mark.filterwarnings("always::mcodec.errors.LossWarning")
def test_notes_and_losses_are_said(
    colours: NDArray[np.uint8], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "a.png"
    Image.fromarray(colours).quantize(256).save(source)
    assert f"mcodec: note: {source}: a palette becomes RGB" in run(capsys, "encode", source)[2]
    Image.fromarray(np.dstack([colours, colours[..., 0]])).save(source)
    assert run(capsys, "encode", source, "--force")[0] == 0
    status, _, err = run(capsys, "decode", source.with_suffix(".mci"), tmp_path / "b.jpg")
    assert status == 0 and f"mcodec: warning: {tmp_path / 'b.jpg'}: JPEG cannot hold alpha" in err


# ---- streams ----


def test_streams(
    colours: NDArray[np.uint8],
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(colours).save(buffer, "PNG")

    def piped(data: bytes, *arguments: str) -> bytes:
        stream = io.TextIOWrapper(io.BytesIO(data))
        monkeypatch.setattr("sys.stdin", stream)
        assert entry.run(arguments) == 0
        return capfdbinary.readouterr().out

    data = piped(buffer.getvalue(), "encode", "-", "-")
    assert data == piped(buffer.getvalue(), "encode", "-")
    assert describe(data)["width"] == WIDTH
    for form in ("png", "jpg"):
        with Image.open(io.BytesIO(piped(data, "decode", "-", "-", "--format", form))) as image:
            assert image.size == (WIDTH, HEIGHT) and image.format == {"png": "PNG", "jpg": "JPEG"}[form]
    piped(buffer.getvalue(), "encode", "-", str(tmp_path / "a.mci"))
    assert (tmp_path / "a.mci").read_bytes() == data
    piped(data, "decode", "-", str(tmp_path / "a.tif"))
    with Image.open(tmp_path / "a.tif") as image:
        assert image.size == (WIDTH, HEIGHT)


def test_streams_that_are_no_pictures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, colours: NDArray[np.uint8], plain: Codec
) -> None:
    data = plain.encode(colours)
    for command, given, said in (
        ("encode", b"", "cannot read the picture: unknown format"),
        ("decode", b"text", "standard input: not a .mci file: the magic bytes are missing"),
        ("decode", data[:-9], "standard input: the file is truncated: its checksum does not match; --partial decodes"),
    ):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
        status, out, err = run(capsys, command, "-")
        assert (status, out) == (1, "") and err.startswith(f"mcodec: error: {said}") and err.count("\n") == 1


# ---- many files ----


@pytest.fixture
def folder(colours: NDArray[np.uint8], tmp_path: Path) -> Path:
    """Five pictures, two of them below, two broken, one text."""
    root = tmp_path / "in"
    (root / "sub" / "deep").mkdir(parents=True)
    for name in ("a.png", "b.jpg", "c.webp", "sub/d.png", "sub/deep/e.png"):
        Image.fromarray(colours).save(root / name)
    (root / "broken.png").write_text("no pixels")
    whole = (root / "a.png").read_bytes()
    (root / "sub" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "notes.txt").write_text("not a picture")
    return root


def _files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_folders(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bad files are reported and the rest goes on; what is done is not done again."""
    out, back = tmp_path / "out", tmp_path / "back"
    status, text, err = run(capsys, "encode", folder, out, "--recursive", "--jobs", "2")
    assert status == 1 and text == "5 done, 0 skipped, 2 failed\n"
    assert err.count("mcodec: error: ") == 2 and "broken.png" in err and "cut.png" in err
    assert f"mcodec: note: {folder}: 1 of 8 files passed over by their names (1 .txt)\n" in err and err.count("\n") == 3
    expected = ["a.mci", "b.mci", "c.mci", "sub/d.mci", "sub/deep/e.mci"]
    assert _files(out) == expected
    times = [os.stat(out / name).st_mtime_ns for name in expected]
    status, text, _ = run(capsys, "encode", folder, out, "--recursive")
    assert status == 1 and text == "0 done, 5 skipped, 2 failed\n"
    assert times == [os.stat(out / name).st_mtime_ns for name in expected]
    (out / "b.mci").unlink()  # as after an interruption
    assert run(capsys, "encode", folder, out, "--recursive")[1] == "1 done, 4 skipped, 2 failed\n"

    status, text, err = run(capsys, "decode", out, back, "--recursive", "--format", "bmp", "--json")
    rows = [json.loads(line) for line in text.splitlines()]
    assert (status, err) == (0, "5 done, 0 skipped, 0 failed\n")
    assert sorted(row["target"] for row in rows) == sorted(str(back / n.replace(".mci", ".bmp")) for n in expected)
    assert {row["status"] for row in rows} == {"done"} and {row["width"] for row in rows} == {WIDTH}


def test_folders_that_cannot_be_read_are_not_passed_over(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def closed(path: Any) -> Any:
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    for command in (("encode", folder, tmp_path / "out"), ("verify", folder)):
        status, _, err = run(capsys, *command, "--recursive")
        assert (status, err) == (1, f"mcodec: error: {folder / 'sub' / 'deep'}: Permission denied\n")
    assert not (tmp_path / "out").exists()


def test_folders_without_work_are_told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "albums").mkdir()
    (tmp_path / "albums" / "in").symlink_to(folder)
    for more, said in ((), "; --recursive looks below it"), (("--recursive",), ""):
        status, _, err = run(capsys, "encode", tmp_path / "albums", tmp_path / "out", *more)
        lines = err.splitlines()
        assert status == 1 and lines[-1] == f"mcodec: error: {tmp_path / 'albums'} holds no file to work on{said}"
    assert lines[0] == f"mcodec: note: {tmp_path / 'albums' / 'in'}: a link to a folder is not followed"


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_files_of_others_are_not_overwritten(
    colours: NDArray[np.uint8], when: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Which appear after the run has looked: before the work on a picture, or while it is coded."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    Image.fromarray(colours).save(source / "a.png")
    assert run(capsys, "encode", source / "a.png")[0] == 0
    place, name = (many, "_guarded") if when == "before" else (files, "_open")
    inner = getattr(place, name)

    def late(*arguments: Any) -> Any:
        for suffix in ("mci", "png"):
            (out / f"a.{suffix}").write_bytes(b"of another")
        return inner(*arguments)

    monkeypatch.setattr(place, name, late)
    for command, target in (("encode", "a.mci"), ("decode", "a.png")):
        for path in out.iterdir():
            path.unlink()
        status, text, err = run(capsys, command, source, out)
        assert (status, text) == (0, "0 done, 1 skipped, 0 failed\n"), err
        assert (out / target).read_bytes() == b"of another"
        assert run(capsys, command, source, out, "--force")[1] == "1 done, 0 skipped, 0 failed\n"
        assert (out / target).read_bytes() != b"of another"
    if when == "meanwhile":
        for path in out.iterdir():
            path.unlink()
        status, _, err = run(capsys, "encode", source / "a.png", out / "a.mci")
        assert (status, err) == (1, f"mcodec: error: {out / 'a.mci'} exists; use --force to overwrite it\n")
    assert {path.name for path in out.iterdir()} <= {"a.mci", "a.png"}


def test_a_folder_is_not_written_over_itself(plain: Codec, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = plain.encode(np.zeros((8, 8, 3), np.uint8))
    for name in ("a.png", "b.mci"):
        (tmp_path / name).write_bytes(data)
    status, _, err = run(capsys, "decode", tmp_path / "a.png", tmp_path / "b.mci", tmp_path, "--force")
    assert status == 1 and "a.png is both input and output" in err
    assert (tmp_path / "a.png").read_bytes() == data and not (tmp_path / "b.png").exists()


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """Are printed as they are."""
    name = os.fsencode(tmp_path) + b"/caf\xe9.mci"
    try:
        with open(name, "wb") as file:
            file.write(b"no such file")
    except OSError:
        pytest.skip("the file system wants text")
    done = subprocess.run(
        [sys.executable, "-m", "mcodec.cli", "verify", name],
        capture_output=True, env={**os.environ, "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, b"") and done.stdout.startswith(name + b": FAILED, ")


def test_a_name_that_is_too_long_is_its_own(
    colours: NDArray[np.uint8], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two that share a stem both keep their suffix, and 255 bytes become 259."""
    source = tmp_path / "in"
    source.mkdir()
    for name in ("a.png", f"{251 * 'n'}.png", f"{251 * 'n'}.bmp"):
        Image.fromarray(colours).save(source / name)
    status, text, err = run(capsys, "encode", source, tmp_path / "out")
    assert (status, text) == (1, "1 done, 0 skipped, 2 failed\n") and err.count("File name too long") == 2


def test_json_tells_of_every_file(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    status, text, _ = run(capsys, "encode", folder, out, "--json")
    rows = {Path(row["source"]).name: row for row in map(json.loads, text.splitlines())}
    assert status == 1 and set(rows) == {"a.png", "b.jpg", "c.webp", "broken.png"}
    assert rows["a.png"]["bytes"] == (out / "a.mci").stat().st_size
    assert rows["broken.png"]["status"] == "failed" and "unknown format" in rows["broken.png"]["error"]
    status, text, _ = run(capsys, "encode", folder / "a.png", tmp_path / "one.mci", "--json")
    assert status == 0 and json.loads(text)["bytes"] == (tmp_path / "one.mci").stat().st_size


def test_patterns_and_lists(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(capsys, "encode", str(folder / "[ab].*"), out)[1] == "2 done, 0 skipped, 0 failed\n"
    assert run(capsys, "encode", folder / "a.png", folder / "c.webp", out)[1] == "1 done, 1 skipped, 0 failed\n"
    Image.new("RGB", (5, 5)).save(folder / "a.bmp")
    assert run(capsys, "encode", folder / "a.png", folder / "a.bmp", tmp_path / "same")[0] == 0
    assert _files(tmp_path / "same") == ["a.bmp.mci", "a.png.mci"]
    for arguments, status, said in (
        ((folder,), 2, "a folder to write into is needed"),
        ((folder, folder / "a.png"), 1, "is no folder"),
        ((folder / "none*.png", out), 1, f"no file matches {folder / 'none*.png'}"),
    ):
        found, _, err = run(capsys, "encode", *arguments)
        assert found == status and said in err


@pytest.mark.filterwarnings("default::mcodec.errors.LossWarning")
def test_losses_of_many(plain: Codec, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each file that lost something is named."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.mci").write_bytes(plain.encode(np.zeros((8, 8, 4), np.uint8)))
    err = run(capsys, "decode", tmp_path, tmp_path / "out", "--format", "jpg")[2]
    assert sorted(err.splitlines()) == [
        f"mcodec: warning: {tmp_path / 'out' / name}.jpg: JPEG cannot hold alpha" for name in "ab"
    ]


@pytest.mark.filterwarnings("ignore::mcodec.errors.LossWarning")
def test_losses_in_json(plain: Codec, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.mci").write_bytes(plain.encode(np.zeros((8, 8, 4), np.uint8)))
    for name, lost in (("a.jpg", ["alpha"]), ("a.png", [])):
        text = run(capsys, "decode", tmp_path / "a.mci", tmp_path / name, "--json")[1]
        assert json.loads(text)["lost"] == lost


def test_notes_of_many(colours: NDArray[np.uint8], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a file does not keep is said of each, in lines or in JSON."""
    for name in ("a", "b"):
        Image.fromarray(colours).quantize(256).save(tmp_path / f"{name}.png")
    err = run(capsys, "encode", tmp_path, tmp_path / "out")[2]
    assert all(f"mcodec: note: {tmp_path / name}.png: a palette becomes RGB" in err for name in "ab")
    text = run(capsys, "encode", tmp_path, tmp_path / "out", "--force", "--json")[1]
    assert [json.loads(line)["notes"] for line in text.splitlines()] == [["a palette becomes RGB"]] * 2


def test_an_interrupted_run_leaves_whole_files_only(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, plain: Codec
) -> None:
    calls = []
    encode = plain.encode

    def interrupted(*arguments: Any) -> bytes:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr(plain, "encode", interrupted)
    status, _, err = run(capsys, "encode", folder, tmp_path / "out", "--jobs", "1")
    assert status == 130 and "interrupted" in err
    for name in _files(tmp_path / "out"):
        assert name.endswith(".mci") and describe((tmp_path / "out" / name).read_bytes())["width"] == WIDTH


# ---- targets, previews, regions ----


def test_targets(
    colours: NDArray[np.uint8], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # without training the prior's rates mean nothing: nearest codewords, so that quality orders the pictures
    monkeypatch.setattr("mcodec.encoding.BETA", 1000.0)
    source = tmp_path / "a.png"
    Image.fromarray(colours).save(source)
    status, _, err = run(capsys, "encode", source, "--target-psnr", "34")
    assert status == 0, err
    assert run(capsys, "decode", source.with_suffix(".mci"), tmp_path / "b.png")[0] == 0
    assert abs(psnr(colours, np.asarray(Image.open(tmp_path / "b.png"))) - 34) < 0.201
    status, _, err = run(capsys, "encode", source, "--target-bytes", "20", "--force")
    assert status == 1 and "the nearest is" in err and err.count("\n") == 1
    assert run(capsys, "encode", source, "--target-bpp", "1", "-q", "5")[0] == 2


def test_previews_and_regions(colours: NDArray[np.uint8], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, coded = tmp_path / "a.png", tmp_path / "a.mci"
    Image.fromarray(colours).save(source)
    assert run(capsys, "encode", source, "-q", "80")[0] == 0
    status, text, _ = run(capsys, "info", coded, "--stages", "--json")
    found = json.loads(text)
    stages = found["stages"]
    assert status == 0 and len(stages) == 4 and found["sections"]["codes"] == sum(stages)
    assert run(capsys, "decode", coded, tmp_path / "two.png", "--stages", "2")[0] == 0
    head = tmp_path / "head.mci"
    head.write_bytes(coded.read_bytes()[: found["bytes"] - 4 - sum(stages[2:])])  # the codes come last
    assert run(capsys, "decode", head)[0] == 1
    status, _, err = run(capsys, "decode", head, "--partial")
    assert status == 0 and err == f"mcodec: note: {head}: the file ends after 2 of 4 stages\n"
    assert (tmp_path / "head.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    head.write_bytes(coded.read_bytes()[:-2])
    status, _, err = run(capsys, "decode", head, "--partial", "--force")
    assert (status, err.count("\n")) == (0, 1) and f"mcodec: note: {head}: the checksum does not match: " in err
    assert run(capsys, "decode", coded, tmp_path / "whole.png")[0] == 0
    assert (tmp_path / "head.png").read_bytes() == (tmp_path / "whole.png").read_bytes()
    assert run(capsys, "decode", coded, tmp_path / "part.png", "--region", "8,4,20,10")[0] == 0
    with Image.open(tmp_path / "part.png") as image:
        assert image.size == (20, 10)
    for option, value, status in (("--region", "70,0,5,5", 1), ("--stages", "9", 1), ("--region", "1,2,3", 2)):
        got, _, err = run(capsys, "decode", coded, tmp_path / "bad.png", option, value)
        assert got == status and err.count("\n") == 1
    assert not (tmp_path / "bad.png").exists()
