"""The command line through real files: what it prints, what it writes, how it fails."""

from __future__ import annotations

import errno
import functools
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from mcodec import container, weights
from mcodec.cli import main as entry
from mcodec.cli import many
from mcodec.cli.options import FILE, Folder, reason
from mcodec.image import Raster


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """(exit status, standard output, standard error) of a command line."""
    status = entry.run([str(a) for a in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path, status: int = 1) -> str:
    """The message of a command line that must fail in one line."""
    got, out, err = run(capsys, *arguments)
    assert (got, out) == (status, "")
    assert err.startswith("mcodec: error: ") and err.count("\n") == 1, err
    return err.removeprefix("mcodec: error: ")


def smooth() -> NDArray[np.uint8]:
    """Smooth colour and an edge."""
    y, x = np.mgrid[:50, :70]
    return np.stack([3 * x, 4 * y, 200 * (x > y)], -1).astype(np.uint8)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A small picture."""
    path = tmp_path / "in.png"
    Image.fromarray(smooth()).save(path)
    return path


_load = weights.load
_kept = functools.cache(weights.load)


@pytest.fixture(autouse=True)
def _loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The released weights, which most commands below load, are read once per process."""
    monkeypatch.setattr(weights, "load", lambda path: _kept(path) if path.parent == weights.folder() else _load(path))


@pytest.fixture(scope="module")
def released() -> bytes:
    """The picture as a .mci file, made once: to load the released weights takes longer than most tests."""
    import mcodec

    return mcodec.load().encode(smooth())


@pytest.fixture
def coded(picture: Path, released: bytes) -> Path:
    """The picture as a .mci file beside it."""
    path = picture.with_suffix(".mci")
    path.write_bytes(released)
    return path


# ---- help ----


@pytest.mark.parametrize("command", [*entry.cli.commands, *(f"bench {name}" for name in entry.bench.commands)])
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, *command.split(), "--help")
    assert status == 0
    assert "Examples:" in out and f"  mcodec {command}" in out


@pytest.mark.parametrize(
    ("words", "found"),
    [("mcodec enc", ["encode"]), ("mcodec encode --target-b", ["--target-bytes", "--target-bpp"])],
)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(
    shell: str, words: str, found: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    last = len(words.split()) - 1
    monkeypatch.setenv("_MCODEC_COMPLETE", f"{shell}_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", words.split()[last] if shell == "fish" else str(last))
    with pytest.raises(SystemExit) as stopped:
        entry.run([])
    out = capsys.readouterr().out
    assert stopped.value.code == 0 and all(name in out for name in found) and "--quality" not in out


def test_help_names_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    from mcodec.model import PRESETS

    names = " ".join(run(capsys, "train", "--help")[1].partition("Model:")[2].partition(".")[0].split())
    assert set(names.replace(" or ", ", ").split(", ")) == set(PRESETS)


def test_help_without_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys)
    assert status == 0
    assert all(f"\n  {command} " in out for command in entry.cli.commands)


def test_help_and_info_do_not_import_torch(tmp_path: Path) -> None:
    (tmp_path / "x.mci").write_bytes(b"not one")
    script = (
        "import sys; from mcodec.cli.main import run; "
        "assert run(['--help']) == 0; assert run(['info', 'x.mci']) == 1; assert run(['models']) == 0; "
        "assert 'torch' not in sys.modules; "
        "import mcodec; assert mcodec.rate.encode_to and mcodec.verification.verify"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_version_names_weights_and_backends(capsys: pytest.CaptureFixture[str]) -> None:
    import mcodec
    from mcodec import entropy, weights

    status, out, _ = run(capsys, "--version")
    default = next(card for card in weights.list_models() if card["default"])
    assert status == 0
    assert out.splitlines()[0] == f"mcodec {mcodec.__version__}"
    assert f"{weights.DEFAULT} {default['sha256'][:8]}" in out
    assert f"entropy coder {entropy.backend()}, torch " in out


# ---- there and back ----


def test_default_names_and_report(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "encode", picture)
    coded = picture.with_suffix(".mci")
    size = coded.stat().st_size
    assert (status, err) == (0, "")
    assert out.startswith(f"{coded}: {size:,} bytes, {8 * size / 3500:.2f} bpp, ") and out.endswith(" s\n")
    picture.unlink()
    status, out, err = run(capsys, "decode", coded)
    assert (status, err) == (0, "") and out.startswith(f"{picture}: 70 x 50, ")
    with Image.open(picture) as image:
        assert (image.size, image.mode, image.format) == ((70, 50), "RGB", "PNG")


@pytest.mark.parametrize(("suffix", "format"), [(".jpg", "JPEG"), (".webp", "WEBP"), (".bmp", "BMP")])
def test_suffix_chooses_the_format(
    suffix: str, format: str, coded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = coded.with_name(f"copy{suffix}")
    assert run(capsys, "decode", coded, out)[0] == 0
    with Image.open(out) as image:
        assert (image.size, image.format) == ((70, 50), format)


def test_command_line_and_api_write_the_same_file(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import mcodec

    out = picture.with_name("q80.mci")
    assert run(capsys, "encode", picture, out, "-q", "80")[0] == 0
    with Image.open(picture) as image:
        assert out.read_bytes() == mcodec.load().encode(image.convert("RGB"), quality=80)


def test_files_for_a_gpu(picture: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """More lanes, a few bytes more, the same picture."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(picture)
    files, pictures = [], []
    for name, *options in (("few",), ("many", "--for-gpu")):
        out, back = picture.with_name(f"{name}.mci"), picture.with_name(f"{name}.png")
        assert run(capsys, "encode", picture, out, "-q", "95", "--model", model, *options)[0] == 0
        assert run(capsys, "decode", out, back, "--model", model)[0] == 0
        files.append(out.read_bytes())
        pictures.append(back.read_bytes())
    few, many = (container.unpack(data).codes[0] for data in files)
    assert many > few and len(files[0]) < len(files[1]) <= 1.01 * len(files[0])
    assert pictures[0] == pictures[1]


def test_output_into_a_folder(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = picture.with_name("there")
    folder.mkdir()
    assert run(capsys, "encode", picture, folder)[0] == 0
    assert (folder / "in.mci").is_file()


def test_force_overwrites(picture: Path, coded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = coded.read_bytes()
    coded.write_bytes(b"old")
    assert run(capsys, "encode", picture, "--force")[0] == 0
    assert coded.read_bytes() == good


def test_info(coded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "info", coded)
    assert status == 0 and "70" in out and "50" in out
    status, out, _ = run(capsys, "info", coded, "--json")
    fields = json.loads(out)
    assert status == 0 and (fields["width"], fields["height"]) == (70, 50)


def test_info_on_stages_names_the_file(coded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert str(coded) in fails(capsys, "info", coded, "--stages", "--max-pixels", "99")


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "models")
    assert status == 0 and "* cascade " in out
    status, out, _ = run(capsys, "models", "--json")
    cards = json.loads(out)
    assert status == 0 and [c["file"] for c in cards if c["default"]] == ["cascade.safetensors"]


# ---- failures ----


@pytest.mark.parametrize("command", ["encode", "decode", "info", "export"])
def test_missing_input(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.png" in fails(capsys, command, tmp_path / "nowhere.png")
    assert list(tmp_path.iterdir()) == []


def test_not_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.png").write_text("no pixels here")
    assert "notes.png" in fails(capsys, "encode", tmp_path / "notes.png")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.png"]


def _foreign(data: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + data


def _truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


def _emptied(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [_foreign, _truncated, _flipped, _emptied])
def test_damaged_file(
    damage: Callable[[bytes], bytes], coded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = coded.with_name("bad.mci")
    bad.write_bytes(damage(coded.read_bytes()))
    fails(capsys, "decode", bad)
    assert not bad.with_suffix(".png").exists()
    fails(capsys, "info", bad)


def test_limit_of_pixels(coded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = container.unpack(coded.read_bytes())
    bomb, target = coded.with_name("bomb.mci"), coded.with_name("bomb.png")
    bomb.write_bytes(container.pack(replace(file, header=replace(file.header, width=16384, height=16384, tile=16384))))
    message = "picture of 16384x16384: more than 178956970 pixels, the limit for decoding; max_pixels (--max-pixels)"
    assert message in fails(capsys, "decode", bomb)
    assert message in fails(capsys, "info", "--stages", bomb)
    assert run(capsys, "info", bomb)[0] == 0
    status, out, _ = run(capsys, "verify", bomb)
    assert status == 1 and out.startswith(f"{bomb}: FAILED, {message}")
    assert not target.exists()
    pixels = file.header.width * file.header.height
    assert "--max-pixels" in fails(capsys, "decode", coded, target, "--max-pixels", pixels - 1)
    assert run(capsys, "decode", coded, target, "--max-pixels", pixels)[0] == 0
    assert run(capsys, "verify", "--deep", coded, "--max-pixels", pixels)[0] == 0


TOO_LARGE = (
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
)


@pytest.mark.parametrize("error", TOO_LARGE, ids=["python", "cpu", "cuda"])
def test_one_picture_too_large(
    error: Exception, picture: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails in one line, and the rest of the files goes on."""
    from mcodec.api import Codec

    encode = Codec.encode

    def limited(self: Codec, image: Raster, *arguments: Any) -> bytes:
        if image.size[0] > 100:
            raise error
        return encode(self, image, *arguments)

    monkeypatch.setattr(Codec, "encode", limited)
    large, out = picture.with_name("a.png"), picture.with_name("out")
    Image.new("RGB", (101, 8)).save(large)
    assert fails(capsys, "encode", large) == "not enough memory for this picture\n"
    status, text, err = run(capsys, "encode", picture.parent, out)
    assert (status, text) == (1, "1 done, 0 skipped, 1 failed\n")
    assert err == f"mcodec: error: {large}: not enough memory for this picture\n"


def test_a_plan_is_gone_through_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file is looked for among all others: a folder may hold a million."""
    plan = [(tmp_path / f"{i}.png", tmp_path / f"{i}.mci") for i in range(20)]
    for _, target in plan[::2]:
        target.touch()
    compared: list[object] = []
    monkeypatch.setattr(type(tmp_path), "__eq__", lambda one, other: compared.append(one) or one is other)
    assert many.run(plan, lambda jobs: lambda source, target: {}, 1, True, False) == 0
    monkeypatch.undo()
    rows = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert [row["status"] for row in rows] == ["skipped"] * 10 + ["done"] * 10
    targets = [row["target"] for row in rows]
    assert targets[:10] == [str(target) for _, target in plan[::2]] and len(set(targets)) == 20
    assert not compared


def test_work_in_parts(picture: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Below a common folder, namesakes of other runs are not taken for what is done."""
    base, out, back = picture.with_name("base"), picture.with_name("out"), picture.with_name("back")
    for name in ("a/1.png", "b/1.png", "b/1.bmp"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(smooth()).save(base / name)
    relative = ("--relative-to", base, "--model", model)
    for names in (["a/1.png"], ["b/1.png"], ["b/1.bmp", "b/1.png"]):
        assert run(capsys, "encode", *(base / name for name in names), out, *relative)[0] == 0
    assert run(capsys, "encode", base, out, "--recursive", *relative)[1] == "0 done, 3 skipped, 0 failed\n"
    assert run(capsys, "decode", out / "b", back, "--relative-to", out, "--model", model)[0] == 0
    found = {path.relative_to(picture.parent).as_posix() for root in (out, back) for path in root.rglob("*.*")}
    assert found == {"out/a/1.png.mci", "out/b/1.png.mci", "out/b/1.bmp.mci", "back/b/1.png.png", "back/b/1.bmp.png"}
    assert fails(capsys, "encode", picture, out, *relative) == f"{picture} is not below {base}\n"
    assert "is not below" in fails(capsys, "encode", picture, out, "--relative-to", picture)
    assert "a folder to write into is needed" in run(capsys, "encode", base / "a/1.png", *relative)[2]


def test_names_that_differ_in_case(
    picture: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a file system takes them for one, the second would be taken for what is done."""
    out = picture.with_name("out")
    for name in ("x/A.png", "y/a.png"):
        (picture.parent / name).parent.mkdir()
        Image.fromarray(smooth()).save(picture.parent / name)
    command = ("encode", picture.parent / "x/A.png", picture.parent / "y/a.png", out, "--model", model)
    if (picture.parent / "X").exists():  # this file system does
        assert many._ignores_case(out / "below") and fails(capsys, *command) == "several files would become a.mci\n"
        return
    assert run(capsys, *command)[1] == "2 done, 0 skipped, 0 failed\n"
    monkeypatch.setattr(many, "_ignores_case", lambda _: True)
    assert fails(capsys, *command) == "several files would become a.mci\n"
    monkeypatch.undo()
    assert not many._ignores_case(out / "below")  # as the tests' file system does


def test_a_target_that_leads_to_itself(picture: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = picture.with_name("loop.mci")
    target.symlink_to(target)
    assert run(capsys, "encode", picture, target, "--force", "--model", model)[0] == 0
    assert target.read_bytes()[:4] and not target.is_symlink()


def test_a_stream_has_no_name_in_a_folder(
    picture: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for target in (str(picture.parent), f"{picture.parent}{os.sep}"):
        assert "- has no name to take in a folder" in fails(capsys, "encode", "-", target, status=2)


def test_an_effort_that_a_target_rules_out_is_said(
    picture: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcodec.rate._dearer", lambda *_: None)
    command = ("encode", picture, "--target-bpp", "3", "--effort", "4", "--model", model)
    assert "mcodec: note: " in (err := run(capsys, *command)[2]) and "effort 1: with effort 4 no quality" in err


def test_a_full_disk_ends_a_run(
    picture: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pictures that follow would be coded in vain."""
    def full(path: Path, *_: object, **__: object) -> None:
        tried.append(path)
        raise OSError(errno.ENOSPC, "No space left on device")

    tried: list[Path] = []
    for index in range(5):
        Image.fromarray(smooth()).save(picture.with_name(f"a{index}.png"))
    monkeypatch.setattr("mcodec.files.write_bytes", full)
    text = fails(capsys, "encode", picture.parent, picture.with_name("out"), "--jobs", "1", "--model", model)
    assert "No space left on device; the run ends here" in text and len(tried) < 4


def test_tiles_share_no_threads_with_files(
    picture: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mcodec.api import Codec

    encode, seen = Codec.encode, []

    def watched(self: Codec, *arguments: Any) -> bytes:
        seen.append((self.tile_workers, torch.get_num_threads()))
        return encode(self, *arguments)

    monkeypatch.setattr(Codec, "encode", watched)
    monkeypatch.setattr(many, "cores", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    for jobs in ("1", "2"):
        out = picture.with_name(f"out{jobs}")
        assert run(capsys, "encode", picture.parent, out, "--jobs", jobs, "--device", "cpu", "--model", model)[0] == 0
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert run(capsys, "encode", picture.parent, picture.with_name("out3"), "--jobs", "2", "--model", model)[0] == 0
    assert seen == [(2, 6), (1, 3), (1, before)] and torch.get_num_threads() == before


def test_what_is_no_reason() -> None:
    """An error of the program's own is not made to look like the user's."""
    assert reason(RuntimeError("size mismatch")) is None and reason(ValueError("out of memory")) is None


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_refuses_to_overwrite(
    command: str, picture: Path, coded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = (picture, coded) if command == "encode" else (coded, picture)
    before = target.read_bytes()
    assert "--force" in fails(capsys, command, source)
    assert target.read_bytes() == before


def test_input_is_never_the_output(coded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = coded.read_bytes()
    assert "both input and output" in fails(capsys, "decode", coded, coded, "--force")
    assert coded.read_bytes() == before


def test_unwritable_outputs(picture: Path, coded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(picture.parent.iterdir())
    assert "no such folder" in fails(capsys, "encode", picture, picture.parent / "none" / "x.mci")
    fails(capsys, "decode", coded, coded.with_suffix(".unknown"))
    assert sorted(picture.parent.iterdir()) == before


@pytest.mark.parametrize("form", [".", "..", "a/b", "a/b.png", "unknown", "tar.gz", ""])
def test_bad_formats(form: str, coded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(coded.parent.iterdir())
    for out in ([], ["-"]):
        assert "is no picture format" in fails(capsys, "decode", coded, *out, "--format", form, status=2)
    assert sorted(coded.parent.iterdir()) == before


def test_standard_output_that_cannot_be_written(
    coded: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError("encoder error")

    monkeypatch.setattr(Image.Image, "save", broken)
    said = fails(capsys, "decode", coded, "-", "--format", "jpg")
    assert said.startswith("cannot write standard output: encoder error")


@pytest.mark.parametrize("quality", ["0", "101", "-3", "nan", "best"])
def test_bad_quality(quality: str, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "quality" in fails(capsys, "encode", picture, "-q", quality, status=2)
    assert not picture.with_suffix(".mci").exists()


@pytest.mark.parametrize("target", ["0", "inf", "nan"])
def test_bad_target(target: str, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "target-bytes" in fails(capsys, "encode", picture, "--target-bytes", target, status=2)


@pytest.mark.parametrize("effort", ["0", "10", "2.5", "most"])
def test_bad_effort(effort: str, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "effort" in fails(capsys, "encode", picture, "--effort", effort, status=2)
    assert not picture.with_suffix(".mci").exists()


def test_unknown_weights(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "'other'" in fails(capsys, "encode", picture, "--model", "other")


BACKENDS = [
    ("MCODEC_ENTROPY", "rust", "MCODEC_ENTROPY must be one of "),
    ("MCODEC_KERNELS", "cuda", "MCODEC_KERNELS must be one of "),
]


@pytest.mark.parametrize(("variable", "value", "said"), BACKENDS)
@pytest.mark.parametrize(
    "command", ["encode IN", "decode MCI OUT", "verify MCI", "info --stages MCI", "train --data IN", "export x.pt",
                "experiment x.pt --validation IN --results x.json", "bench codecs", "--version"],
)  # fmt: skip
def test_backends_that_are_none(
    command: str, variable: str, value: str, said: str, picture: Path, coded: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv(variable, value)
    coded = coded.rename(coded.with_name("b.mci"))
    places = {"IN": picture, "MCI": coded, "OUT": coded.with_suffix(".bmp")}
    assert fails(capsys, *(places.get(word, word) for word in command.split())).startswith(said)
    assert sorted(path.name for path in picture.parent.iterdir()) == ["b.mci", "in.png"]


def test_a_coder_that_is_missing(
    picture: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcodec.entropy.coder._extension", None)
    monkeypatch.setenv("MCODEC_ENTROPY", "c")
    assert "the compiled entropy coder is missing" in fails(capsys, "encode", picture)


@pytest.mark.parametrize("arguments", [["frobnicate"], ["encode"], ["encode", "a.png", "--device", "abacus"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, *arguments, status=2)


def test_interrupt(
    picture: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mcodec.cli.coding.load_codec", interrupted)
    status, _, err = run(capsys, "encode", picture)
    assert status == 130 and "interrupted" in err
    assert not picture.with_suffix(".mci").exists()


# ---- weights ----


def test_files_decode_with_the_weights_that_they_name(
    picture: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that are installed, and of a folder of former ones; others are asked for."""
    import mcodec
    import mcodec.pillow
    from mcodec import weights

    coded, decoded = picture.with_suffix(".mci"), picture.with_name("decoded.png")
    assert run(capsys, "encode", picture, "--model", model)[0] == 0
    assert "but" in fails(capsys, "decode", coded, decoded)
    with pytest.raises(mcodec.WrongModel):
        mcodec.read(coded)
    monkeypatch.setenv("MCODEC_WEIGHTS", f"{picture.parent / 'none'}{os.pathsep}{model.parent}")
    assert weights.find().stem == weights.DEFAULT and weights.find("tiny") == model
    defaults = {card["file"]: card["default"] for card in weights.list_models()}
    assert defaults["cascade.safetensors"] and not defaults["tiny.safetensors"] and sum(defaults.values()) == 1
    assert run(capsys, "decode", coded, decoded)[0] == 0
    assert "ok, " in run(capsys, "verify", coded)[1]
    assert json.loads(run(capsys, "info", coded, "--stages", "--json")[1])["stages"]
    pixels = np.asarray(Image.open(decoded))
    with Image.open(coded) as image:
        assert np.array_equal(mcodec.read(coded), pixels) and np.array_equal(image, pixels)
    assert "but" in fails(capsys, "decode", coded, decoded, "--force", "--model", weights.DEFAULT)
    sha = weights.read_card(model)["sha256"]
    assert run(capsys, "decode", coded, decoded, "--force", "--model", sha[:8])[0] == 0
    assert "no weights" in fails(capsys, "decode", coded, decoded, "--force", "--model", sha[:7])


def test_damaged_weights_stop_no_others(
    picture: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file without its card, a foreign card, a folder that is not there: said, and passed over."""
    coded, kept = picture.with_suffix(".mci"), picture.with_name("kept")
    assert run(capsys, "encode", picture, "--model", model)[0] == 0
    kept.mkdir()
    for name in ("a", "b", "tiny"):
        (kept / f"{name}.safetensors").write_bytes(model.read_bytes())
    (kept / "b.json").write_text('{"name": "foreign"}')
    (kept / "tiny.json").write_bytes(model.with_suffix(".json").read_bytes())
    monkeypatch.setenv("MCODEC_WEIGHTS", f"{kept}{os.pathsep}{kept / 'none'}")
    assert run(capsys, "decode", coded, picture.with_name("decoded.png"))[0] == 0
    status, out, err = run(capsys, "models")
    assert status == 0 and [line.split()[-1] for line in out.splitlines()][-1] == str(kept)
    assert err.splitlines() == [
        f"mcodec: note: MCODEC_WEIGHTS: there is no folder {kept / 'none'}",
        f"mcodec: note: {kept}: cannot read the model card a.json: "
        f"[Errno 2] No such file or directory: '{kept / 'a.json'}'",
        f"mcodec: note: {kept}: the model card b.json is not a JSON object with the SHA-256 of weights",
    ]
    assert run(capsys, "--version")[0] == 0


# ---- training ----


@pytest.fixture
def threads() -> Iterator[None]:
    """Gives torch its number of threads back after a test that changes it."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The preset "tiny": those of releases take far longer and show no more of the command."""
    from tiny import TINY

    from mcodec.model import config as model_config

    monkeypatch.setitem(model_config.PRESETS, "tiny", TINY)
    monkeypatch.setattr("mcodec.training.loop.CALIBRATION_CROPS", 4)


@pytest.mark.usefixtures("threads", "quick")
def test_train_export_encode_decode(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A few steps on one picture give weights that code it; other weights refuse the file."""
    folder = picture.parent
    large = folder / "large.png"
    with Image.open(picture) as image:
        image.resize((160, 140)).save(large)
    config = folder / "run.json"
    settings: dict[str, object] = {"preset": "tiny", "crop": 64, "batch": 2, "data": str(large)}
    settings["validation"] = [str(large)]
    config.write_text(json.dumps(settings))
    out, weights = folder / "run", folder / "tiny.safetensors"

    train = ("train", "--config", config, "--out", out, "--device", "cpu", "--threads", "1")
    assert "checkpoint" in fails(capsys, *train, "--resume")
    out.mkdir()
    (out / "config.json").write_text("{}")  # of a run that was killed before its first checkpoint
    status, text, err = run(capsys, *train, "--steps", "2,1,1", "--resume")
    assert status == 0 and "step 4 of 4" in text, err
    assert "bpp" in err and "ETA" in err
    assert "--resume" in fails(capsys, *train)
    status, text, err = run(capsys, *train, "--steps", "2,1,2", "--resume")
    assert status == 0 and "step 5 of 5" in text, err

    rows = folder / "rows.jsonl"
    measured = ("experiment", out / "checkpoint.pt", "--validation", large, "--results", rows, "--change", "nothing")
    status, text, err = run(capsys, *measured)
    assert status == 0 and text.count(" bpp  ") == 5, err
    row = json.loads(rows.read_text())
    assert (row["name"], row["change"], row["steps"], row["pictures"]) == ("run", "nothing", 5, 1)

    export = ("export", out / "checkpoint.pt", "--out", folder, "--name", "tiny")
    assert run(capsys, *export)[0] == 0
    assert weights.is_file() and weights.with_suffix(".json").is_file()
    assert "--force" in fails(capsys, *export)
    assert run(capsys, "encode", picture, "--model", weights)[0] == 0
    coded = picture.with_suffix(".mci")
    assert "weights" in fails(capsys, "decode", coded, folder / "back.png")
    assert not (folder / "back.png").exists()
    assert run(capsys, "decode", coded, folder / "back.png", "--model", weights)[0] == 0
    with Image.open(folder / "back.png") as image:
        assert image.size == (70, 50)


@pytest.mark.usefixtures("threads", "quick")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_training_with_a_checkpoint(
    number: signal.Signals, picture: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mcodec.cli.progress import TrainingProgress

    large, out = picture.with_name("large.png"), picture.with_name("run")
    with Image.open(picture) as image:
        image.resize((160, 140)).save(large)
    config = picture.with_name("run.json")
    config.write_text(json.dumps({"preset": "tiny", "crop": 64, "batch": 1, "data": str(large)}))
    command = ("train", "--config", config, "--out", out, "--device", "cpu", "--threads", "1", "--steps", "3,0,0")
    before = signal.getsignal(number)
    numbers = iter([number])
    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "report", lambda *_: [signal.raise_signal(n) for n in numbers])
        status, _, err = run(capsys, *command)
    assert status == 130 and f"{out / 'checkpoint.pt'}: step 2 of 3; --resume goes on\n" in err
    assert signal.getsignal(number) == before
    assert "step 3 of 3" in run(capsys, *command, "--resume")[1]


@pytest.mark.parametrize("steps", ["3", "1,2", "1,2,-3", "a,b,c"])
def test_bad_steps(steps: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "noise,hard,frozen" in fails(capsys, "train", "--steps", steps, status=2)


def test_training_needs_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert "--data" in fails(capsys, "train", "--out", out)
    assert "nothing" in fails(capsys, "train", "--out", out, "--data", tmp_path / "nothing")
    (tmp_path / "run.json").write_text('{"batches": 3}')
    assert "batches" in fails(capsys, "train", "--config", tmp_path / "run.json")


def test_names_that_would_surprise(
    picture: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second picture is not overwritten, an unset variable is no folder, - is one file, a separator says folder."""
    other = picture.with_name("other.png")
    other.write_bytes(picture.read_bytes())
    with_model = "--model", model
    assert "named like a picture" in fails(capsys, "encode", "--force", picture, other, *with_model)
    third = picture.with_name("third.png")
    third.write_bytes(picture.read_bytes())
    assert "named last" in fails(capsys, "encode", "--force", picture, other, third, *with_model)
    assert "a name is empty" in fails(capsys, "encode", "", picture.with_suffix(".mci"), *with_model, status=2)
    assert "single file" in fails(capsys, "encode", picture, other, "-", *with_model, status=2)
    assert "no file matches" in fails(capsys, "encode", picture.parent / "none[1].png", *with_model)
    assert {path.name for path in picture.parent.iterdir()} == {picture.name, other.name, third.name}
    assert third.read_bytes() == other.read_bytes() == picture.read_bytes()
    monkeypatch.setitem(Image.EXTENSION, ".mci", "PNG")  # as where the plugin is registered
    assert run(capsys, "encode", picture, picture.with_name("named.mci"), *with_model)[0] == 0
    status, _, err = run(capsys, "encode", picture, f"{picture.parent}/new/", *with_model)
    assert status == 0 and (picture.parent / "new" / picture.with_suffix(".mci").name).is_file(), err
    monkeypatch.setattr("os.altsep", ":")  # as on Windows, where names end in either
    assert isinstance(FILE.convert("new:", None, None), Folder) and isinstance(FILE.convert("new/", None, None), Folder)
    assert not isinstance(FILE.convert("new", None, None), Folder)


def test_info_and_verify_read_standard_input(
    picture: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    coded = picture.with_suffix(".mci")
    assert run(capsys, "encode", picture, "--model", model)[0] == 0
    for command in (("info", "-"), ("verify", "-", "--model", model)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(coded.read_bytes())))
        status, text, err = run(capsys, *command)
        assert status == 0 and ("ok, " in text or "fingerprint" in text), err
    coded.write_bytes(coded.read_bytes()[:-9])
    assert str(coded) in fails(capsys, "info", coded)
