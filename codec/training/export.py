"""From a training checkpoint to a release: integers for whatever decides probabilities, and a model card."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mcodec import __version__, weights
from mcodec.errors import TrainingError
from mcodec.model import Cascade, ModelConfig
from mcodec.model.context import IntegerLayer
from mcodec.model.layers import Lapped, Pointwise
from mcodec.training import units
from mcodec.training.checkpoint import read as read_checkpoint
from mcodec.training.data import load_pictures, validation_batch

#: Pictures, the size of their centres, and levels by which hidden units are judged.
PRUNING, CROP, PRUNING_LEVELS = 48, 256, (12.0, 127.0, 242.0)

LIMITS = (
    "RGB photographs of 8 bits per channel; trained for {} on a small set of pictures. "
    "Not for line art, medical or scientific images where invented or lost detail matters."
)
#: Name and formula of a distortion, for the card.
OBJECTIVES = {
    "mse": ("mean squared error", "lambda * 255^2 * MSE"),
    "ms-ssim": ("MS-SSIM", "lambda * 1250 * (1 - MS-SSIM)"),
}


def load_average(checkpoint: Path) -> tuple[Cascade, dict[str, Any]]:
    """The model of a checkpoint with its averaged weights, and the checkpoint's other state."""
    state = read_checkpoint(checkpoint)
    model = Cascade(ModelConfig.from_dict(state["model_config"]))
    try:
        model.load_state_dict(state["model"])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(state["average"][name])
    except (RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(f"checkpoint {checkpoint} is not of this version's model: {reason}") from error
    units.fold(model)
    return model.eval(), state


def prune(model: Cascade, pictures: Sequence[str | Path]) -> float:
    """Leave out hidden units by what some pictures make of them; the share of units that stays.

    TrainingError where no picture is large enough for one position of the coarsest stage.
    """
    multiple, crops = model.config.multiple, []
    for picture in load_pictures(pictures, PRUNING, side=4 * CROP):  # not 48 whole photographs at once
        side = min(CROP, *picture.shape[1:]) // multiple * multiple
        if side:
            crops.append(validation_batch([picture], side, 1))
    if not crops:
        raise TrainingError(f"no picture to judge units by is at least {multiple}x{multiple}")
    gumbel = model.config.assignment == "gumbel"

    def run() -> None:
        for level in PRUNING_LEVELS:
            for crop in crops:
                model(crop, torch.full((1,), level), "gumbel" if gumbel else "hard")

    return units.prune(model, run)


def multiplications(model: Cascade, size: int = 512) -> dict[str, float]:
    """Multiply-accumulates per pixel of encoding and decoding, in thousands, counted on a size x size picture."""
    count = [0]

    def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if isinstance(module, Lapped):  # one sum of `size` products along the rows, one along the columns
            count[0] += 2 * module.size * output.numel()
            return
        weight: torch.Tensor = module.weight  # type: ignore[assignment]
        count[0] += weight[0].numel() * output.numel()

    hooked = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | Pointwise | IntegerLayer | Lapped)]
    handles = [m.register_forward_hook(hook) for m in hooked]
    x, level = torch.zeros(1, 3, size, size), torch.zeros(1)

    def codes(index: int, *_: object) -> torch.Tensor:
        stage = model.config.stages[index]
        grid = size // stage.stride
        return torch.zeros(1, stage.groups, grid, grid, dtype=torch.int64)

    result = {}
    with torch.no_grad():
        model.encode(x, level, codes)
        result["encode"] = round(count[0] / size**2 / 1000, 1)
        count[0] = 0
        model.synthesis(model.synthesize(model.read(size, size, level, codes), size, size, level), level)
        result["decode"] = round(count[0] / size**2 / 1000, 1)
    for handle in handles:
        handle.remove()
    return result


def export(
    checkpoint: Path,
    out: Path,
    name: str | None = None,
    data_licences: str = "not stated",
    pictures: Sequence[str | Path] = (),
    replace: bool = True,
) -> Path:
    """Write `out/name.safetensors` and its card `out/name.json`; returns the weights' path.

    pictures: typical ones, archives or folders; hidden units that hardly add anything to them are left out.
    replace: False for a FileExistsError where one of the files is there by then.
    """
    model, state = load_average(checkpoint)
    if pictures:
        prune(model, pictures)
    name = name or model.config.name
    distortion, formula = OBJECTIVES[model.config.distortion]
    training = dict(state["config"])
    training["data"] = [Path(p).name for p in training["data"]]
    training["validation"] = [Path(p).name for p in training["validation"]]
    training.pop("out")
    training["init"] = Path(training.get("init", "")).name
    card = {
        "name": name,
        "architecture": model.config.name,
        "mcodec": __version__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "kmac_per_pixel": multiplications(model),
        "objective": f"{formula} + bpp, lambda "
        f"{model.config.lambda_min} to {model.config.lambda_max} over quality 1 to 100",
        "steps": state["step"],
        "training_pixels": state["pixels"],
        "training_hours": round(state["seconds"] / 3600, 2),
        "training": training,
        "metrics": _last_validation(checkpoint, state["step"]),
        "data_licences": data_licences,
        "limits": LIMITS.format(distortion),
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.safetensors"
    weights.save(model, path, card, replace)
    return path


def _last_validation(checkpoint: Path, step: int) -> Any:
    """Newest validation row of the run's log up to a step (rate estimated by the model), or None."""
    try:
        lines = (checkpoint.parent / "log.jsonl").read_text().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a full disk leaves half a line
            row = json.loads(line)
            if row["step"] <= step:
                return row["validation"]
    return None
