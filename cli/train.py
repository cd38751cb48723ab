"""`mcodec train` and `mcodec export`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from mcodec.cli.options import FILE, Number, check_device, device_option, exists, force_option
from mcodec.cli.progress import TrainingProgress
from mcodec.errors import TrainingError

if TYPE_CHECKING:
    from mcodec.training.loop import Trainer

TRAIN_EXAMPLES = """\b
Examples:
  mcodec train --data photos/ --validation held-out/ --out runs/mine
  mcodec train --preset cascade-small --data shard-000.tar --minutes 2
  mcodec train --init cascade --steps 0,1500,0 --data my-photos/ --out runs/tuned
  mcodec train --out runs/mine --resume
  torchrun --nproc-per-node 4 -m mcodec.cli train --config run.json
"""
EXPORT_EXAMPLES = """\b
Examples:
  mcodec export runs/mine/checkpoint.pt --name mine
  mcodec encode photo.jpg --model mine.safetensors
"""
EXPERIMENT_EXAMPLES = """\b
Examples:
  mcodec experiment runs/mine/checkpoint.pt --validation held-out/ --results rows.jsonl --change "one block more"
"""


def _steps(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        steps = tuple(int(part) for part in value.split(","))
    except ValueError:
        steps = ()
    if len(steps) != 3 or min(steps) < 0:
        raise click.BadParameter("three whole numbers are needed, noise,hard,frozen: 20000,3000,1000")
    return steps


@click.command(epilog=TRAIN_EXAMPLES)
@click.option("--config", type=FILE, metavar="FILE", help="Run configuration (JSON); options override it.")
@click.option("--preset", metavar="NAME", help="Model: cascade, cascade-small, cascade-large, cascade-ms-ssim or umgm.")
@click.option("--init", metavar="NAME", help="Weights to start from, a name or a file; give --steps 0,N,N with it.")
@click.option("--data", multiple=True, metavar="PATH", help="Tar shard, folder or picture; repeatable.")
@click.option("--validation", multiple=True, metavar="PATH", help="Held-out pictures; repeatable.")
@click.option("--out", metavar="DIR", help="Folder of the run. [default: runs/PRESET]")
@click.option("--steps", callback=_steps, metavar="N,N,N", help="Steps of the noise, hard and frozen phase.")
@click.option("--minutes", type=Number(0), help="Stop, resumably, after this long.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@device_option
@click.option("--batch", type=click.IntRange(1), help="Crops per step and process.")
@click.option("--seed", type=int, help="Seed of the random numbers.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in the run's folder.")
def train(
    config: Path | None,
    preset: str | None,
    init: str | None,
    data: tuple[str, ...],
    validation: tuple[str, ...],
    out: str | None,
    steps: tuple[int, ...] | None,
    minutes: float | None,
    threads: int | None,
    device: str,
    batch: int | None,
    seed: int | None,
    resume: bool,
) -> None:
    """Train a model: noise phase, hard codes, frozen encoder, as one resumable run.

    The folder of the run holds config.json, log.jsonl, checkpoint.pt and, with the extra "train", plots.
    """
    check_device(device)
    from mcodec.training.config import TrainConfig
    from mcodec.training.loop import Trainer

    if out is None and config is None:
        out = f"runs/{preset or TrainConfig.preset}"
    if config is None and resume and out is not None and (Path(out) / "config.json").exists():
        config = Path(out) / "config.json"
    settings = TrainConfig.from_file(config) if config else TrainConfig()
    if out is None and settings.out == TrainConfig.out:  # as of a configuration that names none
        out = f"runs/{preset or settings.preset}"
    noise, hard, frozen = steps or (None, None, None)
    settings = settings.updated(
        preset=preset,
        init=init,
        data=data or None,
        validation=validation or None,
        out=out,
        noise_steps=noise,
        hard_steps=hard,
        frozen_steps=frozen,
        minutes=minutes,
        threads=threads,
        device=None if device == "auto" else device,
        batch=batch,
        seed=seed,
    )
    if not settings.data:
        raise TrainingError("no training pictures; name a folder or tar shard with --data")
    folder = Path(settings.out)
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists() and not resume:
        raise TrainingError(f"{folder} holds a run already; go on with --resume or choose another --out")
    trainer = Trainer(settings)
    # a run that was killed before its first checkpoint begins anew; a folder without any run is a mistake
    if resume and (checkpoint.exists() or not (folder / "config.json").exists()):
        trainer.load(checkpoint)
    elif resume:
        click.echo(f"mcodec: note: {folder} holds no checkpoint: the run begins anew", err=True)
    if int(os.environ.get("RANK", "0")) != 0:  # under torchrun one process draws
        with _stopped_by_signals(trainer):
            trainer.run()
        return
    with TrainingProgress(settings.steps, settings.minutes) as progress, _stopped_by_signals(trainer):
        trainer.run(progress.report)
    if trainer.stopping and trainer.step < settings.steps:
        click.echo(f"{checkpoint}: step {trainer.step} of {settings.steps}; --resume goes on", err=True)
        raise KeyboardInterrupt
    if find_spec("matplotlib"):  # it comes with the extra; a run is complete without its plots
        from mcodec.training.plots import plot_run

        click.echo(f"plots: {plot_run(folder)}")
    click.echo(f"{checkpoint}: step {trainer.step} of {settings.steps}")


@contextmanager
def _stopped_by_signals(trainer: Trainer) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run after the step in work, with a checkpoint; a second Ctrl-C ends it at once."""

    def stop(number: int, _: FrameType | None) -> None:
        trainer.stopping = True
        if number == signal.SIGINT:  # SIGTERM may come twice: to all of a job, and from torchrun to its processes
            signal.signal(number, before[signal.SIGINT])

    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # a script starts what is in its background with SIGINT ignored
    before = {number: handler for number, handler in found.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


pictures_option = click.option(
    "--pictures", multiple=True, metavar="PATH",
    help="Tar shard, folder or picture: hidden units that hardly add to such pictures are left out; repeatable.",
)


@click.command(epilog=EXPORT_EXAMPLES)
@click.argument("checkpoint", metavar="CHECKPOINT", type=FILE)
@click.option("--out", type=FILE, default=Path("."), metavar="DIR", help="Folder to write into. [default: .]")
@click.option("--name", default="", metavar="NAME", help="Name of the release. [default: the run's folder]")
@click.option("--licences", default="not stated", metavar="TEXT", help="Licences of the training data, for the card.")
@pictures_option
@force_option
def export(
    checkpoint: Path, out: Path, name: str, licences: str, pictures: tuple[str, ...], force: bool
) -> None:
    """Turn a training CHECKPOINT into a release: NAME.safetensors and its card NAME.json."""
    check_device("cpu")
    from mcodec.training.export import export as write_release

    name = name or checkpoint.resolve().parent.name
    for target in (out / f"{name}.safetensors", out / f"{name}.json"):
        if target.exists() and not force:
            raise exists(target)
    path = write_release(checkpoint, out, name, licences, pictures, replace=force)
    click.echo(f"{path}: {path.stat().st_size:,} bytes")


@click.command(epilog=EXPERIMENT_EXAMPLES)
@click.argument("checkpoint", metavar="CHECKPOINT", type=FILE)
@click.option("--validation", multiple=True, required=True, metavar="PATH", help="Held-out pictures; repeatable.")
@click.option("--results", type=FILE, required=True, metavar="FILE", help="JSON lines to append the row to.")
@click.option("--name", default="", metavar="NAME", help="Name of the run. [default: the run's folder]")
@click.option("--change", default="", metavar="TEXT", help="What the run changed.")
@click.option("--expected", default="", metavar="TEXT", help="What that was expected to give.")
@click.option("--limit", type=click.IntRange(1), help="Measure on this many pictures only.")
@pictures_option
def experiment(
    checkpoint: Path,
    validation: tuple[str, ...],
    results: Path,
    name: str,
    change: str,
    expected: str,
    limit: int | None,
    pictures: tuple[str, ...],
) -> None:
    """Measure a run's CHECKPOINT on held-out pictures, by real files, and keep one row of it."""
    check_device("cpu")
    from mcodec.training.experiment import record

    name = name or checkpoint.resolve().parent.name
    row = record(checkpoint, results, name, {"change": change, "expected": expected}, validation, limit, pictures)
    curve = row["validation"]
    for quality, bpp, psnr in zip(curve["quality"], curve["bpp"], curve["psnr-rgb"], strict=True):
        click.echo(f"q {quality:>3}: {bpp:.4f} bpp  {psnr:.2f} dB")
