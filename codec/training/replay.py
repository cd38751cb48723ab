"""A training step as a CUDA graph: thousands of small launches become one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch

T = TypeVar("T")

#: Plain calls before the capture: they allocate the optimizer's state, compile kernels and let libraries choose.
PLAIN = 3


class Replay(Generic[T]):
    """Calls a function that works on tensors of fixed addresses: a few times as it is, then as one captured graph.

    The function must not wait for the device. What it returns after the capture is overwritten by each further call.
    """

    def __init__(self, work: Callable[[], T], device: torch.device) -> None:
        self.work, self.calls = work, 0
        self.stream = torch.cuda.Stream(device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.result: T

    def __call__(self) -> T:
        self.calls += 1
        if self.calls <= PLAIN:
            current = torch.cuda.current_stream(self.stream.device)
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                result = self.work()
            current.wait_stream(self.stream)
            return result
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=self.stream):
                self.result = self.work()
        self.graph.replay()
        return self.result
