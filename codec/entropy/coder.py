"""Codes of a tile to bytes and back, by the compiled backend or the numpy reference.

`MCODEC_ENTROPY` chooses the backend: `c`, `numpy`, or `auto` (the default: c, or numpy with a warning where
the extension was not built). `tensor` is a choice of mcodec.entropy.batch and means `auto` here. All give the
same bytes and the same codes: the choice only changes the time. `assign`, which only an encoder uses, works in
float32; there the backends may part where two codewords are equally good.

One stage has M sub-codebooks of K codewords of dimension d over P positions. Its arrays, the same everywhere:

- `offset` int16 `[M, d, P]`, 1/16 latent step, magnitude at most 1023
- `scale` uint8 `[M, d, P]`, indices into the stage's precision table
- `codes` int32 `[M, P]`, 0 to K - 1

A symbol whose d scale indices are all 0 is *skipped*: it is not coded and its code is 0. A static prior has
no context: offset and scale are None and nothing is skipped.
"""

from __future__ import annotations

import importlib
import math
import os
import warnings
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from mcodec.entropy import rans
from mcodec.errors import CorruptStream
from mcodec.kernels.mixture_frequencies import EVERY, MixtureTables

#: Limits of the tables and arrays; docs/ENTROPY.md says what each one protects.
MAX_CODEWORDS = 8192
MAX_DIMENSION = 64
MAX_VALUE = 1023
MAX_PRECISION = 1 << 14
MAX_SCALES = 256
#: Frequencies round what is 2^-15 times as probable as the largest to 0: a smaller reach would cut into the rows.
MIN_REACH, MAX_REACH = 16, 1024
MAX_LOG2_LANES = 10
#: The part of a stream that its lanes may take, unless said otherwise.
LANE_SHARE = 0.001
#: What a lane then carries, in the unit of `lanes_for`: at least 6040 bytes, of which its state's 6 are 0.1 %.
SURPRISE_PER_LANE = 33500 << 16

_CHOICES = ("auto", "c", "numpy", "tensor")

_extension: ModuleType | None = None
_failure: ImportError | None = None
try:
    _extension = importlib.import_module("mcodec.entropy._rans")
except ImportError as error:
    _failure = error


@cache
def _warn_missing() -> None:
    warnings.warn(
        f"the compiled entropy coder is missing ({_failure}); the numpy reference, far slower, is used",
        RuntimeWarning,
        stacklevel=4,
    )


def choice() -> str:
    """What `MCODEC_ENTROPY` asks for; ValueError where that is unknown."""
    asked = os.environ.get("MCODEC_ENTROPY", "auto")
    if asked not in _CHOICES:
        raise ValueError(f"MCODEC_ENTROPY must be one of {', '.join(_CHOICES)}, got {asked!r}")
    return asked


def backend() -> str:
    """The backend that works now: `c` or `numpy`.

    ValueError for an unknown `MCODEC_ENTROPY`; ImportError, with the extension's own as its cause, for `c`
    where it cannot be imported.
    """
    asked = choice()
    if asked == "numpy":
        return "numpy"
    if _extension is not None:
        return "c"
    if asked == "c":
        raise ImportError("MCODEC_ENTROPY is c, but the compiled entropy coder is missing") from _failure
    _warn_missing()
    return "numpy"


def _primitives() -> ModuleType:
    if backend() == "c" and _extension is not None:
        return _extension
    return rans


def _array(name: str, value: ArrayLike, dtype: type[np.generic], shape: tuple[int | None, ...]) -> NDArray[Any]:
    """`value`, aligned and C-contiguous; ValueError unless its type and shape (None: any) are these."""
    array = np.asarray(value)
    fits = array.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
    if array.dtype != dtype or not fits:
        wanted = ", ".join("*" if n is None else str(n) for n in shape)
        raise ValueError(
            f"{name} must be {np.dtype(dtype).name} [{wanted}], got {array.dtype.name} {list(array.shape)}"
        )
    return np.require(array, np.dtype(dtype), ["C", "A"])


def _check_range(name: str, array: NDArray[Any], low: int, high: int) -> None:
    if array.size and not low <= (value := int(array.min())):
        raise ValueError(f"{name} must be at least {low}, got {value}")
    if array.size and not (value := int(array.max())) <= high:
        raise ValueError(f"{name} must be at most {high}, got {value}")


@dataclass(frozen=True, eq=False)
class PriorTables:
    """Integer tables of one stage, from the weights. ValueError for a wrong type, shape or range.

    codewords int16 `[M, K, d]`, 1/16 latent step, magnitude at most 1023, 2 <= K <= 8192, 1 <= d <= 64
    log_weights int16 `[M, K]`, 1/64 bit
    precision int32 `[S]`, S <= 256, 1 to 2^14, in 1/64 bit * 2^-10 per (1/16 step)^2
    reach from 16 to 1024, in bits: codewords so much less probable than the likeliest have no frequency, but for the
        first two; 0: all have one
    """

    codewords: NDArray[np.int16]
    log_weights: NDArray[np.int16]
    precision: NDArray[np.int32]
    reach: int = 0
    _copies: dict[torch.device, MixtureTables] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        codewords = _array("codewords", self.codewords, np.int16, (None, None, None))
        groups, size, dimension = codewords.shape
        for what, value, low, high in (
            ("number of sub-codebooks", groups, 1, None),
            ("number of codewords", size, 2, MAX_CODEWORDS),
            ("dimension", dimension, 1, MAX_DIMENSION),
        ):
            if value < low or (high is not None and value > high):
                bound = f"from {low} to {high}" if high is not None else f"at least {low}"
                raise ValueError(f"codewords: {what} must be {bound}, got {value}")
        _check_range("codewords", codewords, -MAX_VALUE, MAX_VALUE)
        log_weights = _array("log_weights", self.log_weights, np.int16, (groups, size))
        precision = _array("precision", self.precision, np.int32, (None,))
        if not 1 <= len(precision) <= MAX_SCALES:
            raise ValueError(f"precision: number of scales must be from 1 to {MAX_SCALES}, got {len(precision)}")
        _check_range("precision", precision, 1, MAX_PRECISION)
        if self.reach and not MIN_REACH <= self.reach <= MAX_REACH:
            raise ValueError(f"reach must be 0 or from {MIN_REACH} to {MAX_REACH}, got {self.reach}")
        for name, array in (("codewords", codewords), ("log_weights", log_weights), ("precision", precision)):
            object.__setattr__(self, name, array)

    @property
    def arguments(self) -> tuple[NDArray[np.int16], NDArray[np.int16], NDArray[np.int32], int]:
        """What the primitives take first."""
        return self.codewords, self.log_weights, self.precision, self.cutoff

    @property
    def cutoff(self) -> int:
        """The reach in units of logits; without one, more than their range."""
        return 64 * self.reach or EVERY

    def on(self, device: torch.device) -> MixtureTables:
        """The same tables as tensors, copied to a device once."""
        if device not in self._copies:
            arrays = (self.codewords, self.log_weights, self.precision)
            tensors = [torch.from_numpy(a).to(device) for a in arrays]
            self._copies[device] = MixtureTables.build(tensors[0], tensors[1], tensors[2], self.cutoff)
        return self._copies[device]

    def context(
        self, offset: NDArray[np.int16] | None, scale: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.int16], NDArray[np.uint8]] | tuple[None, None]:
        """`offset` and `scale`, checked against these tables."""
        if offset is None and scale is None:
            return None, None
        if offset is None or scale is None:
            raise ValueError("offset and scale must both be arrays, or both None for a static prior")
        groups, _, dimension = self.codewords.shape
        offset = _array("offset", offset, np.int16, (groups, dimension, None))
        scale = _array("scale", scale, np.uint8, offset.shape)
        _check_range("offset", offset, -MAX_VALUE, MAX_VALUE)
        _check_range("scale", scale, 0, len(self.precision) - 1)
        return offset, scale


def frequency_rows(
    tables: PriorTables,
    offset: NDArray[np.int16] | None,
    scale: NDArray[np.uint8] | None,
    group: int,
    positions: ArrayLike | None = None,
) -> NDArray[np.uint32]:
    """Full rows of sub-codebook `group` at `positions` (None: all) -> uint32 `[P, K]`, each of sum 2^16.

    Always by the numpy reference; skipped symbols have a row too. The row of a static prior is the same
    everywhere: without `positions` it comes once, `[1, K]`.
    """
    offset, scale = tables.context(offset, scale)
    if not 0 <= group < len(tables.codewords):
        raise ValueError(f"group must be from 0 to {len(tables.codewords) - 1}, got {group}")
    if positions is not None:
        index = np.asarray(positions, np.intp)
    else:
        index = np.arange(1 if offset is None else offset.shape[2])
    logits = rans.logits(tables.codewords, tables.log_weights, tables.precision, offset, scale, group, index)
    return rans.rows(logits, tables.cutoff)


def intervals(
    tables: PriorTables,
    offset: NDArray[np.int16] | None,
    scale: NDArray[np.uint8] | None,
    codes: NDArray[np.int32],
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Intervals of the coded symbols -> (start, freq), uint16 `[N]`, in coding order; 1 <= freq <= 65535.

    ValueError for arrays that do not fit the tables, for a skipped symbol whose code is not 0, and for a code that is
    beyond the tables' reach.
    """
    offset, scale = tables.context(offset, scale)
    groups, size, _ = tables.codewords.shape
    codes = _array("codes", codes, np.int32, (groups, None if offset is None else offset.shape[2]))
    _check_range("codes", codes, 0, size - 1)
    coded = rans.coded_symbols(scale, codes.shape)
    if (wrong := codes[~coded]).any():
        raise ValueError(f"codes must be 0 where all scale indices are 0 (skipped), got {wrong.max()}")
    count = int(np.count_nonzero(coded))
    start, freq = np.empty(count, np.uint16), np.empty(count, np.uint16)
    _primitives().intervals(*tables.arguments, offset, scale, codes, start, freq)
    return start, freq


def assign(
    tables: PriorTables,
    offset: NDArray[np.int16] | None,
    scale: NDArray[np.uint8] | None,
    latents: NDArray[np.float32],
    codewords: NDArray[np.float32],
    beta: float,
) -> NDArray[np.int32]:
    """Rate-aware assignment: argmin_k beta * |v - mu_k|^2 - ln p_k -> codes int32 `[M, P]`, 0 where skipped.

    latents v float32 `[M, d, P]`, finite; codewords mu float32 `[M, K, d]` in the same unit; beta in nats per
    squared unit, >= 0. ln p is ln 2 / 64 per unit of the integer logits, up to a constant. Codewords beyond the tables'
    reach are not chosen. Float32: exact ties
    go to the lowest k, and backends and machines may differ where two objectives are equal but for rounding.
    """
    offset, scale = tables.context(offset, scale)
    groups, _, dimension = tables.codewords.shape
    positions = None if offset is None else offset.shape[2]
    latents = _array("latents", latents, np.float32, (groups, dimension, positions))
    points = _array("codewords", codewords, np.float32, tables.codewords.shape)
    if not (math.isfinite(beta) and beta >= 0):
        raise ValueError(f"beta must be finite and at least 0, got {beta}")
    for name, array in (("latents", latents), ("codewords", points)):
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    codes = np.empty((groups, latents.shape[2]), np.int32)
    _primitives().assign(*tables.arguments, offset, scale, latents, points, float(beta), codes)
    return codes


def surprise_per_lane(share: float = LANE_SHARE) -> int:
    """What a lane must carry, in the unit of `lanes_for`, where lanes may take this share of the bytes."""
    if not 0.0001 <= share <= 0.1:
        raise ValueError(f"the share of lanes must be from 0.0001 to 0.1, got {share}")
    return int(SURPRISE_PER_LANE * (LANE_SHARE / share))


def lanes_for(surprise: int, share: float = LANE_SHARE) -> int:
    """Lanes of a tile: a power of two, from 1 to 1024, such that more than one add at most `share` to its bytes.

    surprise: sum of 2^16 - freq over the coded symbols. As -log2 p >= (1 - p) log2 e, the symbols take at least
    surprise * log2(e) / 2^16 bits: a bound in integers, equal on every machine.
    """
    return 1 << max(0, min(MAX_LOG2_LANES, (surprise // surprise_per_lane(share)).bit_length() - 1))


def longest(symbols: int) -> int:
    """Bytes of the longest stream of so many symbols: one word for each (docs/ENTROPY.md, "Size")."""
    return 1 + rans.STATE_BYTES * (1 << MAX_LOG2_LANES) + 2 * symbols


def head_bytes(stream: bytes) -> int:
    """Bytes before the words of a stream."""
    return 1 + rans.STATE_BYTES * (1 << stream[0])


def parse(data: bytes) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """Head and body of a stream: (states `[L]`, the words' bytes). CorruptStream for a head that cannot be."""
    if not data:
        raise CorruptStream("entropy-coded data is empty")
    if data[0] > MAX_LOG2_LANES:
        raise CorruptStream(f"log2 of the lane count is {data[0]}, at most {MAX_LOG2_LANES} is allowed")
    lanes = 1 << data[0]
    head = head_bytes(data)
    size = len(data) - head
    if size < 0 or size % 2:
        raise CorruptStream(f"entropy-coded data of {lanes} lanes cannot have {len(data)} bytes")
    padded = np.zeros((lanes, 8), np.uint8)
    padded[:, : rans.STATE_BYTES] = np.frombuffer(data, np.uint8, head - 1, 1).reshape(lanes, -1)
    states = padded.view("<u8")[:, 0].astype(np.uint64)
    if (states < rans.LOWEST).any():
        raise CorruptStream(f"a coder state is {states.min()}, at least {rans.LOWEST} is needed")
    return states, np.frombuffer(data, np.uint8, size, head)


def _ended_early(words: int) -> CorruptStream:
    return CorruptStream(f"entropy-coded data ended early, after {words} words")


def check_end(read: int, words: int, wrong: int, lanes: int) -> None:
    """CorruptStream unless a decoder read all words and none of its lanes' states is wrong at the end."""
    if read > words:
        raise _ended_early(words)
    if read < words:
        raise CorruptStream(f"{words - read} words are left after the last symbol")
    if wrong:
        raise CorruptStream(f"{wrong} of {lanes} coder states are wrong at the end")


class Encoder:
    """Codes of one tile to bytes::

        encoder = Encoder()
        for tables, offset, scale, codes in stages:
            encoder.add_stage(tables, offset, scale, codes)
        data = encoder.finish()

    `data` is one byte log2 L, then L states (6 bytes each, little-endian), then the words (little-endian uint16).
    lane_share: the part of the bytes that lanes may take; see `lanes_for`.
    """

    def __init__(self, lane_share: float = LANE_SHARE) -> None:
        self._lane_share = lane_share
        self._parts: list[tuple[NDArray[np.uint16], NDArray[np.uint16]]] = []

    def add_stage(
        self,
        tables: PriorTables,
        offset: NDArray[np.int16] | None,
        scale: NDArray[np.uint8] | None,
        codes: NDArray[np.int32],
    ) -> None:
        """Adds the next stage; ValueError as in `intervals`."""
        self._parts.append(intervals(tables, offset, scale, codes))

    def finish(self) -> bytes:
        """The bytes of the stages so far."""
        empty = np.empty(0, np.uint16)
        start = np.concatenate([empty, *(part[0] for part in self._parts)])
        freq = np.concatenate([empty, *(part[1] for part in self._parts)])
        counts = np.array([len(part[0]) for part in self._parts], np.int64)
        lanes = lanes_for(len(freq) * rans.TOTAL - int(freq.sum(dtype=np.int64)), self._lane_share)
        stream: bytes = _primitives().rans_encode(start, freq, counts, lanes)
        return bytes([lanes.bit_length() - 1]) + stream


class Decoder:
    """Bytes of `Encoder.finish` to codes, stage by stage, with the same tables, offsets and scales.

    Total: whatever the bytes, every call returns codes within range or raises CorruptStream, in a time that
    the shapes bound. After CorruptStream the decoder is not to be used again.
    """

    def __init__(self, data: bytes) -> None:
        self._states, self._words = parse(data)
        self._position = 0

    @property
    def words_read(self) -> int:
        """16-bit words read so far."""
        return self._position

    def decode_stage(
        self,
        tables: PriorTables,
        offset: NDArray[np.int16] | None,
        scale: NDArray[np.uint8] | None,
        shape: tuple[int, int] | None = None,
    ) -> NDArray[np.int32]:
        """Codes of the next stage, int32 `[M, P]`. `shape` is (M, P); only a static prior needs it."""
        offset, scale = tables.context(offset, scale)
        groups = len(tables.codewords)
        if offset is not None:
            found = groups, offset.shape[2]
            if shape is not None and tuple(shape) != found:
                raise ValueError(f"shape must be {found} as offset says, got {tuple(shape)}")
        elif shape is None:
            raise ValueError("shape is needed for a static prior")
        elif shape[0] != groups or shape[1] < 0:
            raise ValueError(f"shape must be ({groups}, P >= 0), got {tuple(shape)}")
        else:
            found = groups, shape[1]
        codes = np.empty(found, np.int32)
        position: int = _primitives().decode_stage(
            *tables.arguments, offset, scale, self._words, self._states, self._position, codes
        )
        if position < 0:
            raise _ended_early(len(self._words) // 2)
        self._position = position
        return codes

    def finish(self) -> None:
        """CorruptStream unless everything was read and every lane is back where the encoder started."""
        wrong = int(np.count_nonzero(self._states != rans.LOWEST))
        check_end(self._position, len(self._words) // 2, wrong, len(self._states))
