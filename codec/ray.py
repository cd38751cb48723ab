"""Ray Data: folders of pictures over many processes and machines.

::

    import ray
    import mcodec.ray

    pictures = ray.data.read_binary_files("photos/", include_paths=True)
    coded = pictures.map_batches(
        mcodec.ray.Encode,
        fn_constructor_kwargs={"quality": 60},
        compute=ray.data.ActorPoolStrategy(size=2),
        batch_size=16,
    )

Each worker loads the weights once. A batch is a dictionary of columns, as Ray Data passes it; an item that fails has
None in the new column and its reason in "error". Needs the extra "ray".
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcodec import container, weights
from mcodec.api import load
from mcodec.batch import Result
from mcodec.errors import CodecError
from mcodec.files import read_bytes
from mcodec.reading import default_codec

Batch = dict[str, NDArray[Any]]


class _Worker:
    def __init__(self, column: str, model: str | None, device: str) -> None:
        self.column, self.codec, self.model, self.device = column, load(model, device), model, device


class Encode(_Worker):
    """Picture files (bytes, paths) or arrays in `column` -> the batch with "mci" (bytes) and "error"."""

    def __init__(
        self,
        quality: float = 50,
        metadata: str = "all",
        column: str = "bytes",
        model: str | None = None,
        device: str = "auto",
        effort: int = 1,
    ) -> None:
        super().__init__(column, model, device)
        self.quality, self.metadata, self.effort = quality, metadata, effort

    def __call__(self, batch: Batch) -> Batch:
        items = self.codec.encode_iter(batch[self.column], self.quality, self.metadata, effort=self.effort)
        results = list(items)
        return {**batch, "mci": _column([r.value for r in results]), "error": _reasons(results)}


class Decode(_Worker):
    """Files (bytes, paths) in `column` -> the batch with "image" (array `[H, W]` or `[H, W, C]`) and "error".

    Where no model is named, each file is decoded with those of the installed weights that it names.
    """

    def __init__(self, column: str = "bytes", model: str | None = None, device: str = "auto") -> None:
        super().__init__(column, model, device)

    def __call__(self, batch: Batch) -> Batch:
        groups: dict[str | None, list[int]] = {}
        for index, item in enumerate(batch[self.column]):
            groups.setdefault(self._others(item), []).append(index)
        found: dict[int, Result[Any]] = {}
        for name, places in groups.items():
            try:
                codec = self.codec if name is None else default_codec(name, self.device)
            except CodecError as error:  # weights that are damaged are the matter of the files that name them
                found |= {index: Result(batch[self.column][index], error=error) for index in places}
                continue
            found |= zip(places, codec.decode_iter(batch[self.column][places]), strict=True)
        results = [found[index] for index in range(len(found))]
        images = [None if r.value is None else np.asarray(r.value) for r in results]
        reasons = _reasons(results)
        for index, item in enumerate(batch[self.column]):
            if item is None and "error" in batch:  # of the step that made none: its reason is the one that counts
                reasons[index] = batch["error"][index]
        return {**batch, "image": _column(images), "error": reasons}

    def _others(self, item: Any) -> str | None:
        """Path of the installed weights that a file names where they are not those that are loaded."""
        if self.model is not None or item is None:
            return None
        try:
            file = container.unpack(read_bytes(item) if isinstance(item, str | PathLike) else bytes(memoryview(item)))
        except Exception:  # whatever the item is: decoding says what is wrong with it
            return None
        return None if file.header.fingerprint == self.codec.fingerprint else weights.named_by(file)


def _column(values: list[Any]) -> NDArray[Any]:
    """One object per row: numpy would make one array of equal shapes, and a number of bytes."""
    column = np.empty(len(values), object)
    for index, value in enumerate(values):
        column[index] = value
    return column


def _reasons(results: Sequence[Result[Any]]) -> NDArray[Any]:
    return _column([None if r.error is None else str(r.error) or type(r.error).__name__ for r in results])
