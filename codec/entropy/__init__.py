"""Probabilities to bytes and back: integer frequency rows and interleaved rANS (docs/ENTROPY.md)."""

from __future__ import annotations

from mcodec.entropy.coder import (
    Decoder,
    Encoder,
    PriorTables,
    assign,
    backend,
    frequency_rows,
    intervals,
    lanes_for,
)

__all__ = [
    "Decoder",
    "Encoder",
    "PriorTables",
    "assign",
    "backend",
    "frequency_rows",
    "intervals",
    "lanes_for",
]
