"""Released weights: a `.safetensors` file and its model card.

Everything that decides probabilities is stored as integers; the rest as float16 or float32. The card beside the
file (`NAME.json`) says what the weights are and holds the SHA-256 that is checked on loading; the first 8 bytes of
that hash are the fingerprint that a .mci file names its weights by. Nothing is ever unpickled.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcodec.container import FINGERPRINT_BYTES, Container
from mcodec.errors import ModelError

if TYPE_CHECKING:
    from mcodec.model import Cascade

#: Loaded when no model is named.
DEFAULT = "cascade"
#: The environment variable for more folders of weights, separated as those of PATH: of former releases, one's own.
MORE = "MCODEC_WEIGHTS"


def folder() -> Path:
    """Where the installed package keeps its released weights."""
    import mcodec.checkpoints as checkpoints

    return Path(next(iter(checkpoints.__path__)))


def installed() -> list[Path]:
    """The weights files of the package, then those of the folders that MORE names."""
    return [path for place in [folder(), *_more()] for path in sorted(place.glob("*.safetensors"))]


def cards() -> Iterator[tuple[Path, dict[str, Any]]]:
    """The installed weights with their cards; without those that `problems` names, which must not stop the others."""
    for path in installed():
        with suppress(ModelError):
            yield path, read_card(path)


def problems() -> list[str]:
    """What is wrong with folders that MORE names and with cards of installed weights, a line each."""
    found = [f"{MORE}: there is no folder {place}" for place in _more() if not place.is_dir()]
    for path in installed():
        try:
            read_card(path)
        except ModelError as error:
            found.append(f"{path.parent}: {error}")
    return found


def _more() -> list[Path]:
    return [Path(place) for place in os.environ.get(MORE, "").split(os.pathsep) if place]


def find(model: str | Path | None = None) -> Path:
    """The weights file of an installed name, of a path, or of the first 8 digits or more of a SHA-256.

    Of weights that share a name the package's come first. ModelError names what is there.
    """
    name = str(model) if model is not None else DEFAULT
    there = installed()
    for path in there:
        if path.stem == name:
            return path
    path = Path(name)
    if path.suffix == ".safetensors" and path.is_file():
        return path
    if re.fullmatch("[0-9a-f]{8,64}", name) and (found := _of(name)):
        return found
    known = ", ".join(path.stem for path in there) or "none"
    raise ModelError(f"no weights {name!r}; installed: {known}; or give the path of a .safetensors file")


def _of(digits: str) -> Path | None:
    return next((path for path, card in cards() if card["sha256"].startswith(digits)), None)


def named_by(file: Container) -> str | None:
    """Path of the installed weights that a .mci file names; None, which is the default, where they are not there."""
    path = _of(file.header.fingerprint.hex())
    return None if path is None else str(path)


def read_card(path: Path) -> dict[str, Any]:
    """The model card beside a weights file."""
    card = path.with_suffix(".json")
    try:
        data = json.loads(card.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read the model card {card.name}: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("sha256"), str):
        raise ModelError(f"the model card {card.name} is not a JSON object with the SHA-256 of weights")
    return data


def list_models() -> list[dict[str, Any]]:
    """Cards of the installed weights, each with `file` and `folder`; reads no weights."""
    default = folder() / f"{DEFAULT}.safetensors"
    return [
        {"file": path.name, "folder": str(path.parent), "default": path == default, **card} for path, card in cards()
    ]


def save(model: Cascade, path: Path, card: dict[str, Any], replace: bool = True) -> dict[str, Any]:
    """Write weights and card, both or none; returns the card with hash and size. replace: as of `atomic`."""
    from safetensors.torch import save as serialize

    from mcodec.files import atomic

    if not replace and path.with_suffix(".json").exists():  # it gets its name last
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path.with_suffix(".json")))
    content = serialize(release_tensors(model), {"config": json.dumps(model.config.to_dict())})
    card = {**card, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    with atomic(path.with_suffix(".json"), replace) as beside, atomic(path, replace) as file:
        beside.write((json.dumps(card, indent=1) + "\n").encode())
        beside.flush()  # a disk that is full shows before either has its name
        file.write(content)
    return card


def load(path: Path) -> tuple[Cascade, bytes]:
    """Model in evaluation mode and fingerprint; ModelError where file, card and hash do not agree."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load as parse

    from mcodec.model import Cascade, ModelConfig, bounds

    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read weights {path}: {error}") from error
    digest = hashlib.sha256(content)
    card = read_card(path)
    if card.get("sha256") != digest.hexdigest():
        raise ModelError(f"weights {path.name} do not have the SHA-256 that their card names: file damaged?")
    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        config = ModelConfig.from_dict(json.loads(header["__metadata__"]["config"]))
        tensors = parse(content)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"weights {path.name} are not a model of mcodec: {error}") from error
    try:
        with torch.random.fork_rng(devices=[]):  # initial values are overwritten; the caller's generator is not ours
            model = Cascade(config).float()  # whatever the default type is
    except (ValueError, KeyError, TypeError, RuntimeError, ArithmeticError) as error:
        raise ModelError(f"weights {path.name} have a configuration that is no model: {error}") from error
    load_tensors(model, tensors)
    bounds.check(model)
    return model.eval(), digest.digest()[:FINGERPRINT_BYTES]


def release_tensors(model: Cascade) -> dict[str, Any]:
    """State of a trained model as a release stores it."""
    import torch

    from mcodec.model.context import IntegerLayer, QualityTable
    from mcodec.model.layers import Exact1x1
    from mcodec.model.quantizer import Codebooks

    tensors: dict[str, torch.Tensor] = {"precision": model.precision}
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, IntegerLayer):
                weight, bias = module.integers()
                tensors[f"{name}.weight"], tensors[f"{name}.bias"] = weight.to(torch.int8), bias.to(torch.int32)
            elif isinstance(module, QualityTable):
                rows = module.rows if len(module.rows) else module.table()
                tensors[f"{name}.rows"] = rows.to(torch.int8)
            elif isinstance(module, Codebooks):
                codewords, weights, coordinates = module.integers()
                tensors[f"{name}.integer_codewords"] = codewords
                tensors[f"{name}.integer_log_weights"] = weights
                tensors[f"{name}.coordinates"] = coordinates
                tensors[f"{name}.codewords"] = module.codewords.detach()
            else:
                for key, value in module.named_parameters(recurse=False):
                    half = key == "weight" and not isinstance(module, Exact1x1)
                    tensors[f"{name}.{key}"] = value.detach().half() if half else value.detach()
    return {key: value.cpu().contiguous().clone() for key, value in tensors.items()}


def load_tensors(model: Cascade, tensors: dict[str, Any]) -> None:
    """Inverse of `release_tensors`; ModelError names what is missing or has the wrong shape."""
    import torch

    from mcodec.model.context import IntegerLayer, QualityTable
    from mcodec.model.layers import Body
    from mcodec.model.quantizer import Codebooks

    def take(key: str, like: torch.Tensor | None = None) -> torch.Tensor:
        if key not in tensors:
            raise ModelError(f"weights lack {key}")
        value: torch.Tensor = tensors[key]
        if like is not None and value.shape != like.shape:
            raise ModelError(f"weights: {key} has shape {list(value.shape)}, not {list(like.shape)}")
        return value

    with torch.no_grad():
        model.precision = take("precision", model.precision)
        for name, module in model.named_modules():
            if isinstance(module, Body):  # a release leaves out hidden units that stay closed
                widths = [module.width, *take(f"{name}.{len(module) - 1}.weight").shape[1:2]]
                module.select(torch.arange(max(1, min(widths))))  # before its layers come
            elif isinstance(module, IntegerLayer):
                stored = take(f"{name}.weight", module.weight), take(f"{name}.bias", module.bias)
                module.load_integers(*stored)
                if not all(map(torch.equal, module.integers(), (value.float() for value in stored))):
                    raise ModelError(f"weights: {name} has values that are no integers in range")
            elif isinstance(module, QualityTable):
                module.rows = take(f"{name}.rows")
                module.anchors.zero_()  # a released model has the table only
            elif isinstance(module, Codebooks):
                module.codewords.copy_(take(f"{name}.codewords", module.codewords))
                module.integer_codewords = take(f"{name}.integer_codewords", module.codewords)
                module.integer_log_weights = take(f"{name}.integer_log_weights", module.log_weights)
                module.coordinates = take(f"{name}.coordinates", module.codewords)
                module.log_weights.zero_()
                module.temperature.fill_(1.0)
            else:
                for key, value in module.named_parameters(recurse=False):
                    value.copy_(take(f"{name}.{key}", value))
