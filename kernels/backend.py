"""Which implementation of an operation runs, and the one import of Triton.

`MCODEC_KERNELS` chooses:

- `auto` (the default): Triton for CUDA tensors, the torch reference for others. Where Triton is not installed the
  reference takes over with a warning; a Triton that is there and fails to import raises its failure on use.
- `reference`: torch everywhere.
- `triton`: Triton everywhere. CPU tensors need its interpreter: `TRITON_INTERPRET=1`, set before the import of mcodec.

Integer results do not depend on the choice.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

_CHOICES = ("auto", "reference", "triton")

triton: Any = None
tl: Any = None
_failure: Exception | None = None
# A quarter of a second that a machine without a use for it does not pay.
if torch.cuda.is_available() or "TRITON_INTERPRET" in os.environ or os.environ.get("MCODEC_KERNELS") == "triton":
    try:
        triton = importlib.import_module("triton")
        tl = importlib.import_module("triton.language")
    except Exception as error:  # an OSError of its library, an AttributeError beside another torch: the CPU needs none
        triton, tl, _failure = None, None, error


def jit(kernel: Callable[..., Any]) -> Any:
    """`triton.jit`; where Triton is missing the function stays as it is, and `use_triton` lets nobody launch it."""
    return kernel if triton is None else triton.jit(kernel)


@cache
def _warn_missing() -> None:
    warnings.warn("Triton is not installed: torch operations, far slower, take the place of kernels", RuntimeWarning,
                  stacklevel=4)


def use_triton(device: torch.device) -> bool:
    """Whether operations on tensors of `device` are Triton's; else they are the reference's.

    ValueError for an unknown `MCODEC_KERNELS`, and for `triton` where it cannot run; ImportError, with Triton's own as
    its cause, where Triton is needed and failed to import.
    """
    choice = os.environ.get("MCODEC_KERNELS", "auto")
    if choice not in _CHOICES:
        raise ValueError(f"MCODEC_KERNELS must be one of {', '.join(_CHOICES)}, got {choice!r}")
    if choice == "reference" or (choice == "auto" and device.type != "cuda"):
        return False
    if triton is None:
        if choice == "auto" and isinstance(_failure, ModuleNotFoundError) and _failure.name == "triton":
            _warn_missing()
            return False
        raise ImportError("kernels need Triton, which was not imported; MCODEC_KERNELS=reference does without") from (
            _failure
        )
    if device.type != "cuda" and not interpreted():
        raise ValueError(f"MCODEC_KERNELS is triton, but tensors are on {device}, where only its interpreter runs")
    return True


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on tensors of the CPU."""
    return triton is not None and bool(triton.knobs.runtime.interpret)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **meta: Any) -> None:
    """Launch on the device of the first argument, a tensor; nothing where the grid is empty.

    Contraction of products and sums is asked for, because Triton warns where nobody says: floats occur only where
    rounding decides no stream.
    """
    if 0 not in grid:
        with torch.cuda.device_of(args[0]):
            kernel[grid](*args, enable_fp_fusion=True, **meta)


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on a device; where that is a GPU, without waiting for the work that is queued there.

    Only page-locked memory is copied behind the host's back; the allocator keeps it until the copy is made.
    """
    if device.type != "cuda" or tensor.device.type != "cpu" or tensor.numel() == 0:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def warps(elements: int) -> int:
    """Warps for a tile: 8 elements per thread, 1 to 16 warps."""
    return max(1, min(16, elements // 256))


def tile_rows(width: int, compiled: int = 1024, slow: int = 1 << 16) -> int:
    """Rows of a tile of `width` columns, both powers of two: `compiled` elements in all or one row.

    In the interpreter, whose time goes by operation rather than by element, `slow` elements.
    """
    return max(1, (slow if interpreted() else compiled) // width)


def symbol_tiles(positions: int, size: int) -> tuple[int, dict[str, int]]:
    """Programs over the positions of a group of symbols, and the tile of each: codewords, of `size`, piece by piece."""
    columns = min(2048 if interpreted() else 128, triton.next_power_of_2(size))
    rows = min(64 if interpreted() else 16, triton.next_power_of_2(max(positions, 1)))
    return -(-positions // rows), {"ROWS": rows, "COLUMNS": columns, "num_warps": 4}
