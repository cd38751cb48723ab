"""What a training run is: one dataclass, read from JSON or a preset."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from mcodec.errors import TrainingError
from mcodec.model.cascade import BETA


@dataclass(frozen=True)
class TrainConfig:
    """A run: noise phase, then hard codes, then hard codes with the encoder frozen.

    The learning rate is constant, then falls linearly to zero over the last `decay_steps` of the run, so that a run
    can be extended by raising `noise_steps` before the decay begins.
    """

    preset: str = "cascade"
    init: str = ""  # released weights (name or path) to start from; empty: from nothing
    data: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    out: str = "runs/cascade"
    noise_steps: int = 20000
    hard_steps: int = 3000
    frozen_steps: int = 1000
    batch: int = 4
    crop: int = 256
    window: int = 1024  # of pictures with longer sides one window of this size is held, 3 bytes a pixel
    decay_steps: int = 4000
    optimizer: str = "adam"  # or "soap" for the matrices of the transforms (Vyas et al. 2024, arXiv:2409.11321)
    learning_rate: float = 4e-4
    # of the linear paths, biases and per-channel factors, where an equal step costs ten times the loss; 0: the same
    fine_learning_rate: float = 0.0
    context_learning_rate: float = 3e-3  # integers: small steps would not reach the next one
    warmup: int = 300
    clip: float = 1.0  # gradient norm
    ema: float = 0.999
    beta: float = BETA  # assignment weight of the codes in training; see mcodec.model.cascade
    commitment: float = 0.1  # weight of beta * |v - mu|^2 in bits per pixel
    detail: float = 0.5  # pictures are drawn in proportion to their detail to this power: flat ones cost few bits
    balance: float = 0.7  # a picture's loss is divided by its own size to this power: all qualities count
    seed: int = 1
    threads: int = 0  # CPU threads, 0: torch's default
    device: str = "auto"
    bf16: bool = True  # convolutions of the transforms in bfloat16 where the device has it
    minutes: float = 0.0  # stop (resumably) after this long; 0: run to the end
    checkpoint_minutes: float = 5.0
    validate_every: int = 500
    validation_pictures: int = 16
    log_every: int = 20

    @property
    def steps(self) -> int:
        """All phases."""
        return self.noise_steps + self.hard_steps + self.frozen_steps

    def phase(self, step: int, gumbel: bool = False) -> str:
        """ "noise", "hard" or "frozen"; for a Gumbel model the first two are "gumbel"."""
        if step >= self.noise_steps + self.hard_steps:
            return "frozen"
        if gumbel:
            return "gumbel"
        return "noise" if step < self.noise_steps else "hard"

    def mode(self, step: int, gumbel: bool = False) -> str:
        """How the model quantizes at a step: "noise", "hard" or "gumbel"."""
        phase = self.phase(step)
        return "hard" if phase == "frozen" else "gumbel" if gumbel else phase

    def rate(self, step: int) -> float:
        """Learning-rate factor of a step."""
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        return warm * min(1.0, (self.steps - step) / max(1, self.decay_steps))

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return asdict(self)

    def updated(self, **changes: Any) -> TrainConfig:
        """A copy with the changes that are not None."""
        return replace(self, **{k: v for k, v in changes.items() if v is not None})

    @staticmethod
    def from_dict(data: dict[str, Any]) -> TrainConfig:
        """Unknown keys are a TrainingError, so that a misspelt option is not silently ignored."""
        if not isinstance(data, dict):
            raise TrainingError("a training configuration is a JSON object")
        known = {f.name for f in fields(TrainConfig)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise TrainingError(f"unknown training option {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        data = dict(data)
        if data.get("optimizer", "adam") not in ("adam", "soap"):
            raise TrainingError(f"optimizer must be adam or soap, got {data['optimizer']}")
        for key in ("data", "validation"):
            if key in data:
                value = [data[key]] if isinstance(data[key], str) else data[key]
                if not isinstance(value, list | tuple) or not all(isinstance(path, str) for path in value):
                    raise TrainingError(f"{key} must be a path or a list of paths, got {value!r}")
                data[key] = tuple(value)
        for field in fields(TrainConfig):
            value, kind = data.get(field.name, field.default), type(field.default)
            wanted = int | float if kind is float else kind
            if not isinstance(value, wanted) or isinstance(value, bool) != (kind is bool):
                raise TrainingError(f"{field.name} must be of type {kind.__name__}, got {value!r}")
        for key in ("batch", "crop", "window", "validate_every", "log_every"):
            if key in data and not (isinstance(data[key], int) and data[key] > 0):
                raise TrainingError(f"{key} must be a whole number above 0, got {data[key]!r}")
        try:
            return TrainConfig(**data)
        except TypeError as error:
            raise TrainingError(f"training configuration: {error}") from error

    @staticmethod
    def from_file(path: str | Path) -> TrainConfig:
        """Read a JSON file."""
        try:
            return TrainConfig.from_dict(json.loads(Path(path).read_text()))
        except (OSError, ValueError) as error:
            raise TrainingError(f"cannot read training configuration {path}: {error}") from error
