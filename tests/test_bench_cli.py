"""`mcodec bench` on real folders: odd pictures, what is printed, how it fails."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from benchmarks import photographs
from PIL import Image

from mcodec.bench.rd import CROP_HEIGHT, CROP_WIDTH
from mcodec.bench.sheet import GAP, LABEL
from mcodec.cli import main as entry

QUICK = ("--no-memory", "--crops", "0", "--threads", "1", "--metrics", "psnr,ms-ssim")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Gives torch its number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """(exit status, standard output, standard error) of `mcodec bench`."""
    status = entry.run(["bench", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_pictures_that_lost_something_before_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, command = photographs(tmp_path / "images"), ("--codecs", "webp", "--qualities", "webp=20,60", *QUICK)
    assert "with loss" not in run(capsys, "rd", "--images", images, "--out", tmp_path / "one", *command)[2]
    with Image.open(images / "a.png") as image:
        image.convert("RGB").save(images / "c.jpg")
    status, _, err = run(capsys, "rd", "--images", images, "--out", tmp_path / "two", *command)
    assert status == 0 and err.startswith("note: 1 of 3 pictures were coded with loss before")


def test_odd_pictures_are_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A text file, one pixel and a grey picture: a report with those marked, the grey one in the means."""
    images, out = photographs(tmp_path / "images"), tmp_path / "out"
    (images / "text.png").write_text("no pixels here")
    (images / "notes.txt").write_text("not even the suffix of a picture")
    Image.new("RGB", (1, 1), "red").save(images / "dot.png")
    Image.linear_gradient("L").resize((50, 40)).save(images / "grey.png")
    codecs = "mcodec,jpeg,webp,jpeg2000,avif,jxl,heic"
    qualities = [f"{name}=20,60" for name in ("mcodec", "jpeg", "webp", "avif", "jxl", "heic")] + ["jpeg2000=60,10"]
    options = [part for quality in qualities for part in ("--qualities", quality)]
    status, printed, err = run(capsys, "rd", "--images", images, "--out", out, "--codecs", codecs, *options, *QUICK)
    assert status == 0 and f"{out / 'report.html'}" in printed, err
    summary = json.loads((out / "results.json").read_text())
    assert summary["pictures"] == ["a.png", "b.png", "grey.png"]
    assert summary["left_out"]["text.png"].startswith("cannot read the picture text.png")
    assert summary["left_out"]["dot.png"] == "a side below 16 px, not in the means"
    page = (out / "report.html").read_text()
    assert '"grey.png": "mode L, coded as RGB"' in page and '"text.png": "cannot read' in page
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    dots = {row["codec"] for row in rows if row.get("image") == "dot.png" and row["kind"] in ("point", "failure")}
    assert dots >= {"mcodec", "jpeg", "webp"}
    assert "left out: text.png" in err


def test_run_again_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, out = photographs(tmp_path / "images"), tmp_path / "out"
    quick = ("--codecs", "jpeg,webp", "--qualities", "20,60", *QUICK)
    arguments = ("rd", "--images", images, "--out", out, *quick)
    assert run(capsys, *arguments)[0] == 0
    before = [row for row in (out / "rows.jsonl").read_text().splitlines() if '"point"' in row]
    summary = tmp_path / "kept.json"
    assert run(capsys, *arguments, "--anchors", "kodak", "--published", "vtm", "--summary", summary)[0] == 0
    after = [row for row in (out / "rows.jsonl").read_text().splitlines() if '"point"' in row]
    assert before == after and len(after) == 8
    assert summary.read_text() == (out / "results.json").read_text()
    (out / "report.html").unlink()
    status, printed, _ = run(capsys, "report", out)
    assert status == 0 and str(out / "report.html") in printed and (out / "report.html").exists()
    status, _, err = run(capsys, "check", out)
    assert status == 1 and err.startswith("mcodec: error: published curves are means of the 24 Kodak pictures")


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "codecs")
    assert status == 0 and "* mcodec " in out and "* jpeg " in out
    status, out, _ = run(capsys, "anchors", "--against", "vtm")
    assert status == 0 and re.search(r"hpcm-large +-19\.9\d %  28\.9 to 37\.7 dB  github:lyq133/LIC-HPCM", out)


def test_readme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).parent.parent
    text = (root / "README.md").read_text()
    readme = tmp_path / "README.md"
    readme.write_text(text.replace("| quality |", "| stale |"))
    assert run(capsys, "readme", "--readme", readme, "--results", root / "bench/results")[0] == 0
    assert readme.read_text() == text


def test_speed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, rows = photographs(tmp_path / "images") / "a.png", tmp_path / "speed.jsonl"
    options = ("--sizes", "64x48,70x100", "--batch", "1,2", "--repeat", "1", "--threads", "1", "--no-peer")
    status, out, err = run(capsys, "speed", "--image", picture, *options, "--device", "cpu", "--out", rows)
    assert status == 0, err
    assert "64x48 x2 decode mcodec: " in out and " Mpx/s" in out and "transform " in out
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [(r["what"], r["width"], r["batch"]) for r in found[:4]] == [
        ("encode", 64, 1), ("decode", 64, 1), ("encode", 64, 2), ("decode", 64, 2)
    ]  # fmt: skip
    assert len(found) == 8
    for row in found:
        assert sum(row["parts"].values()) == pytest.approx(1) and min(row["parts"].values()) > 0
        pixels = row["width"] * row["height"] * row["batch"]
        assert row["mpx_s"] == pytest.approx(pixels / row["seconds"][1] / 1e6, rel=0.01, abs=1e-4)
        assert row["machine"]["threads"] == 1


def test_speed_says_why_there_is_no_peer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "compressai", None)
    picture = photographs(tmp_path / "images") / "a.png"
    status, _, err = run(capsys, "speed", "--image", picture, "--sizes", "64x64", "--repeat", "1", "--device", "cpu")
    assert status == 0 and "skipped: mbt2018-mean: CompressAI cannot be imported" in err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--codecs", "bpg"), 1, "no codec 'bpg'"),
        (("--codecs", "jpeg", "--metrics", "vmaf"), 1, "no metric 'vmaf'"),
        (("--codecs", "jpeg", "--qualities", "high"), 2, "no list of numbers"),
        (("--codecs", "jpeg", "--qualities", "nan"), 2, "no list of numbers"),
        (("--codecs", "jpeg", "--qualities", "webp=5"), 1, "which is not among the codecs"),
        (("--codecs", "jpeg", "--published", "vtm"), 2, "--published needs --anchors"),
        (("--codecs", "jpeg", "--anchors", "none.json"), 1, "cannot read published curves from none.json"),
    ],
)
def test_wrong_usage(
    arguments: tuple[str, ...], status: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = photographs(tmp_path / "images")
    got, out, err = run(capsys, "rd", "--images", images, "--out", tmp_path / "out", *arguments)
    assert (got, out) == (status, "") and message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_wrong_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, dots = photographs(tmp_path / "images"), photographs(tmp_path / "dots", [(1, 1)])
    for said, arguments in {
        "nan is no number": ("speed", "--image", images / "a.png", "-q", "nan"),
        "'--bpp': inf is no number": ("sheet", "--image", images / "a.png", "--bpp", "inf", "--out", "x.png"),
        "quality must be from 1 to 100, got 0": ("effort", "--images", images, "--qualities", "0"),
        "at least two qualities": ("effort", "--images", images, "--qualities", "50"),
        "holds no picture with sides of 16 pixels": ("effort", "--images", dots),
    }.items():
        status, out, err = run(capsys, *arguments, "--device", "cpu")
        assert status != 0 and (out, err.count("\n")) == ("", 1) and said in err, err


def test_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Originals in the first column, every codec's crop beside it, at about the rate asked for."""
    images, out = photographs(tmp_path / "images"), tmp_path / "sheet.png"
    paths = [part for name in ("a.png", "b.png") for part in ("--image", images / name)]
    status, printed, err = run(capsys, "sheet", *paths, "--codecs", "webp,mcodec", "--bpp", "1.5", "--out", out)
    assert status == 0 and len(printed.splitlines()) == 5, err
    rates = [float(value) for value in re.findall(r"([0-9.]+) bpp", printed)]
    assert rates == pytest.approx([1.5] * 4, rel=0.2)
    sheet = Image.open(out)
    assert sheet.width == 3 * (CROP_WIDTH + GAP) + GAP
    original = Image.open(images / "a.png").convert("RGB")
    shown = (GAP, GAP + LABEL, GAP + min(CROP_WIDTH, original.width), GAP + LABEL + min(CROP_HEIGHT, original.height))
    assert sheet.crop(shown).tobytes() == original.crop((0, 0, shown[2] - GAP, shown[3] - GAP - LABEL)).tobytes()
    status, printed, err = run(capsys, "sheet", *paths, "--out", tmp_path / "sheet.doc")
    assert (status, printed) == (1, "") and ".doc is no picture format" in err and err.count("\n") == 1
    before = (images / "a.png").read_bytes()
    status, printed, err = run(capsys, "sheet", *paths, "--out", images / "a.png")
    assert (status, printed) == (1, "") and "a.png is both input and output" in err
    assert (images / "a.png").read_bytes() == before
