"""Coders for a batch of tiles of one shape: what stands between the networks' tensors and streams.

`MCODEC_ENTROPY` chooses them, as it chooses the coder beneath (mcodec.entropy.coder):

- `auto`: tensors that stay on the GPU where kernels are Triton's (mcodec.kernels.backend); else arrays, tile by tile.
- `tensor`: tensors on any device. On a CPU for tests only: it has no advantage there.
- `c`, `numpy`: arrays, tile by tile.

The bytes are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mcodec.entropy import coder
from mcodec.entropy.coder import Decoder, Encoder, PriorTables, assign, parse
from mcodec.entropy.rans import STATE_BYTES
from mcodec.kernels.backend import upload, use_triton
from mcodec.kernels.mixture_frequencies import TOTAL, MixtureTables, mixture_frequencies
from mcodec.kernels.pvq_assign import Prior, pvq_assign
from mcodec.kernels.rans import LOWEST, RansStreams, coded_order, rans_decode, rans_encode, running

_STATE_WORDS = STATE_BYTES // 2


class BatchEncoder(Protocol):
    """Latents of B tiles to codes and bytes, stage by stage."""

    def choose(
        self,
        tables: PriorTables,
        offset: Tensor | None,
        scale: Tensor | None,
        latents: Tensor,
        codewords: Tensor,
        beta: float,
    ) -> Tensor:
        """Codes for a stage: integers `[B, M, P]` on the device of the latents; nothing is added.

        offset and scale: integers `[B, M, d, P]` of any type, both None for a static prior, where the codes are the
        nearest ones; else they are those of `mcodec.entropy.assign`. latents float32 `[B, M, d, P]`, codewords float32
        `[M, K, d]`, beta as there.
        """

    def add_stage(self, tables: PriorTables, offset: Tensor | None, scale: Tensor | None, codes: Tensor) -> None:
        """Adds the next stage's codes `[B, M, P]`, in 0..K-1 and 0 where skipped, at some or all positions."""

    def seal(self) -> None:
        """No stage follows: on a GPU what is left to do is queued, and the host goes on."""

    def finish(self) -> list[bytes]:
        """The streams, one per tile; seals."""

    def stage_words(self) -> list[list[int]] | None:
        """Of each stream the 16-bit words that its decoder has read at the end of each stage; after `finish`.

        None where that shows only in decoding.
        """


class BatchDecoder(Protocol):
    """Bytes of B tiles to codes, stage by stage."""

    def decode_stage(
        self, tables: PriorTables, offset: Tensor | None, scale: Tensor | None, shape: tuple[int, int]
    ) -> Tensor:
        """Codes of the next stage, integers `[B, M, P]` in 0..K-1; shape is (M, P). May raise CorruptStream."""

    @property
    def words_read(self) -> Tensor:
        """16-bit words read of each stream so far, int64 `[B]`."""

    def finish(self) -> None:
        """CorruptStream unless every stream was read to its end and ended where its encoder began."""


def batch_encoder(batch: int, device: torch.device, lane_share: float = coder.LANE_SHARE) -> BatchEncoder:
    """An encoder for tiles whose latents are on `device`; lane_share as in `mcodec.entropy.lanes_for`."""
    return TensorEncoder(batch, device, lane_share) if _on_tensors(device) else ArrayEncoder(batch, lane_share)


def batch_decoder(streams: Sequence[bytes], device: torch.device, truncated: bool = False) -> BatchDecoder:
    """A decoder that leaves codes on `device`. Raises CorruptStream for a head that cannot be.

    truncated: streams may end early; only arrays notice at the stage where it happens.
    """
    return TensorDecoder(streams, device) if _on_tensors(device) and not truncated else ArrayDecoder(streams, device)


def _on_tensors(device: torch.device) -> bool:
    choice = coder.choice()
    return choice == "tensor" or (choice == "auto" and device.type == "cuda" and use_triton(device))


# ---- arrays ------------------------------------------------------------------------------------------------------


def _context(
    offset: Tensor | None, scale: Tensor | None, item: int
) -> tuple[NDArray[np.int16] | None, NDArray[np.uint8] | None]:
    """Prior parameters of one tile as arrays."""
    if offset is None or scale is None:
        return None, None
    return offset[item].to(torch.int16).cpu().numpy(), scale[item].to(torch.uint8).cpu().numpy()


class ArrayEncoder:
    """`BatchEncoder` on the host: C or numpy, tile by tile."""

    def __init__(self, batch: int, lane_share: float = coder.LANE_SHARE) -> None:
        self._coders = [Encoder(lane_share) for _ in range(batch)]

    def choose(
        self,
        tables: PriorTables,
        offset: Tensor | None,
        scale: Tensor | None,
        latents: Tensor,
        codewords: Tensor,
        beta: float,
    ) -> Tensor:
        if offset is None or scale is None:
            return pvq_assign(latents, codewords, 1.0)
        points = codewords.detach().cpu().numpy()
        codes = [
            torch.from_numpy(assign(tables, *_context(offset, scale, item), latents[item].cpu().numpy(), points, beta))
            for item in range(len(self._coders))
        ]
        return torch.stack(codes).to(latents.device)

    def add_stage(self, tables: PriorTables, offset: Tensor | None, scale: Tensor | None, codes: Tensor) -> None:
        for item, single in enumerate(self._coders):
            single.add_stage(tables, *_context(offset, scale, item), codes[item].to(torch.int32).cpu().numpy())

    def seal(self) -> None:
        """Nothing waits."""

    def finish(self) -> list[bytes]:
        return [single.finish() for single in self._coders]

    def stage_words(self) -> None:
        """It shows in decoding."""


class ArrayDecoder:
    """`BatchDecoder` on the host: C or numpy, tile by tile."""

    def __init__(self, streams: Sequence[bytes], device: torch.device) -> None:
        self._coders = [Decoder(data) for data in streams]
        self._device = device

    def decode_stage(
        self, tables: PriorTables, offset: Tensor | None, scale: Tensor | None, shape: tuple[int, int]
    ) -> Tensor:
        rows = [
            single.decode_stage(tables, *_context(offset, scale, item), shape)
            for item, single in enumerate(self._coders)
        ]
        return torch.from_numpy(np.stack(rows)).to(self._device)

    @property
    def words_read(self) -> Tensor:
        return torch.tensor([single.words_read for single in self._coders])

    def finish(self) -> None:
        for single in self._coders:
            single.finish()


# ---- tensors -----------------------------------------------------------------------------------------------------


def _on_device(
    tables: PriorTables, offset: Tensor | None, scale: Tensor | None, device: torch.device
) -> tuple[MixtureTables, Tensor | None, Tensor | None]:
    """A stage's arguments in the types that kernels take."""
    offset = None if offset is None else offset.to(torch.int16).contiguous()
    scale = None if scale is None else scale.to(torch.uint8).contiguous()
    return tables.on(device), offset, scale


class TensorEncoder:
    """`BatchEncoder` by mcodec.kernels: nothing leaves the device before `finish`."""

    def __init__(self, batch: int, device: torch.device, lane_share: float = coder.LANE_SHARE) -> None:
        self._batch, self._device, self._lane_share = batch, device, lane_share
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []  # start and freq [B, n] in coding order, count [B]
        self._surprise = torch.zeros(batch, dtype=torch.int64, device=device)
        self._sealed: tuple[Tensor, Tensor] | None = None  # log2 of lanes, words, words by stage; rows of words
        self._stage_words: list[list[int]] = []

    def choose(
        self,
        tables: PriorTables,
        offset: Tensor | None,
        scale: Tensor | None,
        latents: Tensor,
        codewords: Tensor,
        beta: float,
    ) -> Tensor:
        integers, offset, scale = _on_device(tables, offset, scale, self._device)
        if offset is None or scale is None:
            return pvq_assign(latents, codewords, 1.0)
        return pvq_assign(latents, codewords, beta, prior=Prior(integers, offset, scale))

    def add_stage(self, tables: PriorTables, offset: Tensor | None, scale: Tensor | None, codes: Tensor) -> None:
        """See `BatchEncoder`; the codes are not checked."""
        integers, offset, scale = _on_device(tables, offset, scale, self._device)
        start, freq = (x.flatten(1) for x in mixture_frequencies(integers, offset, scale, codes))
        batch, groups, positions = codes.shape
        order, count = coded_order(scale, (batch, groups, positions), self._device)
        at = order.long()
        self._parts.append((start.gather(1, at), freq.gather(1, at), count))
        self._surprise += count * TOTAL - freq.sum(1)  # freq is 0 where skipped

    def seal(self) -> None:
        if self._sealed is not None:
            return
        empty = torch.zeros((self._batch, 0), dtype=torch.int32, device=self._device)
        start, freq = (torch.cat([empty, *(part[i] for part in self._parts)], 1) for i in (0, 1))
        sizes = [part[0].shape[1] for part in self._parts]
        firsts = [sum(sizes[:i]) for i in range(len(sizes))]
        counts = torch.stack([part[2] for part in self._parts], 1) if sizes else empty.long()
        loads = self._surprise // coder.surprise_per_lane(self._lane_share)
        log2 = sum((loads >= 1 << i).long() for i in range(1, coder.MAX_LOG2_LANES + 1))
        assert isinstance(log2, Tensor)
        # what the shapes allow: lanes are not known on the host
        max_lanes = coder.lanes_for(sum(sizes) * TOTAL, self._lane_share)
        lanes = torch.ones_like(log2) << log2
        states, words = rans_encode(start, freq, counts, firsts, lanes, max_lanes)

        # one row of words per stream: its states, then what its symbols put; the last column takes the rest
        put = words >= 0
        head = _STATE_WORDS * lanes[:, None]
        behind = F.pad(running(put), (1, 0))
        length = head[:, 0] + behind[:, -1]
        rest = _STATE_WORDS * max_lanes + words.shape[1]
        out = torch.zeros((self._batch, rest + 1), dtype=torch.int32, device=self._device)
        out.scatter_(1, torch.where(put, head + behind[:, 1:] - 1, rest), words)
        pieces = torch.stack([states >> 16 * i & 0xFFFF for i in range(_STATE_WORDS)], 2).flatten(1)
        at = torch.arange(pieces.shape[1], device=self._device).expand_as(pieces)
        out.scatter_(1, torch.where(at < head, at, rest), pieces.int())

        # a decoder reads a word right after the symbol beside which it was put
        reads = [behind[:, first + size] for first, size in zip(firsts, sizes, strict=True)]
        self._sealed = torch.stack([log2, length, *reads], 1), out.to(torch.int16)
        self._parts.clear()

    def finish(self) -> list[bytes]:
        self.seal()
        return self.fetch()

    def fetch(self) -> list[bytes]:
        """`finish` of what is sealed: the one transfer to the host, in two steps, sizes, then words."""
        assert self._sealed is not None
        found, out = self._sealed[0].tolist(), self._sealed[1]
        self._stage_words = [reads for _, _, *reads in found]
        longest = max((n for _, n, *_ in found), default=0)
        data = out[:, :longest].cpu().numpy().astype("<i2", copy=False)
        return [bytes([log]) + row[:n].tobytes() for row, (log, n, *_) in zip(data, found, strict=True)]

    def stage_words(self) -> list[list[int]]:
        return self._stage_words


class TensorDecoder:
    """`BatchDecoder` by mcodec.kernels: nothing leaves the device before `finish`, which alone notices bad ends."""

    def __init__(self, streams: Sequence[bytes], device: torch.device) -> None:
        heads = [parse(data) for data in streams]
        lanes = [len(states) for states, _ in heads]
        limits = [len(words) // 2 for _, words in heads]
        states = np.full((len(heads), max(lanes, default=1)), LOWEST, np.int64)
        # of a length that is a multiple of 16, so that one compiled kernel serves all
        padded = np.zeros((len(heads), -(-max(limits, default=0) // 16) * 16), np.int32)
        for item, (head, words) in enumerate(heads):
            states[item, : len(head)] = head
            padded[item, : len(words) // 2] = words.view("<u2")
        self._device = device
        self._streams = RansStreams(
            upload(torch.from_numpy(padded), device),
            upload(torch.tensor(limits, dtype=torch.int64), device),
            upload(torch.tensor(lanes, dtype=torch.int64), device),
            upload(torch.from_numpy(states), device),
            torch.zeros(len(heads), dtype=torch.int64, device=device),
        )

    def decode_stage(
        self, tables: PriorTables, offset: Tensor | None, scale: Tensor | None, shape: tuple[int, int]
    ) -> Tensor:
        integers, offset, scale = _on_device(tables, offset, scale, self._device)
        return rans_decode(integers, offset, scale, (len(self._streams.lanes), *shape), self._streams)

    @property
    def words_read(self) -> Tensor:
        return self._streams.position.clone()

    def finish(self) -> None:
        at = self._streams
        wrong = (at.states != LOWEST).sum(1)
        for read, limit, lanes, bad in torch.stack([at.position, at.limits, at.lanes, wrong], 1).tolist():
            coder.check_end(read, limit, bad, lanes)
