"""What encoder and decoder of tiles share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from mcodec import container, entropy
from mcodec.kernels.backend import upload
from mcodec.model import Cascade, shifts

T = TypeVar("T")

#: Pictures and tiles of one padded size go through the networks together: so many pixels of them on a GPU at least, at
#: most (where nothing is gained any more), and for what memory it has.
BATCH_PIXELS, MAX_BATCH_PIXELS = 2**22, 2**25
BYTES_PER_PIXEL = 1024  # the activations at stride 4, several times over


@dataclass(frozen=True)
class Engine:
    """Weights on a device, and the settings of the codec that works with them; see `Codec`."""

    model: Cascade
    tables: Sequence[entropy.PriorTables]  # of the stages
    device: torch.device
    bf16: bool
    tile: int
    tile_workers: int
    batch_pixels: int
    lane_share: float

    def prior(
        self, index: int, offset: Tensor | None, scale: Tensor | None, shift: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Prior parameters of a stage, `[B, M, d, P]`; shift: of each tile's scales, `[B]`."""
        if offset is None or scale is None:
            return None, None
        if shift is not None:
            scale = shifts.moved(scale, shift)
        vectors: Callable[[Tensor], Tensor] = self.model.stage(index).codebooks.vectors
        return vectors(offset), vectors(scale)

    def level_tensor(self, levels: Sequence[int]) -> Tensor:
        """Levels of a batch as the networks take them, `[B]`."""
        return upload(torch.tensor(levels, dtype=torch.float32), self.device)

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """Both sides as multiples of the coarsest stride."""
        multiple = self.model.config.multiple
        return -(-height // multiple) * multiple, -(-width // multiple) * multiple

    def batches(self, keys: Sequence[Any], sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
        """Indices of equal key, in batches of at most `batch_pixels` (at least one each)."""
        groups: dict[Any, list[int]] = {}
        for index, key in enumerate(keys):
            groups.setdefault(key, []).append(index)
        batches = []
        for members in groups.values():
            height, width = sizes[members[0]]
            count = max(1, self.batch_pixels // (height * width))
            batches += [members[i : i + count] for i in range(0, len(members), count)]
        return batches

    def each(self, work: Callable[[T], None], jobs: Iterable[T], workers: int | None = None) -> None:
        """`work` for all jobs, on so many threads (default: `tile_workers`)."""
        jobs, workers = list(jobs), workers or self.tile_workers
        if workers < 2 or len(jobs) < 2:
            for job in jobs:
                work(job)
            return
        inference = torch.is_inference_mode_enabled()  # threads do not inherit it, and only in it may they write

        def run(job: T) -> None:  # to what was made in it
            with torch.inference_mode(inference):
                work(job)

        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(run, job) for job in jobs]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def precision(self) -> AbstractContextManager[object]:
        """The context in which networks run: bfloat16 where `bf16` asks for it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


def batch_pixels(device: torch.device) -> int:
    """How many pixels go through the networks together on a device."""
    if device.type == "cpu":  # large tiles gain nothing by sharing a pass, and memory is what they lack
        return container.TILE**2
    if device.type != "cuda":
        return BATCH_PIXELS
    memory = torch.cuda.get_device_properties(device).total_memory
    return max(BATCH_PIXELS, min(MAX_BATCH_PIXELS, memory // BYTES_PER_PIXEL))
