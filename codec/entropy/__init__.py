"""Probabilities to bytes and back: integer frequency rows and interleaved rANS (docs/ENTROPY.md)."""

from __future__ import annotations

from mcodec.entropy.batch import BatchDecoder, BatchEncoder, batch_decoder, batch_encoder
from mcodec.entropy.coder import (
    LANE_SHARE,
    Decoder,
    Encoder,
    PriorTables,
    assign,
    backend,
    frequency_rows,
    head_bytes,
    intervals,
    lanes_for,
    longest,
)

__all__ = [
    "LANE_SHARE",
    "BatchDecoder",
    "BatchEncoder",
    "Decoder",
    "Encoder",
    "PriorTables",
    "assign",
    "backend",
    "batch_decoder",
    "batch_encoder",
    "frequency_rows",
    "head_bytes",
    "intervals",
    "lanes_for",
    "longest",
]
