"""The benchmark runner: metrics against their definitions, rows that are files, resumption, honest means."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
from benchmarks import Steps, measure, photographs, planned, quiet
from PIL import Image

from mcodec import bench, rate
from mcodec.bench import anchors, codecs, memory, metrics, published, readme, results
from mcodec.bench.bd import Curve, NotComparable, delta
from mcodec.bench.pictures import Picture, PixelsOf, look
from mcodec.bench.protocol import Unavailable
from mcodec.bench.rd import Runner, matched, plan
from mcodec.errors import BenchError
from mcodec.model.similarity import SIDE

ROOT = Path(__file__).parent.parent


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return photographs(tmp_path / "images")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


# ---- modules ----


def test_every_module_has_a_place() -> None:
    paths = [p for p in (ROOT / "bench").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()]
    missing = [path.stem for path in paths if f"`{path.stem}`" not in (bench.__doc__ or "")]
    assert missing == ["__init__"]


def test_data_flows_one_way() -> None:
    """What reads rows needs nothing that measures, and codecs do not need their registry."""
    script = (
        "import sys, mcodec.bench.published, mcodec.bench.report, mcodec.bench.learned; "
        "assert not {'mcodec.bench.rd', 'mcodec.bench.codecs'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- metrics ----


def test_psnr() -> None:
    a = np.zeros((4, 4, 3), np.uint8)
    assert metrics.psnr(a, a + 1) == pytest.approx(48.1308, abs=1e-4)
    assert metrics.psnr(a, a) == metrics.LOSSLESS


def test_targets_and_benchmark_measure_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    a = np.zeros((170, 170, 3), np.uint8)
    for name in ("psnr", "ms_ssim"):
        monkeypatch.setattr(rate, name, lambda x, y, peak: (x is a, y is a, peak))
        assert getattr(metrics, name)(a, a) == (True, True, 255)


def test_ms_ssim() -> None:
    library = pytest.importorskip("pytorch_msssim")
    a = np.random.default_rng(0).integers(0, 256, (161, 170, 3)).astype(np.uint8)
    assert metrics.ms_ssim(a, a) == pytest.approx(1, abs=1e-6)
    assert (metrics.ms_ssim(a, a ^ 64) or 1) < 0.99
    assert SIDE == 161 and metrics.ms_ssim(a[:160], a[:160]) is None
    with pytest.raises(AssertionError, match="larger than 160"):  # so the library says
        library.ms_ssim(*[torch.zeros(1, 3, 160, 170)] * 2)
    assert metrics.METRICS["ms-ssim"].shown(0.99) == pytest.approx(20)


def test_ssimulacra2() -> None:
    pytest.importorskip("ssimulacra2")
    a = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert metrics.ssimulacra2(a, a) == pytest.approx(100)
    assert metrics.ssimulacra2(a, a // 2) < 60


def test_metrics_that_cannot_be_computed_are_skipped_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lpips", None)
    chosen, skipped = metrics.choose(["lpips"])
    assert [m.name for m in chosen] == ["psnr"] and "lpips cannot be imported" in skipped["lpips"]
    with pytest.raises(BenchError, match="no metric 'vmaf'; there are psnr, ms-ssim"):
        metrics.choose(["vmaf"])


# ---- Bjontegaard deltas ----


def test_delta_of_a_shifted_curve() -> None:
    """20 % less rate at every quality is a BD-rate of -20 %; 1 dB more at every rate is a BD-PSNR of 1."""
    bpp, db = [0.1, 0.2, 0.4, 0.8, 1.6], [26.0, 29.0, 32.0, 35.0, 38.0]
    found = delta(Curve(bpp, db), Curve([0.8 * b for b in bpp], db))
    assert found.rate == pytest.approx(-20, abs=0.01) and found.quality_interval == (26.0, 38.0)
    found = delta(Curve(bpp, db), Curve(bpp, [d + 1 for d in db]))
    assert found.quality == pytest.approx(1) and found.rate_interval == (0.1, 1.6)


@pytest.mark.parametrize(
    ("bpp", "db", "message"),
    [
        ([0.1, 0.2, 0.4], [40.0, 43.0, 46.0], r"overlap nowhere"),
        ([0.1, 0.2, 0.4], [37.5, 43.0, 46.0], r"overlap from 37\.50 to 38\.00 only"),
        ([0.1, 0.2, 0.4], [27.0, 33.0, 32.0], r"does not rise from 0\.200 bpp \(33\.00\) to 0\.400 bpp \(32\.00\)"),
        ([0.1], [27.0], "at least two points"),
    ],
)
def test_curves_that_are_not_compared(bpp: list[float], db: list[float], message: str) -> None:
    with pytest.raises(NotComparable, match=message):
        delta(Curve([0.1, 0.4, 1.6], [26.0, 32.0, 38.0]), Curve(bpp, db))


def test_deltas_of_the_shipped_curves() -> None:
    """BD-rates against VTM, computed elsewhere from the untrimmed figures, are reproduced within 0.1 points."""
    curves = {p.name: p.curves["psnr"] for p in anchors.load("kodak")}
    expected = json.loads((Path(__file__).parent / "bd_vs_vtm.json").read_text())
    assert set(expected) == set(curves) and len(curves) > 80
    for name, percent in expected.items():
        assert delta(curves["vtm"], curves[name]).rate == pytest.approx(percent, abs=0.1), name


# ---- published curves ----


def test_shipped_curves_have_sources() -> None:
    curves = anchors.load("kodak")
    assert all(curve.source.startswith(("github:", "https://")) for curve in curves)
    assert [c.name for c in anchors.choose(curves, None)] == list(anchors.SELECTION)
    assert [c.name for c in anchors.choose(curves, ["elic", "vtm"])] == ["elic", "vtm"]
    with pytest.raises(BenchError, match="no published curve 'elik'"):
        anchors.choose(curves, ["elik"])


@pytest.mark.parametrize("text", ["[]", "{", '{"x": {"bpp": [1]}}', '{"x": {"bpp": [1], "psnr": [], "source": ""}}'])
def test_files_that_hold_no_curves(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(BenchError, match=r"x\.json is no file of published curves"):
        anchors.load(tmp_path / "x.json")
    with pytest.raises(BenchError, match="cannot read"):
        anchors.load(tmp_path / "none.json")


def test_agreement_with_published_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A measured curve that is the published one agrees; one with 20 % more bits does not."""
    names = sorted(anchors.KODAK)
    curve = next(p for p in anchors.load("kodak") if p.name == "webp").curves["psnr"]
    for scale, holds in ((1.0, True), (1.2, False)):
        points: dict[str, list[dict[str, object]]] = {}
        for name in names:
            pairs = zip(curve.bpp, curve.quality, strict=True)
            points[name] = [{"bpp": r * scale, "metrics": {"psnr": q}} for r, q in pairs]
        measured = results.Measured({"codec": "webp-default"}, list(range(len(curve.bpp))), points, None)
        found = published.check(results.Results({}, [measured], names, {}, []), anchors.load("kodak"))
        assert [(item.pair.codec, item.holds) for item in found] == [("webp-default", holds)]
    with pytest.raises(BenchError, match="means of the 24 Kodak pictures; these are 3"):
        published.check(results.Results({}, [measured], names[:3], {}, []), anchors.load("kodak"))


# ---- codecs ----


@pytest.mark.parametrize("name", [n for n in codecs.NAMES if n not in codecs.LEARNED_PEERS])
def test_every_codec_goes_there_and_back(name: str) -> None:
    """At its own size, with rate and quality that rise from the first default quality to the last."""
    try:
        codec = codecs.make(name)
    except Unavailable as error:
        pytest.skip(str(error))
    y, x = np.mgrid[:60, :90]
    pixels = np.stack([2 * x, 3 * y, 128 + 60 * np.sin(x / 7)], -1).astype(np.uint8)
    ends = [codec.encode(pixels, q) for q in (codec.qualities[0], codec.qualities[-1])]
    decoded = [codec.decode(data) for data in ends]
    assert all(d.shape == pixels.shape and d.dtype == np.uint8 for d in decoded)
    assert len(ends[0]) < len(ends[1])
    assert metrics.psnr(pixels, decoded[0]) < metrics.psnr(pixels, decoded[1])
    assert metrics.psnr(pixels, decoded[1]) > 25


def test_codecs_that_cannot_run_are_skipped_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = __import__("sys").modules
    for module in ("pillow_jxl", "compressai"):
        monkeypatch.setitem(modules, module, None)
    what = plan(["jpeg", "jxl", "mbt2018-mean:weights.pth"])
    assert [c.name for c in what.codecs] == ["jpeg"]
    assert "pillow-jxl-plugin cannot be imported" in what.skipped["jxl"]
    assert "CompressAI cannot be imported" in what.skipped["mbt2018-mean:weights.pth"]
    with pytest.raises(BenchError, match="no codec can run: jxl"):
        plan(["jxl"])


@pytest.mark.parametrize(
    ("spec", "message"), [("bpg", "no codec 'bpg'; there are mcodec, jpeg"), ("jpeg:x", "jpeg takes no weights")]
)
def test_names_that_are_no_codec(spec: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        codecs.make(spec)


def test_qualities_for_a_codec_that_is_not_there() -> None:
    with pytest.raises(BenchError, match="qualities for webp"):
        plan(["jpeg"], qualities={"webp": (1,)})
    with pytest.raises(BenchError, match="jpeg has whole qualities only"):
        plan(["jpeg"], qualities={"jpeg": (1, 2.5)})


def test_matched_size() -> None:
    codec = codecs.make("jpeg")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    sizes = {q: len(codec.encode(pixels, q)) for q in range(5, 96)}
    for size in (1, 3000, 5000, 10**6):
        quality, data = matched(codec, pixels, codec.qualities, size)
        nearest = min(abs(s - size) for s in sizes.values())
        assert abs(len(data) - size) <= nearest + 100 and sizes[int(quality)] == len(data)


# ---- rows ----


def test_rows_are_files(images: Path, out: Path) -> None:
    """Bytes are those of the encoder's output, metrics those of its decoded picture, means those of the rows."""
    what = plan(["jpeg"], ["psnr"], {"jpeg": (10, 90)}, measure_memory=False)
    Runner(what, look(images), out, quiet).run()
    found = results.load(out)
    rows = found.codecs[0].points["a.png"]
    pixels = np.asarray(Image.open(images / "a.png"))
    by_hand = [what.codecs[0].encode(pixels, q) for q in (10, 90)]
    assert [row["bytes"] for row in rows] == [len(data) for data in by_hand]
    assert rows[0]["bpp"] == len(by_hand[0]) * 8 / (40 * 32)
    assert rows[0]["metrics"]["psnr"] == metrics.psnr(pixels, what.codecs[0].decode(by_hand[0]))
    format = results.compressai(found, found.codecs[0])
    assert set(format) == {"name", "description", "results"}
    both = [found.codecs[0].points[name][0]["bpp"] for name in ("a.png", "b.png")]
    assert format["results"]["bpp"][0] == pytest.approx(np.mean(both))
    assert set(format["results"]) == {"quality", "bpp", "psnr-rgb", "encoding_time", "decoding_time"}
    assert min(format["results"]["encoding_time"]) > 0
    assert not list(out.glob(".coding-*"))


def test_mcodec_rows_are_its_own_files(images: Path, out: Path) -> None:
    import mcodec

    what = plan(["mcodec"], ["psnr"], {"mcodec": (20, 70)}, measure_memory=False)
    Runner(what, look(images), out, quiet).run()
    codec = mcodec.load(device="cpu")
    for name, rows in results.load(out).codecs[0].points.items():
        pixels = np.asarray(Image.open(images / name))
        for row, quality in zip(rows, (20, 70), strict=True):
            data = codec.encode(pixels, quality)
            assert row["bytes"] == len(data)
            assert row["metrics"]["psnr"] == metrics.psnr(pixels, np.asarray(codec.decode(data)))


def test_mcodec_uses_no_more_threads_than_it_says() -> None:
    assert codecs.make("mcodec", threads=2)._codec.tile_workers == 1  # type: ignore[attr-defined]


def test_code_of_another_commit_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what codes pictures: neither documents nor results are code."""
    versions, given = [], {"ls-files": "machine.py", "describe": "c", "log": "abc", "diff": ""}
    monkeypatch.setattr("mcodec.bench.machine._git", lambda command, *_: given[command])
    for change in ({"describe": "d-dirty"}, {"log": "bcd"}, {"diff": "+ one"}, {"diff": "+ two"}):
        versions.append(codecs.make("mcodec").version)
        given |= change
    versions.append(codecs.make("mcodec").version)
    assert " at abc, weights " in versions[0] and versions[0] == versions[1] and len(set(versions)) == 4
    monkeypatch.setattr("mcodec.bench.machine.commit", lambda: None)
    assert " at " not in codecs.make("mcodec").version


def test_curves_are_of_the_pictures_that_have_the_metric(tmp_path: Path, out: Path) -> None:
    """MS-SSIM is not defined for small ones: their rates are not of its curve."""
    images = photographs(tmp_path / "images", ((40, 32), (176, 192)))
    measure(planned(Steps(), metrics=("psnr", "ms-ssim")), images, out)
    found = results.load(out)
    measured = found.codecs[0]
    curve, other = (measured.curve("ms-ssim", pictures) for pictures in (found.pictures, ["b.png"]))
    assert found.pictures == ["a.png", "b.png"] and curve == other and curve is not None
    assert measured.curve("psnr", found.pictures) != measured.curve("psnr", ["b.png"])
    assert measured.curve("ms-ssim", ["a.png"]) is None


def test_every_run_states_where(images: Path, out: Path) -> None:
    run = next(measure(planned(Steps()), images, out).of("run"))
    assert {"date", "commit", "processor", "cores", "device", "threads", "python", "versions"} <= set(run)
    assert run["threads"] == 1 and run["device"] == "cpu" and "torch" in run["versions"]


def test_an_interrupt_loses_nothing(images: Path, out: Path) -> None:
    """Ctrl-C in the middle leaves a valid file; the second run codes only what is missing, and the third nothing."""
    first = Steps(interrupt_at=6)  # a.png: warm-up and three qualities; b.png: warm-up, then Ctrl-C
    with pytest.raises(KeyboardInterrupt):
        measure(planned(first), images, out)
    assert results.load(out).pictures == ["a.png"]
    second = Steps()
    rows = measure(planned(second), images, out)
    assert second.calls == [(48, 1), (48, 1), (48, 2), (48, 4)]  # the warm-up and what was missing
    lines = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert len([row for row in lines if row["kind"] == "point"]) == len(list(rows.of("point"))) == 6
    assert results.load(out).pictures == ["a.png", "b.png"]
    third = Steps()
    measure(planned(third), images, out)
    assert third.calls == []


def test_a_line_that_was_cut_off_is_measured_again(images: Path, out: Path) -> None:
    measure(planned(Steps()), images, out)
    text = (out / "rows.jsonl").read_bytes()
    (out / "rows.jsonl").write_bytes(text[:-20])
    codec = Steps()
    rows = measure(planned(codec), images, out)
    assert codec.calls == [(48, 4), (48, 4)] and len(list(rows.of("point"))) == 6


def test_what_is_another_measurement(images: Path, out: Path) -> None:
    """Another version, picture, metric or number of threads is measured again; old rows leave the curves."""
    measure(planned(Steps()), images, out)
    for codec, metric, threads in [
        (Steps(version="2"), "psnr", 1),
        (Steps(version="2"), "ssimulacra2", 1),
        (Steps(version="2"), "psnr", 2),
    ]:
        measure(replace(planned(codec, metrics=("psnr", metric)), threads=threads), images, out)
        assert len(codec.calls) == 8, (metric, threads)
    Image.new("RGB", (40, 32), "navy").save(images / "a.png")
    codec = Steps(version="2")
    measure(replace(planned(codec), threads=2), images, out)
    assert {width for width, _ in codec.calls} == {40}
    found = results.load(out)
    assert found.codecs[0].codec["version"] == "2" and len(found.codecs[0].points["a.png"]) == 3


def test_times_of_another_machine_are_others(images: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is copied elsewhere is measured again: one processor is named beside the means."""
    measure(planned(Steps()), images, out)
    monkeypatch.setattr("mcodec.bench.machine._processor", lambda: "another")
    codec = Steps()
    measure(planned(codec), images, out)
    assert len(codec.calls) == 8
    assert {row["processor"] for rows in results.load(out).codecs[0].points.values() for row in rows} == {"another"}


def test_a_failure_marks_the_picture_for_all(images: Path, out: Path) -> None:
    measure(planned(Steps(), Steps(name="picky", fail_on=(48,))), images, out)
    found = results.load(out)
    assert [m.name for m in found.codecs] == ["steps", "picky"]
    assert found.pictures == ["a.png"] and found.left_out == {"b.png": "picky: RuntimeError: no such width"}


def test_a_codec_that_always_fails_is_left_out(images: Path, out: Path) -> None:
    measure(planned(Steps(), Steps(name="broken", fail_on=(40, 48))), images, out)
    found = results.load(out)
    assert [m.name for m in found.codecs] == ["steps"] and found.pictures == ["a.png", "b.png"]
    assert found.left_out == {"broken": "RuntimeError: no such width"}


def test_folders_without_results(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="holds no picture"):
        look(tmp_path)
    with pytest.raises(BenchError, match=r"there is no rows\.jsonl"):
        results.load(tmp_path)
    for text in ("{", "[]", "{}", "\xff"):
        (tmp_path / "rows.jsonl").write_text(f'{{"kind": "run"}}\n{text}\n', "latin-1")
        with pytest.raises(BenchError, match=r"rows\.jsonl is no file of measurements: line 2"):
            results.load(tmp_path)


# ---- memory ----


def test_memory_is_that_of_the_codec_alone(images: Path) -> None:
    """Not of this process, which has torch loaded: a peak that survived exec would be."""
    found = memory.measure("jpeg", "cpu", 1, 50, images / "a.png")
    assert 5 < found["encode_idle_mib"] <= found["encode_mib"] < 150
    assert 5 < found["decode_idle_mib"] <= found["decode_mib"] < 150


def test_memory_is_that_of_the_run(images: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of the run before, at another quality."""
    monkeypatch.setattr(memory, "measure", lambda *a: {"encode_mib": a[3], "decode_mib": a[3]})
    for quality in (10, 50, 10):
        Runner(plan(["jpeg"], ["psnr"], {"jpeg": (5, quality)}), look(images), out, quiet).run()
    found = results.load(out).codecs[0].memory
    assert found is not None and found["encode_mib"] == 10


def test_memory_of_a_codec_that_fails(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"encode in a process of its own: .*none\.png"):
        memory.measure("jpeg", "cpu", 1, 50, tmp_path / "none.png")


def test_memory_of_a_process_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.subprocess, "run", lambda *_, **__: CompletedProcess([], -9, "", ""))
    with pytest.raises(BenchError, match="encode in a process of its own: ended with status -9"):
        memory.measure("jpeg", "cpu", 1, 50, tmp_path / "a.png")


# ---- committed results ----


def test_readme_table_is_current() -> None:
    """The README shows the committed results, and those are of the released weights."""
    from mcodec import weights

    text = (ROOT / "README.md").read_text()
    assert readme.fill(text, ROOT / "bench/results") == text
    for file, codec, model in (
        ("kodak", "mcodec", None), ("kodak-ms-ssim", "mcodec:cascade-ms-ssim", "cascade-ms-ssim"),
    ):  # fmt: skip
        committed = readme.read(ROOT / f"bench/results/{file}.json")
        sha256 = weights.read_card(weights.find(model))["sha256"]
        assert next(iter(committed["curves"])) == codec and set(committed["pictures"]) == anchors.KODAK
        assert committed["curves"][codec]["version"].endswith(f"weights {sha256[:16]}")


def test_readme_with_efforts(tmp_path: Path) -> None:
    """What more effort gives against published curves stands beside, and the command says how to measure it."""
    summary = readme.read(ROOT / "bench/results/kodak.json")
    curves = {name: curve for name, curve in summary["curves"].items() if not name.startswith("mcodec@")}
    other = {**curves["mcodec"], "results": {"quality": [10, 20.5], "bpp": [1, 2]}}
    summary["curves"] = {"mcodec": curves.pop("mcodec"), "mcodec@5": other, **curves}
    for found in summary["bd_psnr_published"].values():
        found["mcodec@5"] = {"rate_percent": -12.34, "psnr_interval": [30, 40]}
    (tmp_path / "some.json").write_text(json.dumps(summary))
    text = readme.fill("before\n<!-- results some.json psnr -->\nold\n<!-- /results -->\nafter", tmp_path)
    assert text.startswith("before\n<!-- results some") and text.endswith("`.\n<!-- /results -->\nafter")
    assert text.count(" | -12.3 % | 30.0 to 40.0 |\n") == len(summary["bd_psnr_published"])
    assert f"--codecs mcodec,mcodec@5,{','.join(curves)} --qualities mcodec@5=10,20.5`" in text


def test_tables_name_the_gpu() -> None:
    summary = readme.read(ROOT / "bench/results/kodak.json")
    assert "networks on" not in readme.table(summary)
    summary["run"]["device"] = "NVIDIA H100"
    assert f"threads of {summary['run']['processor']}, networks on NVIDIA H100; peak" in readme.table(summary)


def test_readme_without_results(tmp_path: Path) -> None:
    for text, said in (
        ("# Nothing here", "no <!-- results FILE METRIC"),
        ("<!-- results x.json lpips -->\n\n<!-- /results -->", "by psnr or ms-ssim, not by 'lpips'"),
        ("<!-- results none.json psnr -->\n\n<!-- /results -->", r"cannot read results from .*none\.json"),
    ):
        with pytest.raises(BenchError, match=said):
            readme.fill(text, tmp_path)
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(BenchError, match=r"x\.json is no results file"):
        readme.read(tmp_path / "x.json")


def test_pixels_are_read_one_picture_at_a_time(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(Picture, "pixels", lambda picture: read.append(picture.name) or np.zeros((1, 1, 3), np.uint8))
    found = PixelsOf(look(images))
    assert (len(found), read) == (2, []) and len(list(found)) == 2 and read == ["a.png", "b.png"]
