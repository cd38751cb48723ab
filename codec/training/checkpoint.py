"""Checkpoints of runs, as `Trainer.save` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mcodec.errors import TrainingError

#: What resuming and exporting need.
KEYS = {"config", "model", "model_config", "average", "optimizers", "step", "seconds", "pixels"}


def read(path: Path) -> dict[str, Any]:
    """The state of a run; TrainingError where the file cannot be read or is of something else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise TrainingError(f"cannot read checkpoint {path}: {error.strerror or error}") from error
    except Exception as error:  # torch's own words are about its formats and how to trust them
        raise TrainingError(f"cannot read checkpoint {path}: it is none, or damaged") from error
    if not isinstance(state, dict) or not state.keys() >= KEYS:
        raise TrainingError(f"cannot read checkpoint {path}: it is of another program")
    return state
