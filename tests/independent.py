"""A decoder written from docs/FORMAT.md, docs/ENTROPY.md and docs/NETWORK.md alone.

It shares no line with the package and reads no better than the pages do: numpy for arrays, Pillow for the alpha plane.
That it decodes what others encode shows that the pages say enough to read files with, should the package be gone.
"""

from __future__ import annotations

import io
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]

MAGIC = bytes.fromhex("8b4d4349")
CODES, ICC, EXIF, XMP, ALPHA, SHIFTS, FILTER = 1, 2, 3, 4, 5, 6, 130
RGB8, GREY8, RGB16, GREY16, BILEVEL = range(5)
#: Own neighbours with their opposites, then one half of each ring.
PAIRS = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0), (0, 3), (3, 0))
RINGS = (((0, 1), (1, 0)), ((1, 1), (1, -1)), ((0, 2), (2, 0)), ((2, 2), (2, -2)), ((0, 3), (3, 0)))
DEFAULTS = {
    "block": "separable", "context_channels": 96, "context_blocks": 2, "prior": "mixture", "lapped": False,
    "response": 0, "reach": 0, "lambda_min": 0.0006, "lambda_max": 0.2, "version": 1,
}  # fmt: skip
TYPES = {"F16": "<f2", "F32": "<f4", "I8": "i1", "I16": "<i2", "I32": "<i4"}


# ---- the file ----------------------------------------------------------------------------------------------------


@dataclass
class File:
    """Header and sections."""

    width: int
    height: int
    level: int
    fingerprint: bytes
    tile: int
    kind: int
    sections: dict[int, bytes]


def leb128(data: bytes, place: int) -> tuple[int, int]:
    """(number, place behind it)."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        shift, place = shift + 7, place + 1
        if byte < 128:
            return value, place


def parse(data: bytes) -> File:
    """A whole file."""
    assert data[:4] == MAGIC and data[4] == 1
    assert zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little")
    end = 6 + data[5]
    width, place = leb128(data, 6)
    height, place = leb128(data, place)
    level, fingerprint, layout = data[place], data[place + 1 : place + 9], data[place + 9]
    sections: dict[int, bytes] = {}
    place = end
    while place < len(data) - 4:
        tag = data[place]
        length, place = leb128(data, place + 1)
        assert tag <= SHIFTS or tag >= 128
        sections.setdefault(tag, data[place : place + length])
        place += length
    return File(width, height, level, fingerprint, 64 << (layout & 15), layout >> 4, sections)


def weights(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """(configuration, tensors) of a safetensors file."""
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    config = DEFAULTS | json.loads(header.pop("__metadata__")["config"])
    assert config["version"] == 1
    tensors = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        flat = np.frombuffer(content[begin + first : begin + last], TYPES[entry["dtype"]])
        wide = np.float32 if entry["dtype"].startswith("F") else np.int64
        tensors[name] = flat.reshape(entry["shape"]).astype(wide)
    return config, tensors


# ---- bytes to codes ----------------------------------------------------------------------------------------------


def frequencies(log_weight: Array, cost: Array, reach: int) -> Array:
    """Of all symbols `[N, K]`, from their costs; a static prior's are 0."""
    logit = log_weight - cost
    f = logit.max(1, keepdims=True) - logit
    n, t = f >> 6, f & 63
    p = 32768 - ((21997 * t) >> 6) + ((5613 * t * t) >> 12)
    w = np.where(n < 16, p >> np.minimum(n, 16), 0)
    near = ((f < 64 * reach) | (np.arange(f.shape[1]) < 2) | (reach == 0)).astype(np.int64)
    inverse = ((65536 - near.sum(1, keepdims=True)) << 31) // w.sum(1, keepdims=True)
    freq: Array = near + ((w * inverse) >> 31)
    freq[np.arange(len(freq)), (f == 0).argmax(1)] += 65536 - freq.sum(1)
    return freq


class Stream:
    """The lanes and words of a tile."""

    def __init__(self, data: bytes) -> None:
        lanes = 1 << data[0]
        self.states = [int.from_bytes(data[1 + 6 * i : 7 + 6 * i], "little") for i in range(lanes)]
        self.words = iter(np.frombuffer(data[1 + 6 * lanes :], "<u2").tolist())

    def read(self, freq: Array) -> list[int]:
        """The next stage's codes, from the frequencies of its coded symbols `[N, K]`."""
        codes, ends = [], freq.cumsum(1)
        for i, (row, end) in enumerate(zip(freq, ends, strict=True)):
            lane = i % len(self.states)
            x = self.states[lane]
            slot = x & 0xFFFF
            k = int(np.searchsorted(end, slot, side="right"))
            x = int(row[k]) * (x >> 16) + slot - int(end[k] - row[k])
            self.states[lane] = x << 16 | next(self.words) if x < 1 << 32 else x
            codes.append(k)
        return codes

    def check(self) -> None:
        """Everything is read, and every lane where the encoder began."""
        assert next(self.words, None) is None and set(self.states) == {1 << 32}


def streams(file: File, tiles: int, stages: int) -> list[bytes]:
    """Of each tile."""
    data = file.sections[CODES]
    if tiles == 1:
        return [data]
    assert data[0] == stages
    place, lengths = 1, []
    for _ in range(stages * tiles):
        length, place = leb128(data, place)
        lengths.append(length)
    parts = [b""] * tiles
    for number, length in enumerate(lengths):
        parts[number % tiles] += data[place : place + length]
        place += length
    assert place == len(data)
    return parts


def shifts(file: File, tiles: int, stages: int) -> Array:
    """`[stages, tiles]`."""
    if SHIFTS not in file.sections:
        return np.zeros((stages, tiles), np.int64)
    halves = [half for byte in file.sections[SHIFTS] for half in (byte & 15, byte >> 4)]
    numbers = np.array([half - 16 if half > 7 else half for half in halves[: stages * tiles]])
    return numbers.reshape(stages, tiles)


# ---- the context network -----------------------------------------------------------------------------------------


def around(x: Array) -> list[list[Array]]:
    """What lies at (i - 1, j - 1) from each position, zeros beyond."""
    height, width = x.shape[1:]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    return [[padded[:, i : i + height, j : j + width] for j in range(3)] for i in range(3)]


class Context:
    """The integer network over one tile."""

    def __init__(self, config: dict[str, Any], tensors: dict[str, Array], height: int, width: int, level: int) -> None:
        self.config, self.tensors, self.level = config, tensors, level
        self.stride = config["stages"][0]["stride"]
        self.u = np.zeros((config["context_channels"], height // self.stride, width // self.stride), np.int64)

    def layer(self, name: str, x: Array, low: int = -127) -> Array:
        """Pointwise or depthwise, requantized."""
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        if weight.ndim == 2:
            shift, total = 7, np.einsum("oi,iyx->oyx", weight, x)
        else:
            shift, near = 6, around(x)
            total = sum(weight[:, i, j, None, None] * near[i][j] for i in range(3) for j in range(3))
        return ((total + bias[:, None, None] + (1 << shift - 1)) >> shift).clip(low, 127)

    def parameters(self, k: int) -> tuple[Array, Array]:
        """Offset and scale index of stage k, `[M d, h, w]`."""
        name = f"stages.{k}.context"
        while self.stride > self.config["stages"][k]["stride"]:
            self.u = self.u.repeat(2, 1).repeat(2, 2)
            self.stride //= 2
        quality = self.tensors[f"{name}.quality.rows"][self.level]
        self.u = (self.u + quality[:, None, None]).clip(-127, 127)
        for b in range(self.config["context_blocks"]):
            block = f"{name}.blocks.{b}"
            inner = self.layer(f"{block}.inner", self.layer(f"{block}.spatial", self.u), 0)
            self.u = (self.u + self.layer(f"{block}.outer", inner)).clip(-127, 127)
        return self.layer(f"{name}.offset", self.u), self.layer(f"{name}.scale", self.u, 0)

    def absorb(self, k: int, codes: Array) -> None:
        """Codes `[M, h, w]` of stage k."""
        c = chosen(self.tensors[f"stages.{k}.codebooks.coordinates"], codes)
        embedded = self.layer(f"stages.{k}.context.embed", np.concatenate([c, np.abs(c)]))
        self.u = (self.u + embedded).clip(-127, 127)


def chosen(table: Array, codes: Array) -> Array:
    """Rows of `[M, K, d]` for codes `[M, h, w]`: `[M d, h, w]`."""
    rows = np.stack([book[code] for book, code in zip(table, codes, strict=True)])
    return rows.transpose(0, 3, 1, 2).reshape(-1, *codes.shape[1:])


def tile_codes(
    config: dict[str, Any], tensors: dict[str, Array], stream: bytes, height: int, width: int, level: int, moved: Array
) -> list[Array]:
    """Codes of one tile, `[M, h, w]` per stage. moved: the tile's shift of each stage."""
    context, reader, out = Context(config, tensors, height, width, level), Stream(stream), []
    static = config["prior"] == "static"
    for k, stage in enumerate(config["stages"]):
        shape = stage["groups"], height // stage["stride"], width // stage["stride"]
        book = f"stages.{k}.codebooks"
        mu, log_weight = tensors[f"{book}.integer_codewords"], tensors[f"{book}.integer_log_weights"]
        count, d = shape[1] * shape[2], mu.shape[2]
        if static:
            coded = np.ones((len(mu), count), bool)
            rows = [frequencies(w, np.zeros((count, len(w)), np.int64), config["reach"]) for w in log_weight]
        else:
            offset, scale = (v.reshape(len(mu), d, count).transpose(0, 2, 1) for v in context.parameters(k))
            scale = np.where(scale == 0, 0, (scale + 2 * moved[k]).clip(1, 127))
            coded, rows = (scale != 0).any(2), []
            for m, book_mu in enumerate(mu):
                g, a = offset[m, coded[m]][:, None], tensors["precision"][scale[m, coded[m]]][:, None]
                squares = np.minimum((book_mu - g) ** 2, (2**31 - 1) // (d * a))
                rows.append(frequencies(log_weight[m], ((a * squares).sum(2) + 512) >> 10, config["reach"]))
        codes = np.zeros((len(mu), count), np.int64)
        codes[coded] = reader.read(np.concatenate(rows))
        out.append(codes.reshape(shape))
        if not static and k + 1 < len(config["stages"]):
            context.absorb(k, out[-1])
    reader.check()
    return out


def picture_codes(file: File, config: dict[str, Any], tensors: dict[str, Array]) -> list[Array]:
    """Codes of the whole picture, `[M, H / r, W / r]` per stage."""
    step = config["stages"][0]["stride"]
    height, width = -(-file.height // step) * step, -(-file.width // step) * step
    places = [(y, x) for y in range(0, file.height, file.tile) for x in range(0, file.width, file.tile)]
    stages = config["stages"]
    whole = [np.zeros((s["groups"], height // s["stride"], width // s["stride"]), np.int64) for s in stages]
    moved = shifts(file, len(places), len(stages))
    for number, ((y, x), stream) in enumerate(zip(places, streams(file, len(places), len(stages)), strict=True)):
        tall, wide = min(file.tile, height - y), min(file.tile, width - x)
        codes = tile_codes(config, tensors, stream, tall, wide, file.level, moved[:, number])
        for stage, part, s in zip(whole, codes, stages, strict=True):
            top, left = y // s["stride"], x // s["stride"]
            stage[:, top : top + part.shape[1], left : left + part.shape[2]] = part
    return whole


# ---- codes to samples --------------------------------------------------------------------------------------------


class Synthesis:
    """The float network at one level."""

    def __init__(self, config: dict[str, Any], tensors: dict[str, Array], level: int) -> None:
        self.config, self.tensors, self.level = config, tensors, level

    def at_level(self, name: str) -> Array:
        """A function of quality, `[channels, 1, 1]`."""
        anchors = self.tensors[name]
        place = 8 * self.level / 255
        i = min(int(place), 7)
        value: Array = (1 - (place - i)) * anchors[i] + (place - i) * anchors[i + 1]
        return value[:, None, None]

    def matrix(self, name: str, x: Array) -> Array:
        """At each position."""
        return np.einsum("oi,iyx->oyx", self.tensors[f"{name}.weight"], x) + self.tensors[f"{name}.bias"][:, None, None]

    def convolution(self, name: str, x: Array) -> Array:
        """3x3, depthwise or dense."""
        weight, near = self.tensors[f"{name}.weight"], around(x)
        total: Array = np.zeros_like(x)
        for i in range(3):
            for j in range(3):
                if weight.shape[1] == 1:
                    total = total + weight[:, 0, i, j, None, None] * near[i][j]
                else:
                    total = total + np.einsum("oi,iyx->oyx", weight[:, :, i, j], near[i][j])
        return total + self.tensors[f"{name}.bias"][:, None, None]

    def spread(self, name: str, x: Array, n: int) -> Array:
        """A matrix to patches of n x n: twice or four times the size."""
        rows = self.matrix(name, x)
        patches = rows.reshape(-1, n, n, *rows.shape[1:]).transpose(0, 3, 1, 4, 2)
        return patches.reshape(len(patches), n * x.shape[1], n * x.shape[2])

    def blocks(self, name: str, x: Array, count: int) -> Array:
        """Residual blocks."""
        for b in range(count):
            block = f"{name}.{b}"
            scale, shift = np.split(self.at_level(f"{block}.film"), 2)
            y = self.convolution(f"{block}.body.0", x * (1 + scale) + shift)
            if self.config["block"] == "separable":
                y = self.matrix(f"{block}.body.3", np.maximum(self.matrix(f"{block}.body.1", y), 0))
            else:
                y = self.convolution(f"{block}.body.2", np.maximum(y, 0))
            x = x + (np.exp(self.at_level(f"{block}.response.log_factor")) if self.config["response"] else 1) * y
        return x

    def picture(self, codes: list[Array]) -> Array:
        """`[3, H, W]`, about -0.5 to 0.5."""
        stages = self.config["stages"]
        stride = stages[0]["stride"]
        s = np.zeros((self.config["channels"][str(stride)], *codes[0].shape[1:]))
        for k, stage in enumerate(stages):
            while stride > stage["stride"]:
                s = self.spread(f"ups.{stride}.project", s, 2)
                stride //= 2
            v = chosen(self.tensors[f"stages.{k}.codebooks.codewords"], codes[k])
            s = s + self.matrix(f"stages.{k}.out", v / np.exp(self.at_level(f"stages.{k}.log_gain")))
            s = self.blocks(f"stages.{k}.refine", s, stage["refine"])
        i = 0
        while stride > 4:
            s = self.spread(f"synthesis.up.{i}.project", s, 2)
            stride //= 2
            count = self.config["synthesis_blocks"].get(str(stride), 0)
            s = self.blocks(f"synthesis.blocks.{i}", s, count)
            i += 1
        out = self.spread("synthesis.out", s, 4)
        if self.config["lapped"]:
            for axis, name in ((1, "rows"), (2, "columns")):
                out = np.moveaxis(out, axis, 2).copy()
                inner = out[..., 4:-4].reshape(*out.shape[:2], -1, 8)
                out[..., 4:-4] = (inner @ self.tensors[f"synthesis.lapped.{name}"].T).reshape(*out.shape[:2], -1)
                out = np.moveaxis(out, 2, axis)
        return out


def filtered(picture: Array, payload: bytes, grey: bool, lam: float) -> Array:
    """The picture with the means of differences that a file asks for."""
    if grey:
        picture = picture.mean(0, keepdims=True).repeat(3, 0)
    weight = np.frombuffer(payload, np.int8) / 128
    own = weight[:39].reshape(-1, 13).repeat(1 if len(weight) > 13 else 3, 0)
    limit = 0.1 * np.sqrt(26 / lam) / 255
    height, width = picture.shape[1:]
    padded = np.pad(picture, ((0, 0), (3, 3), (3, 3)), mode="edge")

    def difference(row: int, column: int) -> Array:
        moved: Array = padded[:, 3 + row : 3 + row + height, 3 + column : 3 + column + width]
        return moved - picture

    def both(pair: tuple[int, int], least: float = -np.inf) -> Array:
        return difference(*pair).clip(least, -least) + difference(-pair[0], -pair[1]).clip(least, -least)

    means = [both(pair) / 2 for pair in PAIRS] + [sum(both(pair, -limit) for pair in ring) / 4 for ring in RINGS]
    out = picture + sum(own[:, i, None, None] * mean for i, mean in enumerate(means))
    if len(weight) == 45:
        nearest = (means[0] + means[1]) / 2
        for channel, factors in enumerate(weight[39:].reshape(3, 2)):
            others = [other for other in range(3) if other != channel]
            out[channel] += sum(w * nearest[other] for w, other in zip(factors, others, strict=True))
    return out


def samples(file: File, config: dict[str, Any], tensors: dict[str, Array], codes: list[Array]) -> Array:
    """`[H, W, 3]`, or `[H, W]` of grey; uint8 or uint16."""
    grey = file.kind in (GREY8, GREY16, BILEVEL)
    picture = Synthesis(config, tensors, file.level).picture(codes)
    if FILTER in file.sections:
        lam = config["lambda_min"] * (config["lambda_max"] / config["lambda_min"]) ** (file.level / 255)
        picture = filtered(picture, file.sections[FILTER], grey, lam)
    picture = picture[:, : file.height, : file.width]
    if grey:
        picture = picture.mean(0, keepdims=True)
    most = 65535 if file.kind in (RGB16, GREY16) else 255
    levels = ((picture + 0.5) * most).round().clip(0, most)
    if file.kind == BILEVEL:
        levels = (levels >= 128) * 255
    out = levels.transpose(1, 2, 0).astype(np.uint8 if most == 255 else np.uint16)
    return out[:, :, 0] if grey else out


def alpha(file: File) -> Array | None:
    """The plane `[H, W]`, or None."""
    if ALPHA not in file.sections:
        return None
    image = Image.open(io.BytesIO(file.sections[ALPHA]))
    return np.asarray(image if image.format == "PNG" else image.convert("L"))
