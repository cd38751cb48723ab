"""The report: self-contained, honest about what is beside what, and alive in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from benchmarks import Steps, measure, photographs, planned
from PIL import Image

from mcodec.bench import anchors, readme, report, results
from mcodec.bench.bd import delta

pytest.importorskip("bjontegaard")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
#: Runs in the page after it has loaded; its findings are read from the title.
DRIVER = """
<script>
window.addEventListener("load", () => setTimeout(() => {
  const at = { before: $("over").style.clipPath };
  $("slide").value = 80;
  $("slide").dispatchEvent(new Event("input"));
  at.after = $("over").style.clipPath;
  const box = $("plot").getBoundingClientRect(), point = drawn[0];
  const where = { clientX: box.left + point.x, clientY: box.top + point.y };
  $("plot").dispatchEvent(new PointerEvent("pointermove", where));
  at.tip = $("plot").querySelector(".tip").innerText;
  $("picture").value = "a.png";
  $("picture").dispatchEvent(new Event("change"));
  $("plot").dispatchEvent(new PointerEvent("pointermove",
    { clientX: box.left + drawn[0].x, clientY: box.top + drawn[0].y }));
  at.pictureTip = $("plot").querySelector(".tip").innerText;
  at.left = $("left-note").textContent;
  at.decoded = $("under").naturalWidth;
  at.rows = $("bd").rows.length;
  at.wide = document.documentElement.scrollWidth > innerWidth;
  document.title = "FOUND " + JSON.stringify(at);
}, 100));
</script>
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Measurements of two codecs on two pictures, with crops and a report."""
    folder = tmp_path_factory.mktemp("report")
    images = photographs(folder / "images")
    coarse = Steps(name="coarse", settings="</script><b>", qualities=(1, 2, 4))
    measure(planned(Steps(qualities=(1, 2, 4, 8)), coarse, crops=1), images, folder)
    report.write(results.load(folder), anchors.choose(anchors.load("kodak"), ["vtm", "elic"]), folder)
    return folder


def data(page: str) -> dict[str, Any]:
    """The results inside of a page."""
    match = re.search(r'<script type="application/json" id="results">(.*?)</script>', page, re.DOTALL)
    assert match is not None
    found = json.loads(match[1])
    assert isinstance(found, dict)
    return found


def test_what_is_written(folder: Path) -> None:
    for name in ("report.html", "results.json", "table.md", "rd-psnr.png", "compressai/steps.json"):
        assert (folder / name).stat().st_size > 100, name
    with Image.open(folder / "rd-psnr.png") as image:
        assert image.format == "PNG" and image.width > 800
    assert set(json.loads((folder / "compressai/steps.json").read_text())) == {"name", "description", "results"}
    assert "| coarse |" in (folder / "table.md").read_text()


def test_the_page_needs_no_network(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?\s*(?:https?:)?//""", page)
    assert "@import" not in page and "fetch(" not in page


def test_published_and_measured_are_not_mixed(folder: Path) -> None:
    """Published curves have a list of their own; unless the pictures are theirs, no delta crosses over."""
    found = data((folder / "report.html").read_text())
    assert [c["codec"] for c in found["codecs"]] == ["steps", "coarse"]
    assert [p["name"] for p in found["published"]] == ["vtm", "elic"]
    assert found["comparable"] is False
    deltas = found["deltas"]["psnr"]
    assert set(deltas["steps"]) == {"coarse"} and set(deltas["vtm (published)"]) == {"elic (published)"}


def test_deltas_cross_over_on_the_published_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcodec.bench.report.page.KODAK", {"a.png", "b.png"})
    page = report.render(results.load(folder), anchors.choose(anchors.load("kodak"), ["vtm"]))
    assert set(data(page)["deltas"]["psnr"]["steps"]) == {"coarse", "vtm (published)"}


def test_committed_results_name_published_curves(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With their sources, and only where the pictures are theirs; the README's tables show the subject's."""
    found, published = results.load(folder), anchors.choose(anchors.load("kodak"), ["vtm", "elic"])
    assert results.summary(found, published)["bd_psnr_published"] == {}
    monkeypatch.setattr("mcodec.bench.results.KODAK", {"a.png", "b.png"})
    summary = results.summary(found, published)
    deltas = summary["bd_psnr_published"]
    assert set(deltas) == {"vtm", "elic"} and all("github" in entry["source"] for entry in deltas.values())
    curve = next(m for m in found.codecs if m.name == "steps").curve("psnr", found.pictures)
    expected = delta(published[0].curves["psnr"], curve)
    assert deltas["vtm"]["steps"]["rate_percent"] == round(expected.rate, 2)
    assert f"| vtm | {expected.rate:+.1f} % |" in readme.table(summary)
    assert "bd_ms_ssim" not in summary  # it was not measured


def test_codecs_are_compared_by_similarity_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pytorch_msssim")
    images = photographs(tmp_path / "images", ((176, 192), (192, 176)))
    codecs = [Steps(qualities=(1, 2, 4, 8)), Steps(name="other", qualities=(1, 2, 4))]
    measure(planned(*codecs, metrics=("psnr", "ms-ssim")), images, tmp_path)
    monkeypatch.setattr("mcodec.bench.results.KODAK", {"a.png", "b.png"})
    published = anchors.choose(anchors.load("kodak"), ["vtm", "hpcm-large"])
    summary = results.summary(results.load(tmp_path), published)
    assert set(summary["bd_psnr_published"]) == {"vtm", "hpcm-large"}
    assert set(summary["bd_ms_ssim_published"]) == {"vtm"}  # the other has no such curve
    found = summary["bd_ms_ssim"]["other"]["steps"]
    squared = summary["bd_psnr"]["other"]["steps"]
    assert found["rate_percent"] == 0 and found["ms_ssim_interval"] != squared["psnr_interval"]
    text = readme.table(summary, "ms-ssim")
    low, high = found["ms_ssim_interval"]
    assert f"{found['rate_percent']:+.1f} % | {low:.1f} to {high:.1f} |" in text
    assert "between, dB MS-SSIM" in text and "| vtm |" in text
    assert "| hpcm-large |" in readme.table(summary)


def test_names_cannot_end_the_script(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert data(page)["codecs"][1]["settings"] == "</script><b>" and page.count("</script>") == 2


def test_crops_are_near_the_wanted_size(folder: Path) -> None:
    found = data((folder / "report.html").read_text())
    assert len(found["crops"]) == 4 and set(found["originals"]) == {"a.png"}
    for crop in found["crops"]:
        assert crop["src"].startswith("data:image/webp;base64,")
        assert crop["bpp"] == pytest.approx(crop["bytes"] * 8 / (40 * 32), abs=1e-4)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")
@pytest.mark.parametrize("size", ["1200,900", "500,900"], ids=["desktop", "phone"])
def test_in_a_browser(folder: Path, tmp_path: Path, size: str) -> None:
    """Loads without a console message; the slider moves the border; hovering shows picture, bytes and settings."""
    page = (folder / "report.html").read_text().replace("</body>", DRIVER + "</body>")
    (tmp_path / "page.html").write_text(page)
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--window-size={size}"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", "--dump-dom"]
    command = [str(CHROMIUM), *options, f"file://{tmp_path / 'page.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    title = re.search(r"<title>FOUND (.*?)</title>", done.stdout, re.DOTALL)
    assert title is not None, done.stderr[-2000:]
    found = json.loads(title[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
    assert (found["before"], found["after"]) == ("inset(0px 0px 0px 50%)", "inset(0px 0px 0px 80%)")
    assert found["tip"].startswith("vtm (published)") and "github:" in found["tip"]
    assert "a.png" in found["pictureTip"] and "bytes" in found["pictureTip"] and "steps of 64" in found["pictureTip"]
    assert found["decoded"] == 40 and "bytes" in found["left"] and found["rows"] == 2
    assert found["wide"] is False, "the page scrolls sideways"
