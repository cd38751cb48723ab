"""The codec's benchmark on a GPU: it verifies first, measures encoding and decoding, and keeps rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from tiny import TINY, lively

from mcodec import decoding, encoding, postfilter
from mcodec.api import Codec
from mcodec.bench import gpu, speed


@pytest.fixture
def codecs() -> tuple[Codec, Codec]:
    """One to measure, with its transforms in bfloat16, and the reference."""
    return Codec(lively(TINY), b"tinytiny", bf16=True), Codec(lively(TINY), b"tinytiny")


def test_rows(codecs: tuple[Codec, Codec], tmp_path: Path) -> None:
    out, said = tmp_path / "gpu.jsonl", list[str]()
    pixels = gpu.picture(None, 96, 80)
    gpu.bench(codecs, pixels, (1, 2), (64, 128), 50, 2, out, ("generated", None), said.append)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["what"], r["batch"], r["tile"]) for r in rows[:4]] == [
        ("encode", 1, 64), ("decode", 1, 64), ("encode", 2, 64), ("decode", 2, 64)
    ]  # fmt: skip
    assert len(rows) == 8 and "same codes" in said[0]
    for row in rows:
        assert 0 < row["p20"] <= row["p50"] <= row["p80"] and 0 < row["coding_share"] < 1
        assert row["mpx_s"] == pytest.approx(96 * 80 * row["batch"] / row["p50"] / 1e6)
        assert set(row["parts"]) == {*speed.PARTS, "other", "whole"}
        idle = {"encode": set(), "decode": {"analysis", "choice"}}[row["what"]]
        assert {name for name in speed.PARTS if not row["parts"][name]} == idle
        assert row["coder"] in ("c", "numpy")
        assert row["lane_share"] == 0.001
    codecs[0].lane_share = 0.1
    gpu.bench(codecs, pixels, (1,), (64,), 50, 1, out, ("generated", None), said.append)
    printed = CliRunner().invoke(gpu.main, ["--table", "--out", str(out)]).output
    assert printed.count("| cpu | 96x80, 50 | encode |") == 5 and printed.count("\n") == 12
    assert printed.count("| 0.1% |") == 8 and printed.count("| 10.0% |") == 2


def test_parts_of_the_coder_on_tensors(codecs: tuple[Codec, Codec], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCODEC_ENTROPY", "tensor")
    monkeypatch.setenv("MCODEC_KERNELS", "reference")
    (row, _) = gpu.measure(codecs[0], gpu.picture(None, 40, 40), 1, 50, 1, {})
    assert row["parts"]["choice"] > 0 and row["parts"]["coder"] > 0


def test_nothing_is_timed_where_codes_differ(
    codecs: tuple[Codec, Codec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Codec.codes
    monkeypatch.setattr(codecs[1], "codes", lambda data: [stage ^ 1 for stage in read(codecs[1], data)])
    pixels, out = gpu.picture(None, 40, 40), tmp_path / "gpu.jsonl"
    with pytest.raises(gpu.Mismatch, match="codes that the CPU decodes are not as sent"):
        gpu.bench(codecs, pixels, (1,), (64,), 50, 1, out, ("generated", None), print)
    assert not out.exists()


def test_pictures_and_profile(codecs: tuple[Codec, Codec], tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    assert gpu.picture(root / "examples" / "photo.jpg", 50, 30).shape == (30, 50, 3)
    first, second = gpu.on_device(gpu.picture(None, 48, 40), 2, torch.device("cpu"))
    assert first.shape == (3, 40, 48) and not torch.equal(first, second)
    gpu.profile(codecs[0], gpu.picture(None, 40, 40), 50, tmp_path / "profile.txt")
    assert (tmp_path / "profile.txt").read_text().count("Self CPU %") == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device to measure")
def test_nothing_to_measure_without_a_gpu() -> None:
    result = CliRunner().invoke(gpu.main, [])
    assert result.exit_code == 0 and result.output == "no CUDA device: there is nothing to measure\n"


def test_on_a_gpu(gpu: torch.device, tmp_path: Path) -> None:
    """Encoding and decoding of tensors that never leave the device, and the row of it."""
    from mcodec.bench import gpu as bench

    codec, reference = Codec(lively(TINY), b"tinytiny", gpu, bf16=True), Codec(lively(TINY), b"tinytiny")
    pixels, out = bench.picture(None, 200, 150), tmp_path / "gpu.jsonl"
    pictures = bench.on_device(pixels, 3, gpu)
    for tile in (64, 1024):
        codec.tile = tile
        files = codec.encode_batch(pictures, 60)
        with torch.no_grad():
            decoded = codec.decode_tensors(files)
        for picture, file, image in zip(pictures, files, decoded, strict=True):
            assert image.device.type == "cuda" and image.dtype == torch.uint8 and image.shape == picture.shape
            sent = torch.from_numpy(codec.decode_array(file)).permute(2, 0, 1)
            assert (image.cpu().int() - sent.int()).abs().max() <= 1
            assert all(map(torch.equal, codec.codes(file), reference.codes(file)))
    bench.bench((codec, reference), pixels, (1, 2), (64, 1024), 50, 1, out, ("generated", None), print)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 8 and all(row["peak_memory_mib"] > 0 for row in rows)


@pytest.mark.parametrize("tile", [64, 1024])
def test_the_host_waits_for_streams_alone(gpu: torch.device, monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    """No synchronisation between the pixels and the streams, and none between the streams and the pixels."""
    from mcodec.bench import gpu as bench

    codec = Codec(lively(TINY).requires_grad_(False), b"tinytiny", gpu, bf16=True)
    codec.tile = tile
    pictures = bench.on_device(bench.picture(None, 200, 150), 3, gpu)
    files = codec.encode_batch(pictures, 60)  # kernels are compiled, memory is there
    codec.decode_tensors(files)

    def waits(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            torch.cuda.set_sync_debug_mode("default")
            try:
                return call(*args)
            finally:
                torch.cuda.set_sync_debug_mode("error")

        return wrapped

    monkeypatch.setattr(encoding, "_results", waits(encoding._results))
    monkeypatch.setattr(postfilter, "fit", waits(postfilter.fit))
    engine, opened = codec._engine(), [codec._open(file, None) for file in files]
    checks: list[Callable[[], None]] = []
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        codec.encode_batch(pictures, 60)
        decoding.tensors(engine, opened, decoding.read_codes(engine, opened, checks=checks))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for check in checks:
        check()
