"""What a training run shows: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

#: Weight of the past in the shown means: each step draws another quality, so single values jump.
SMOOTH = 0.95
#: Seconds between lines where there is no terminal.
QUIET = 30.0


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class _Bar(Progress):
    """A bar with a line of figures below it."""

    line = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text(self.line)


class TrainingProgress:
    """Use as a context manager and pass `report` to `Trainer.run`."""

    def __init__(self, steps: int, minutes: float = 0.0, console: Console | None = None) -> None:
        self.steps, self.minutes = steps, minutes
        self.console = console or Console(stderr=True, highlight=False)
        self.bar = _Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("ETA {task.fields[left]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task: TaskID | None = None
        self.means: dict[str, float] = {}
        self.first: tuple[int, float] | None = None  # (step, time) of the first report
        self.shown = 0.0

    def __enter__(self) -> TrainingProgress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def report(self, row: dict[str, Any]) -> None:
        """Take one row of the training log."""
        if "validation" in row:
            points = "  ".join(f"{p['bpp']:.3f} bpp {p['psnr']:.2f} dB" for p in row["validation"])
            self.console.print(f"step {row['step']}: {points}  score {row['score']:.3f}", soft_wrap=True)
        elif "phase" in row:
            self._step(row)

    def _mean(self, name: str, value: float) -> float:
        past = self.means.get(name, value)
        if not math.isfinite(past):  # one bad step does not hide all later ones
            past = value
        self.means[name] = SMOOTH * past + (1 - SMOOTH) * value
        return self.means[name]

    def _left(self, step: int, now: float) -> str:
        if self.first is None:
            self.first = (step, now)
        first, began = self.first
        if step == first:
            return "?"
        seconds = (now - began) / (step - first) * (self.steps - step)
        if self.minutes:
            seconds = min(seconds, max(0.0, 60 * self.minutes - (now - began)))
        return _clock(seconds)

    def _step(self, row: dict[str, Any]) -> None:
        now = time.monotonic()
        stages = "/".join(f"{self._mean(f'stage{i}', b):.2f}" for i, b in enumerate(row["stage_bpp"]))
        used = "/".join(f"{100 * self._mean(f'used{i}', u):.0f}" for i, u in enumerate(row["used"]))
        text = f"{self._mean('bpp', row['bpp']):.3f} bpp ({stages})  {self._mean('psnr', row['psnr']):.2f} dB"
        if used:
            text += f"  codewords {used} %"
        left = self._left(row["step"], now)
        if not self.bar.disable:
            self.bar.line = text
            if self.task is None:
                self.task = self.bar.add_task(row["phase"], total=self.steps, left=left)
            self.bar.update(self.task, completed=row["step"], description=row["phase"], left=left)
        elif now - self.shown > QUIET or row["step"] == self.steps:
            self.shown = now
            place = f"{row['phase']} {row['step']}/{self.steps}"
            self.console.print(f"{place}  {text}  ETA {left}", soft_wrap=True)
