"""Training: data, configuration, the resumable loop, export."""

from __future__ import annotations

import copy
import errno
import gzip
import io
import json
import math
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY, TINY_UMGM

from mcodec import api, rate, weights
from mcodec.errors import LossWarning, ModelError, TrainingError
from mcodec.model import config as model_config
from mcodec.model.similarity import dissimilarity
from mcodec.training import units
from mcodec.training.config import TrainConfig
from mcodec.training.data import Crops, detail, load_pictures, validation_batch
from mcodec.training.experiment import record
from mcodec.training.export import export
from mcodec.training.loop import RESPONSE_RATE, SCORED, Trainer


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "shard.tar"
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as archive:
        for index in range(3):
            buffer = io.BytesIO()
            base = np.kron(rng.integers(0, 255, (12, 12, 3)), np.ones((8, 8, 1)))
            Image.fromarray(base.astype(np.uint8)).save(buffer, "PNG")
            member = tarfile.TarInfo(f"../../{index}.png")  # names reach no file system
            member.size = buffer.tell()
            buffer.seek(0)
            archive.addfile(member, buffer)
    return path


@pytest.fixture
def config(shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    monkeypatch.setitem(model_config.PRESETS, "tiny", TINY)
    monkeypatch.setattr("mcodec.training.loop.CALIBRATION_CROPS", 8)  # more of them take time and show nothing
    return TrainConfig(
        preset="tiny", data=(str(shard),), validation=(str(shard),), out=str(tmp_path / "run"), noise_steps=3,
        hard_steps=3, frozen_steps=2, batch=2, crop=64, warmup=2, decay_steps=4, device="cpu", validate_every=4,
        log_every=1,
    )


def test_shards_and_folders(shard: Path, tmp_path: Path) -> None:
    assert [tuple(p.shape) for p in load_pictures([shard])] == [(3, 96, 96)] * 3
    assert len(load_pictures([tmp_path])) == 3
    assert len(load_pictures([shard], limit=2)) == 2
    assert validation_batch(load_pictures([shard]), 64, 2).shape == (2, 3, 64, 64)


def test_data_errors(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no pictures in"):
        load_pictures([tmp_path])
    with pytest.raises(TrainingError, match="cannot read training data"):
        load_pictures([tmp_path / "absent.tar"])
    (tmp_path / "bad.png").write_text("text")
    with pytest.raises(TrainingError, match=r"bad\.png: cannot read the picture: unknown format"):
        load_pictures([tmp_path / "bad.png"])
    with pytest.warns(LossWarning, match=r"bad\.png is left out"), pytest.raises(TrainingError, match="no pictures in"):
        load_pictures([tmp_path])
    with pytest.raises(TrainingError, match="at least 512x512"):
        Crops([torch.zeros(3, 96, 96, dtype=torch.uint8)], 512, 1, 0, torch.device("cpu"))


def test_pictures_are_read_as_the_encoder_reads_them(tmp_path: Path) -> None:
    """16 bits rounded rather than clipped at 255, turned upright, grey in all channels."""
    levels = np.arange(6 * 4).reshape(6, 4) * 10
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray((levels * 257 + 100).astype(np.uint16)).save(tmp_path / "a.png", exif=exif)
    (picture,) = load_pictures([tmp_path])
    assert torch.equal(picture, torch.from_numpy(np.rot90(levels, -1).astype(np.uint8)).expand(3, -1, -1))


def test_pictures_that_cannot_be_used_are_left_out(tmp_path: Path) -> None:
    """One of thousands must not end a run; hidden files are none."""
    (tmp_path / "below").mkdir()
    for name, level in (("a.png", 1), ("below/b.png", 2)):
        Image.new("RGB", (20, 30), (level,) * 3).save(tmp_path / name)
    for name in ("._a.png", ".trash/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no picture")
    assert [int(p[0, 0, 0]) for p in load_pictures([tmp_path])] == [1, 2]
    (tmp_path / "aa.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    with pytest.warns(LossWarning, match=r"aa\.png is left out: cannot read the picture"):
        assert [int(p[0, 0, 0]) for p in load_pictures([tmp_path])] == [1, 2]
    (tmp_path / "aa.png").unlink()
    (tmp_path / "below").rename(tmp_path / "below.jpg")  # a folder is none, whatever its name
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.warns(LossWarning, match=r"gone\.png is left out: No such file or directory"):
        assert [int(p[0, 0, 0]) for p in load_pictures([tmp_path])] == [1, 2]


def test_windows_of_large_pictures(tmp_path: Path) -> None:
    """Not whole photographs are held; windows lie anywhere, the same in every process."""
    array = np.arange(100 * 200 * 3).reshape(100, 200, 3).astype(np.uint8)
    for index in range(20):
        Image.fromarray(array).save(tmp_path / f"{index}.png")
    found = load_pictures([tmp_path], side=128)
    assert all(p.shape == (3, 100, 128) for p in found) and len({int(p[0, 0, 0]) for p in found}) > 5
    assert all(map(torch.equal, found, load_pictures([tmp_path], side=128)))
    (whole,) = load_pictures([tmp_path / "0.png"])
    assert torch.equal(whole, torch.from_numpy(array).permute(2, 0, 1))


def test_a_run_ends_resumably_when_it_is_told_to(config: TrainConfig) -> None:
    trainer = Trainer(config)

    def report(row: dict[str, object]) -> None:
        trainer.stopping = True

    trainer.run(report)
    assert trainer.step == 2 and (Path(config.out) / "checkpoint.pt").exists()
    again = Trainer(config)
    again.load(Path(config.out) / "checkpoint.pt")
    again.run()
    assert again.step == config.steps


def test_a_release_is_written_whole(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and card, or, on a full disk, neither: not new weights beside an old card."""
    Trainer(config).save(tmp_path / "checkpoint.pt")
    path = export(tmp_path / "checkpoint.pt", tmp_path / "out", "first")
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    with pytest.raises(FileExistsError):
        export(tmp_path / "checkpoint.pt", tmp_path / "out", "first", replace=False)
    calls: list[int] = []

    def full(file: int) -> None:
        calls.append(file)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        export(tmp_path / "checkpoint.pt", tmp_path / "out", "first", "others")
    assert calls and {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


def test_broken_pictures_are_training_errors(shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whatever type Pillow and tarfile raise."""
    path, buffer = tmp_path / "a.png", io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3)).astype(np.uint8)
    Image.fromarray(noise).save(buffer, "PNG", compress_level=0)
    data = buffer.getvalue()
    chunk = data.rindex(b"IDAT")
    for broken in (data[:chunk] + bytes(4) + data[chunk + 4 :], data[: len(data) // 2], data[:20], b""):
        path.write_bytes(broken)
        with pytest.raises(TrainingError, match=r"a\.png: cannot read the picture"):
            load_pictures([path])
    path.write_bytes(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow itself refuses above twice that
    with pytest.raises(TrainingError, match=r"a\.png: .*too many pixels"):
        load_pictures([path])
    monkeypatch.undo()
    packed = gzip.compress(shard.read_bytes())
    shard.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(TrainingError, match="cannot read training data"):
        load_pictures([shard])


def test_crops_come_from_pictures_that_are_large_enough() -> None:
    """Each picture has a level of its own; those between are too small."""
    sizes = ((8, 9), (20, 30), (30, 7), (40, 20), (20, 20), (3, 3))
    pictures = [torch.full((3, *size), 10 * i, dtype=torch.uint8) for i, size in enumerate(sizes)]
    crops = Crops(pictures, 20, 64, 0, torch.device("cpu")).next()
    levels = ((crops + 0.5) * 255).round()
    assert crops.shape == (64, 3, 20, 20) and levels.unique().tolist() == [10, 30, 40]
    assert torch.equal(levels.amin((1, 2, 3)), levels.amax((1, 2, 3)))


def test_crops_are_windows_as_they_are_turned_and_mirrored() -> None:
    """Each pixel says where it lies: all places and all eight orientations occur, and nothing else."""
    height, width, side = 20, 26, 16
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    picture = torch.stack([y, x, 0 * x]).to(torch.uint8)
    crops = ((Crops([picture], side, 600, 0, torch.device("cpu")).next() + 0.5) * 255).round().to(torch.uint8)
    seen = set()
    for crop in crops:
        top, left = int(crop[0].min()), int(crop[1].min())
        window = picture[:, top : top + side, left : left + side]
        ways = [torch.rot90(one, turns, (1, 2)) for one in (window, window.flip(2)) for turns in range(4)]
        (way,) = (index for index, one in enumerate(ways) if torch.equal(one, crop))
        seen.add((top, left, way))
    tops, lefts, ways_seen = (set(values) for values in zip(*seen, strict=True))
    assert (tops, lefts) == (set(range(height - side + 1)), set(range(width - side + 1)))
    assert ways_seen == set(range(8))


def test_pictures_are_drawn_in_proportion_to_their_detail() -> None:
    """Neighbours of one picture differ by 20 on average, of the other by 5; a flat one is drawn as well."""
    pattern = torch.tensor([[0, 1], [1, 0]], dtype=torch.uint8).repeat(3, 10, 10)
    pictures = [pattern * 20, pattern * 5 + 100, pattern * 0 + 200]
    assert [detail(p) for p in pictures] == [20, 5, 0]
    counts = []
    for power in (0.0, 1.0):
        crops = Crops(pictures, 16, 3000, 0, torch.device("cpu"), power).next()
        kind = torch.bucketize((crops.amin((1, 2, 3)) + 0.5) * 255, torch.tensor([50.0, 150.0]))
        counts.append(kind.bincount(minlength=3) / 3000)
    torch.testing.assert_close(counts[0], torch.full((3,), 1 / 3), atol=0.04, rtol=0)
    torch.testing.assert_close(counts[1], torch.tensor([20.1, 5.1, 0.1]) / 25.3, atol=0.03, rtol=0)
    assert counts[1][2] > 0


def test_unknown_options_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"learning_rat": 1}))
    with pytest.raises(TrainingError, match="unknown training option learning_rat;"):
        TrainConfig.from_file(path)
    path.write_text(json.dumps({"optimizer": "sgd"}))
    with pytest.raises(TrainingError, match="must be adam or soap, got sgd"):
        TrainConfig.from_file(path)
    for content in (b"3", b"{", b'{"data": "\xff"}'):
        path.write_bytes(content)
        with pytest.raises(TrainingError, match="training configuration"):
            TrainConfig.from_file(path)
    for key in ("batch", "crop", "validate_every", "log_every"):
        with pytest.raises(TrainingError, match=f"^{key} must be a whole number above 0, got 0"):
            TrainConfig.from_dict({key: 0})
    for key, value, wanted in (
        ("data", 5, "a path or a list of paths"), ("validation", [1], "a path or a list of paths"),
        ("hard_steps", "10", "of type int"), ("learning_rate", None, "of type float"), ("bf16", 1, "of type bool"),
        ("seed", True, "of type int"),
    ):  # fmt: skip
        with pytest.raises(TrainingError, match=f"^{key} must be {wanted}, got "):
            TrainConfig.from_dict({key: value})
    assert TrainConfig.from_dict({"learning_rate": 1, "data": ["a", "b"]}).data == ("a", "b")
    path.write_text(json.dumps({"data": "a.tar", "batch": 7}))
    assert TrainConfig.from_file(path).data == ("a.tar",)


def test_phases_and_rate(config: TrainConfig) -> None:
    assert [config.phase(s) for s in (0, 2, 3, 5, 6)] == ["noise", "noise", "hard", "hard", "frozen"]
    assert config.phase(0, gumbel=True) == "gumbel"
    config = config.updated(decay_steps=4)  # of 8, after a warm-up of 2
    assert [config.rate(s) for s in (0, 2, 4, 6, 7)] == [0.5, 1.0, 1.0, 0.5, 0.25]


@pytest.mark.parametrize("optimizer", ["adam", "soap"])
def test_resume_reproduces_the_uninterrupted_run(config: TrainConfig, optimizer: str) -> None:
    config = config.updated(optimizer=optimizer)
    straight = Trainer(config)
    straight.run()
    first = Trainer(config.updated(out=config.out + "2", minutes=1e-9))
    while first.step < 4:
        first.run()
    path = Path(config.out + "2") / "checkpoint.pt"
    with (path.parent / "log.jsonl").open("a") as log:  # of steps after the checkpoint, the last one cut off
        log.write('{"step": 5, "phase": "noise"}\n{"step": 6, "pha')
    second = Trainer(config.updated(out=config.out + "2"))
    second.load(path)
    second.run()
    assert second.step == straight.step == config.steps
    for (name, a), b in zip(straight.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for name, average in straight.average.items():
        assert torch.equal(average, second.average[name]), name
    assert second.pixels == straight.pixels and second.seconds > first.seconds > 0
    logs = [(Path(run) / "log.jsonl").read_text().splitlines() for run in (config.out, path.parent)]
    rows, others = ([json.loads(line) for line in log] for log in logs)
    assert [r["step"] for r in others] == [r["step"] for r in rows]
    assert {r["phase"] for r in rows if "phase" in r} == {"noise", "hard", "frozen"}
    assert [r["step"] for r in rows if "validation" in r] == [4, 8]


def test_two_processes_train_one_model(shard: Path, tmp_path: Path) -> None:
    """Equal weights in both, by batches of their own; the first one's clock stops both, and both go on."""
    if not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    command = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"
    script = str(Path(__file__).with_name("two_processes.py"))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, *command, script, str(shard), str(tmp_path)],
        env=environment, timeout=240, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert one["steps"] == two["steps"] == [1, 4]
    assert not torch.equal(one["batch"], two["batch"])
    for name, value in one["model"].items():
        assert torch.equal(value, two["model"][name]), name
    assert any(not torch.equal(value, one["start"][name]) for name, value in one["model"].items())
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]


def test_gradients_of_processes_are_averaged(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that add them up end with equal weights all the same."""
    trainer = Trainer(config)
    trainer.world = 2
    # the other process's are these and 2: halved, the sum of both is these and 1
    monkeypatch.setattr("torch.distributed.all_reduce", lambda flat: flat.mul_(2).add_(1), raising=False)
    wanted = {}
    for name, parameter in trainer.parameters.items():
        parameter.grad = torch.randn_like(parameter)
        wanted[name] = parameter.grad + 1
    trainer._reduce()
    for name, parameter in trainer.parameters.items():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, wanted[name])


@pytest.mark.parametrize("optimizer", ["adam", "soap"])
def test_rates_are_by_kind_of_parameter(config: TrainConfig, optimizer: str) -> None:
    trainer = Trainer(
        config.updated(optimizer=optimizer, learning_rate=1e-3, fine_learning_rate=1e-4, context_learning_rate=1e-2)
    )
    groups = [group for each in trainer.optimizers for group in each.param_groups]
    rates = {id(parameter): group["base"] for group in groups for parameter in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in groups)
    named = dict(trainer.model.named_parameters())
    assert {id(parameter) for parameter in named.values()} == rates.keys()
    found = {name: rates[id(parameter)] for name, parameter in named.items()}
    assert found["analysis.down.4.weight"] == found["synthesis.out.bias"] == found["stages.0.log_gain"] == 1e-4
    fine = "film", "lapped.rows", "posterior.weight", "body.1.bias", "correct.3.bias"
    assert {rate for name, rate in found.items() if name.endswith(fine)} == {1e-4}
    assert {rate for name, rate in found.items() if name.endswith(("body.1.weight", "correct.3.weight"))} == {1e-3}
    assert {rate for name, rate in found.items() if name.endswith("log_factor")} == {RESPONSE_RATE}
    assert {rate for name, rate in found.items() if ".context." in name} == {1e-2}


def test_crops_fill_the_coarsest_grid(config: TrainConfig) -> None:
    with pytest.raises(TrainingError, match="crop must be a multiple of 32, got 80"):
        Trainer(config.updated(crop=80))


def test_a_resumed_run_takes_the_rates_of_its_configuration(config: TrainConfig, tmp_path: Path) -> None:
    first = Trainer(config)
    first.train_step()
    first.save(tmp_path / "checkpoint.pt")
    second = Trainer(config.updated(learning_rate=1e-5, fine_learning_rate=1e-6, warmup=1))
    second.load(tmp_path / "checkpoint.pt")
    second.train_step()
    rates = {group["lr"] for optimizer in second.optimizers for group in optimizer.param_groups}
    factor = config.rate(1)
    assert {1e-5 * factor, 1e-6 * factor} <= rates and config.learning_rate * factor not in rates


def test_validation_leaves_a_static_prior(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(model_config.PRESETS, "tiny-umgm", TINY_UMGM)
    trainer = Trainer(config.updated(preset="tiny-umgm", noise_steps=2, hard_steps=0, frozen_steps=0))
    fresh = trainer.model.stage(0).codebooks.counts.clone()
    trainer.train_step()
    assert not torch.equal(trainer.model.stage(0).codebooks.counts, fresh)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.validate()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_validation_is_of_the_averaged_weights(config: TrainConfig) -> None:
    trainer = Trainer(config)
    trainer.train_step()
    rows = trainer.validate()["validation"]
    with torch.no_grad():
        trainer.parameters["synthesis.out.bias"].add_(0.5)
        assert trainer.validate()["validation"] == rows
        trainer.average["synthesis.out.bias"].add_(0.5)
    assert trainer.validate()["validation"][0]["psnr"] < rows[0]["psnr"] - 1


def test_levels_of_a_batch_are_spread(config: TrainConfig) -> None:
    trainer = Trainer(config)
    for _ in range(20):
        levels = trainer._levels(4)
        assert levels.sort().values.div(64).floor().tolist() == [0, 1, 2, 3]


def test_score_is_the_rate_at_equal_quality() -> None:
    psnr, bpp, at = [27.0, 30.0, 33.0, 36.0, 41.0], [0.1, 0.2, 0.4, 0.8, 2.0], SCORED["mse"]
    score = Trainer._score(psnr, bpp, at)
    assert Trainer._score(psnr, [value / 2 for value in bpp], at) == pytest.approx(score - 1)
    assert Trainer._score(psnr[::-1], bpp[::-1], at) == pytest.approx(score)
    # other points of the same curve
    others = [0.1 * 2 ** (-1 / 3), 0.1 * 2**0.5, *bpp[2:]]
    assert Trainer._score([26.0, 28.5, 33.0, 36.0, 41.0], others, at) == pytest.approx(score)


def test_frozen_phase_leaves_the_encoder(config: TrainConfig) -> None:
    trainer = Trainer(config.updated(noise_steps=1, hard_steps=1, frozen_steps=1))
    trainer.train_step()
    trainer.train_step()
    before = {k: v.detach().clone() for k, v in trainer.parameters.items()}
    trainer.train_step()
    changed = {k for k, v in trainer.parameters.items() if not torch.equal(v, before[k])}
    parts = {"analysis", "posterior", "predict", "correct", "correct_response"}
    encoder = {k for k in before if parts & set(k.split("."))}
    assert changed and not changed & encoder

    # and no file is decoded by what stays
    model, level = trainer.model, torch.zeros(1)
    model.zero_grad()
    codes = [torch.zeros(1, s.groups, 64 // s.stride, 64 // s.stride, dtype=torch.int64) for s in model.config.stages]
    model.synthesis(model.synthesize(codes, 64, 64, level), level).sum().backward()
    decoder = {k for k, v in trainer.parameters.items() if v.grad is not None}
    assert decoder and not decoder & encoder


def test_steps_without_a_finite_gradient_are_skipped(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not spread over weights and the optimizer's state; of too many in a row a run ends."""
    monkeypatch.setattr("mcodec.training.loop.MAX_BAD_STEPS", 2)
    trainer = Trainer(config)
    trainer.train_step()
    loss = trainer._loss

    def broken(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        total, error = loss(*arguments)
        return total * math.nan, error

    before = {name: value.detach().clone() for name, value in trainer.parameters.items()}
    monkeypatch.setattr(trainer, "_loss", broken)
    assert not math.isfinite(trainer.train_step()["norm"]) and trainer.bad_steps == 1
    assert all(torch.equal(value, before[name]) for name, value in trainer.parameters.items())
    monkeypatch.setattr(trainer, "_loss", loss)
    assert math.isfinite(trainer.train_step()["norm"]) and trainer.bad_steps == 0
    assert any(not torch.equal(value, before[name]) for name, value in trainer.parameters.items())
    assert all(bool(value.isfinite().all()) for value in trainer.parameters.values())
    monkeypatch.setattr(trainer, "_loss", broken)
    trainer.train_step()
    with pytest.raises(TrainingError, match="gradients are not finite since 2 steps"):
        trainer.train_step()


def test_steps_on_a_gpu_are_replayed(config: TrainConfig, gpu: torch.device) -> None:
    config = config.updated(device="cuda", noise_steps=8, hard_steps=8, frozen_steps=8, learning_rate=1e-3)
    trainer = Trainer(config)
    losses: dict[str, list[float]] = {}
    while trainer.step < config.steps:
        before = {k: v.detach().clone() for k, v in trainer.parameters.items()}
        row = trainer.train_step()
        losses.setdefault(row["phase"], []).append(row["loss"])
        moved = {k for k, v in trainer.parameters.items() if not torch.equal(v, before[k])}
        assert any("synthesis" in k for k in moved)
        assert any("analysis" in k for k in moved) == (row["phase"] != "frozen")
    for phase, values in losses.items():
        assert len(set(values)) == len(values) == 8, f"{phase}: {values}"  # each step has a batch of its own
        assert all(map(math.isfinite, values))
    assert trainer.bad_steps == 0


def test_a_gpu_trains_what_a_cpu_trains(
    config: TrainConfig, gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bits, picture and its gradients of one batch, without bfloat16; those of the rate are tested with its kernels."""
    monkeypatch.setenv("MCODEC_KERNELS", "auto")
    one = Trainer(config.updated(device="cpu"))
    x, level = one.crops.next(), one._levels(config.batch)
    other = copy.deepcopy(one.model).to(gpu)
    found = []
    for model, device in ((one.model, torch.device("cpu")), (other, gpu)):
        torch.manual_seed(0)
        out = model(x.to(device), level.to(device), "noise")
        (out.picture - x.to(device)).square().sum().backward()
        grads = {k: p.grad.cpu() for k, p in model.named_parameters() if p.grad is not None}
        found.append((torch.stack(out.stage_bits).cpu(), out.picture.detach().cpu(), grads))
    assert (found[0][0] - found[1][0]).abs().max() < 0.02 * found[0][0].max()
    assert (found[0][1] - found[1][1]).abs().mean() < 1e-3
    for name, grad in found[0][2].items():
        assert (grad - found[1][2][name]).norm() <= 0.1 * grad.norm() + 1e-4, name


def test_exported_weights_hold_the_same_codec(config: TrainConfig, tmp_path: Path) -> None:
    trainer = Trainer(config.updated(learning_rate=1e-3, decay_steps=1))  # so that weights and their average differ
    trainer.run()
    with (Path(config.out) / "log.jsonl").open("a") as log:  # of a step that the checkpoint does not have
        log.write('{"step": 9, "validation": "later"}\n{"step": 9, "val')
    path = export(Path(config.out) / "checkpoint.pt", tmp_path / "release", "tiny")
    assert weights.read_card(path)["metrics"][0].keys() >= {"level", "bpp", "psnr"}
    card = weights.read_card(path)
    assert card["steps"] == config.steps and card["bytes"] == path.stat().st_size
    assert card["kmac_per_pixel"]["decode"] > 0
    model, fingerprint = weights.load(path)
    assert fingerprint.hex() == card["sha256"][:16]
    # that of the average: the same codes from a file, the same picture to a rounding
    assert torch.equal(model.stage(0).log_gain, trainer.average["stages.0.log_gain"])
    assert not torch.equal(model.stage(0).log_gain, trainer.model.stage(0).log_gain)
    trainer._set(trainer.average)
    trained, released = (api.Codec(each, fingerprint) for each in (trainer.model, model))
    blocks = np.random.default_rng(0).integers(0, 255, (12, 12, 3))
    picture = np.kron(blocks, np.ones((8, 8, 1))).astype(np.uint8)
    data = trained.encode(picture, 60)
    assert all(map(torch.equal, released.codes(data), trained.codes(data)))
    assert np.abs(released.decode_array(data).astype(int) - trained.decode_array(data)).max() <= 1
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="SHA-256"):
        weights.load(path)


def test_a_release_is_judged_by_pictures_and_training_goes_on_from_it(
    config: TrainConfig, shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(config).run()
    monkeypatch.setattr(units, "WIDTH", 1)
    monkeypatch.setattr(units, "LEFT_OUT", 0.05)
    checkpoint = Path(config.out) / "checkpoint.pt"
    whole, narrow = export(checkpoint, tmp_path, "whole"), export(checkpoint, tmp_path, "narrow", pictures=[shard])
    cards = [weights.read_card(path) for path in (whole, narrow)]
    assert cards[0]["parameters"] > cards[1]["parameters"]
    assert cards[0]["kmac_per_pixel"]["decode"] > cards[1]["kmac_per_pixel"]["decode"]
    tuned = Trainer(config.updated(init=str(narrow)))
    assert sum(p.numel() for p in tuned.model.parameters()) == cards[0]["parameters"]
    tuned.train_step()
    with pytest.raises(TrainingError, match="cannot read"):
        export(checkpoint, tmp_path, "none", pictures=[tmp_path / "release"])


def test_checkpoint_errors(tmp_path: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.pt").write_bytes(b"not a checkpoint")
    torch.save({"model": {}}, tmp_path / "foreign.pt")
    reasons = {"x.pt": "none, or damaged", "foreign.pt": "another program", "no.pt": "No such file or directory"}
    for name, reason in reasons.items():
        for use in (Trainer(config).load, lambda path: export(path, tmp_path)):
            with pytest.raises(TrainingError, match=f"cannot read checkpoint .*{reason}$"):
                use(tmp_path / name)
    trainer = Trainer(config)
    trainer.save(tmp_path / "adam.pt")
    with pytest.raises(TrainingError, match=r"adam\.pt is of another optimizer than soap"):
        Trainer(config.updated(optimizer="soap")).load(tmp_path / "adam.pt")
    state = torch.load(tmp_path / "adam.pt", weights_only=True)
    torch.save(state | {"crops": state["crops"][:16].clone()}, tmp_path / "gpu.pt")  # of another device's generator
    Trainer(config).load(tmp_path / "gpu.pt")
    with pytest.raises(TrainingError, match="device must be auto, cpu or cuda, got tpu"):
        Trainer(config.updated(device="tpu"))
    if not torch.cuda.is_available():
        with pytest.raises(TrainingError, match="no CUDA device is available"):
            Trainer(config.updated(device="cuda"))
    del trainer.average["analysis.down.4.bias"]  # as of another version
    trainer.save(tmp_path / "other.pt")
    with pytest.raises(TrainingError, match="is not of this version's model"):
        export(tmp_path / "other.pt", tmp_path, "other")
    monkeypatch.setitem(model_config.PRESETS, "tiny-umgm", TINY_UMGM)
    monkeypatch.setitem(model_config.PRESETS, "tiny-ms-ssim", replace(TINY, distortion="ms-ssim"))
    Image.new("RGB", (200, 200)).save(tmp_path / "large.png")
    large = (str(tmp_path / "large.png"),)
    other = config.updated(crop=192, data=large, validation=large)
    for preset in ("tiny-umgm", "tiny-ms-ssim"):  # of other shapes; for another distortion
        with pytest.raises(TrainingError, match=rf"other\.pt is not of preset {preset}"):
            Trainer(other.updated(preset=preset)).load(tmp_path / "other.pt")


def test_a_log_that_ends_in_half_a_line(config: TrainConfig, tmp_path: Path) -> None:
    Trainer(config).run()
    log = Path(config.out) / "log.jsonl"
    log.write_text(log.read_text()[:-9])
    path = export(Path(config.out) / "checkpoint.pt", tmp_path, "tiny")
    assert weights.read_card(path)["metrics"] is not None  # of the validation before


def test_plots(config: TrainConfig) -> None:
    pytest.importorskip("matplotlib")
    from mcodec.training.plots import plot_run

    Trainer(config).run()
    assert plot_run(Path(config.out)).stat().st_size > 10_000


def test_the_seeds_method_through_the_same_code(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gumbel-softmax, static prior, no rate term: trained, exported, and a picture through the real format."""
    from mcodec.api import load

    monkeypatch.setitem(model_config.PRESETS, "tiny-umgm", TINY_UMGM)
    Trainer(config.updated(preset="tiny-umgm")).run()
    path = export(Path(config.out) / "checkpoint.pt", tmp_path / "release", "umgm")
    codec = load(path, "cpu")
    picture = np.random.default_rng(0).integers(0, 256, (70, 50, 3)).astype(np.uint8)
    data = codec.encode(picture)
    assert codec.decode(data).size == (50, 70)
    assert [tuple(c.shape) for c in codec.codes(data)] == [(2, 3, 2), (2, 6, 4)]


def test_a_run_starts_from_released_weights(config: TrainConfig, tmp_path: Path) -> None:
    trainer = Trainer(config)
    trainer.train_step()
    trainer.save(tmp_path / "checkpoint.pt")
    path = export(tmp_path / "checkpoint.pt", tmp_path, "first")
    tuned = Trainer(config.updated(init=str(path)))
    assert tuned.pixels == trainer.pixels > 0
    released, _ = weights.load(path)
    thawed = {k: v for k, v in weights.release_tensors(tuned.model).items() if "quality" not in k}
    for name, value in weights.release_tensors(released).items():
        if name in thawed:  # all but the tables of quality, which are interpolated again
            assert torch.equal(value, thawed[name]), name
    before = {k: v.detach().clone() for k, v in tuned.model.named_parameters()}
    tuned.train_step()
    moved = {k for k, v in tuned.model.named_parameters() if not torch.equal(v, before[k])}
    assert any(".quality.anchors" in k for k in moved) and any("codebooks" not in k for k in moved)
    tuned.save(tmp_path / "tuned.pt")
    Trainer(config).load(tmp_path / "tuned.pt")
    assert weights.load(export(tmp_path / "tuned.pt", tmp_path, "second"))[1] != weights.load(path)[1]
    with pytest.raises(TrainingError, match="not of preset cascade-small"):
        Trainer(config.updated(init=str(path), preset="cascade-small"))


def test_a_run_for_ms_ssim_goes_on_from_weights_for_squared_error(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(model_config.PRESETS, "tiny-ms-ssim", replace(TINY, name="other", distortion="ms-ssim"))
    rng = np.random.default_rng(1)
    smooth = np.kron(rng.integers(0, 255, (25, 25, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "picture.png")
    trainer = Trainer(config)
    trainer.train_step()
    trainer.save(tmp_path / "checkpoint.pt")
    path = export(tmp_path / "checkpoint.pt", tmp_path, "first", pictures=[tmp_path / "picture.png"])
    assert "MSE" in weights.read_card(path)["objective"]

    config = config.updated(
        preset="tiny-ms-ssim", init=str(path), noise_steps=0, hard_steps=2, frozen_steps=0, crop=192, validate_every=2,
        data=(str(tmp_path / "picture.png"),), validation=(str(tmp_path / "picture.png"),),
    )
    with pytest.raises(TrainingError, match="from sides of 161 pixels on: crop is 160"):
        Trainer(config.updated(crop=160))
    tuned = Trainer(config)
    tuned.run()
    row = json.loads((Path(config.out) / "log.jsonl").read_text().splitlines()[-1])
    assert all(0 < point["ms_ssim"] < 40 for point in row["validation"]) and math.isfinite(row["score"])
    path = export(Path(config.out) / "checkpoint.pt", tmp_path, "second")
    card = weights.read_card(path)
    assert card["architecture"] == "other" and "MS-SSIM" in card["objective"] and "MS-SSIM" in card["limits"]

    # the filter lowers squared error, which is not for them
    monkeypatch.setattr("mcodec.postfilter.fit", lambda *_: pytest.fail("a filter was fitted"))
    assert api.load(path, "cpu").encode(smooth, 50)


@pytest.mark.parametrize("able", [{}, {"avx2": True, "avx512_bf16": False}, {"avx512_bf16": True}, None])
def test_bfloat16_is_for_cpus_that_have_it(
    config: TrainConfig, able: dict[str, bool] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if able is None:  # an older torch
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    assert Trainer(config).bf16 == bool(able and able.get("avx512_bf16"))
    assert not Trainer(config.updated(bf16=False)).bf16


def test_dissimilarity_is_one_less_ms_ssim() -> None:
    rng = np.random.default_rng(2)
    a, b = (rng.integers(0, 256, (176, 192, 3)).astype(np.uint8) for _ in range(2))
    x, y = (torch.from_numpy(v).permute(2, 0, 1)[None] / 255 - 0.5 for v in (a, (a // 2 + b // 2)))
    with torch.autocast("cpu", torch.bfloat16):
        found = dissimilarity(x, y)
    assert found.shape == (1,) and found.item() == pytest.approx(1 - rate.ms_ssim(a, a // 2 + b // 2, 255), abs=1e-5)


def test_experiment_is_pruned_by_pictures_of_its_own(
    config: TrainConfig, shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(config).save(tmp_path / "checkpoint.pt")
    judged: list[object] = []
    monkeypatch.setattr("mcodec.training.export.prune", lambda model, pictures: judged.append(pictures))
    for typical in ([], [tmp_path]):
        record(tmp_path / "checkpoint.pt", tmp_path / "rows.jsonl", "one", {}, [shard], 1, typical)
    assert judged == [[tmp_path]]


def test_experiment_row_holds_real_files(config: TrainConfig, shard: Path, tmp_path: Path) -> None:
    trainer = Trainer(config)
    trainer.train_step()
    trainer.save(tmp_path / "checkpoint.pt")
    results = tmp_path / "rows" / "training.jsonl"
    for name in ("one", "two"):
        row = record(tmp_path / "checkpoint.pt", results, name, {"change": "none"}, [shard], limit=2)
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [r["name"] for r in rows] == ["one", "two"] and rows[1] == json.loads(json.dumps(row))
    codec = api.load(export(tmp_path / "checkpoint.pt", tmp_path, "again"), "cpu")
    pictures = [p.permute(1, 2, 0).numpy() for p in load_pictures([shard], 2)]
    for quality, bpp in zip(row["validation"]["quality"], row["validation"]["bpp"], strict=True):
        files = [codec.encode(picture, quality) for picture in pictures]
        assert bpp == pytest.approx(sum(map(len, files)) * 8 / (96 * 96 * 2))
    assert row["pictures"] == 2 and row["training_pixels"] == config.batch * config.crop**2
