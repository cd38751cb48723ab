"""The public API with the tiny model: any size, any input, the same codes on every setting."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from settings import SETTINGS, setting
from stages import ideal_bits
from tiny import TINY, lively

from mcodec import container
from mcodec import entropy as coding
from mcodec.api import Codec, load
from mcodec.container import Kind
from mcodec.errors import CorruptStream, FormatError, ImageError, LimitExceeded, WrongModel
from mcodec.image import Raster, TensorSamples
from mcodec.rate import Target, encode_to

Make = Callable[..., NDArray[np.uint8]]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Derived(torch.Tensor):
    """As torchvision's tv_tensors are."""


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (33, 2), (32, 32), (63, 65), (100, 37)], ids=str)
def test_any_size(tiny: Codec, picture: Make, size: tuple[int, int]) -> None:
    array = picture(*size)
    decoded = tiny.decode(tiny.encode(array, 60))
    assert decoded.size == size[::-1] and decoded.mode == "RGB"


def test_input_types_agree(tiny: Codec, picture: Make) -> None:
    array = picture(40, 50)
    data = tiny.encode(array)
    assert tiny.encode(Image.fromarray(array)) == data
    assert tiny.encode(torch.from_numpy(array).permute(2, 0, 1)) == data
    derived = torch.from_numpy(array).permute(2, 0, 1).as_subclass(Derived)
    assert tiny.encode(derived) == data and [r.value for r in tiny.encode_iter([derived])] == [data]
    assert tiny.encode(array, np.float32(50)) == data and tiny.encode_batch([array], np.array([50])) == [data]
    with pytest.raises(ValueError, match="must be uint8 or uint16"):
        tiny.encode(array.astype(np.float32))
    assert tiny.encode_batch(iter([array, array])) == [data, data]
    for quality in (101, "50", None):
        with pytest.raises(ValueError, match="quality must be from 1 to 100"):
            tiny.encode(array, quality)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 images but 2 qualities"):
        tiny.encode_batch([array], [1, 2])


def test_pictures_that_pillow_cannot_read_to_their_end(tiny: Codec, picture: Make) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture(64, 64)).save(buffer, "JPEG")
    for encode in (tiny.encode, lambda image: encode_to(tiny, image, Target("bytes", 500))):
        image = Image.open(io.BytesIO(buffer.getvalue()[:-100]))
        with pytest.raises(ImageError, match="cannot read the picture"):
            encode(image)


def test_what_lies_on_a_device_does_not_come_to_the_host(
    tiny: Codec, picture: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = [picture(70, 50), picture(70, 50, 1)[:, :, :1]]
    expected = tiny.encode_batch(arrays, [40, 60])
    tensors = [torch.from_numpy(array).permute(2, 0, 1) for array in arrays]
    rasters = [Raster(TensorSamples(t), kind) for t, kind in zip(tensors, (Kind.RGB8, Kind.GREY8), strict=True)]
    assert [np.asarray(r.samples).shape for r in rasters] == [(70, 50, 3), (70, 50)]
    with monkeypatch.context() as patch:
        patch.setattr(TensorSamples, "crop", None)
        assert tiny.encode_batch(rasters, [40, 60]) == expected
    searched = tiny.encode(arrays[0], 40, effort=2)
    assert tiny.encode(rasters[0], 40, effort=2) == searched


@pytest.mark.parametrize("tile,batch_pixels", [(1024, 2**20), (64, 2**20), (64, 64 * 64)], ids=str)
def test_decoding_to_tensors(
    picture: Make, monkeypatch: pytest.MonkeyPatch, tile: int, batch_pixels: int
) -> None:
    """In one piece or window by window, of every coder, what `decode_batch` gives."""
    codec = Codec(lively(TINY), b"tinytiny")
    codec.tile, codec.batch_pixels = tile, batch_pixels
    arrays = [picture(90, 70), picture(90, 70, 1)[:, :, 0], picture(20, 30, 2), picture(90, 70, 3)]
    files = codec.encode_batch([*arrays, picture(33, 20).astype(np.uint16) * 257], 60)
    expected = [np.asarray(image.convert("RGB")).astype(int) for image in codec.decode_batch(files)]
    for entropy in ("auto", "tensor"):
        monkeypatch.setenv("MCODEC_ENTROPY", entropy)
        monkeypatch.setenv("MCODEC_KERNELS", "reference")
        found = codec.decode_tensors(files)
        for array, tensor in zip(expected, found, strict=True):
            assert tensor.dtype == torch.uint8 and tensor.is_contiguous()
            difference = np.abs(tensor.permute(1, 2, 0).numpy() - array)
            assert difference.max() <= (0 if batch_pixels == 64 * 64 else 1)
        file = container.unpack(files[2])
        with pytest.raises(CorruptStream):  # noticed after all is decoded
            codec.decode_tensors([files[0], container.pack(replace(file, codes=file.codes + b"\0\0"))])


def test_share_of_lanes(picture: Make) -> None:
    """More lanes where they may take more of a file: a few bytes, the same codes, in one tile and in several."""
    codec = Codec(lively(TINY), b"tinytiny")
    array = picture(130, 140)
    for tile in (1024, 128):
        codec.tile, codec.lane_share = tile, 0.001
        few, codes = codec.encode_with_codes(array, 90)
        codec.lane_share = 0.1
        many, again = codec.encode_with_codes(array, 90)
        assert len(few) < len(many) <= 1.1 * len(few)
        assert same(codec.codes(many), codes) and same(again, codes)
        if tile == 1024:
            assert container.unpack(few).codes[0] == 0 < container.unpack(many).codes[0]
    codec.lane_share = 0.5
    with pytest.raises(ValueError, match="share of lanes"):
        codec.encode(array)


def test_in_inference_mode(model: Path, picture: Make) -> None:
    """Tiles on threads, the search, and weights that were loaded in it."""
    array = picture(130, 140)
    with torch.inference_mode():
        codec = load(model, "cpu")
        codec.tile = 64
        data, codes = codec.encode_with_codes(array, 60, effort=2)
        found, image = codec.codes(data), codec.decode_array(data)
    assert same(found, codes) and same(codec.codes(data), codes)
    assert np.array_equal(codec.decode_array(data), image)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_default_types(model: Path, picture: Make, dtype: torch.dtype) -> None:
    """Of a program that the codec is part of: before weights are loaded, and after."""
    array, before = picture(40, 50), load(model, "cpu")
    data = before.encode(array, 60, effort=2)
    image = before.decode_array(data)
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        for codec in (before, load(model, "cpu")):
            assert codec.encode(array, 60, effort=2) == data
            assert np.array_equal(codec.decode_array(data), image)
    finally:
        torch.set_default_dtype(default)


def test_mixed_batches_keep_their_order(tiny: Codec, picture: Make) -> None:
    arrays = [picture(20 + 17 * i, 90 - 11 * i, i) for i in range(5)] + [picture(20, 90, 9)]
    files = tiny.encode_batch(arrays, [10, 30, 50, 70, 90, 20])
    decoded = tiny.decode_batch(files)
    assert [d.size for d in decoded] == [a.shape[1::-1] for a in arrays]
    alone = [tiny.codes(f) for f in files]
    assert all(codes[0].shape[0] == TINY.stages[0].groups for codes in alone)
    for image, file in zip(decoded, files, strict=True):
        difference = np.abs(np.asarray(image).astype(int) - np.asarray(tiny.decode(file)))
        assert difference.max() <= 1  # float networks: a rounding step at most


def test_codes_are_the_same_on_every_setting(tiny: Codec, picture: Make) -> None:
    """Encoded on each setting, decoded on all of them."""
    rng = np.random.default_rng(0)
    for index, encoder in enumerate(SETTINGS):
        with setting(tiny, encoder):
            files = tiny.encode_batch([picture(*rng.integers(1, 130, 2), index) for _ in range(2)], 30 + 5 * index)
        expected = [tiny.codes(file) for file in files]
        for decoder in SETTINGS:
            with setting(tiny, decoder):
                assert all(same(a, tiny.codes(f)) for a, f in zip(expected, files, strict=True)), decoder


@pytest.mark.parametrize("count", [3, 8])
def test_codes_are_the_same_in_batches(tiny: Codec, picture: Make, count: int) -> None:
    files = [tiny.encode(picture(50, 60, seed), 50) for seed in range(count)]
    for file, codes in zip(files, tiny.codes_batch(files), strict=True):
        assert same(codes, tiny.codes(file))


def test_files_are_bytes(tiny: Codec, picture: Make) -> None:
    array = picture(20, 30)
    data = tiny.encode(array)
    for like in (bytearray(data), memoryview(data)):
        assert np.array_equal(tiny.decode_array(like), tiny.decode_array(data))
    for other in ("picture.mci", None, 3):
        with pytest.raises(ValueError, match="must be given as bytes"):
            tiny.decode(other)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(model: Path) -> None:
    with pytest.raises(ValueError, match="no CUDA device"):
        load(model, "cuda")


def test_damaged_files(tiny: Codec, picture: Make) -> None:
    """With the checksum made right again, damage decodes to some picture or is refused."""
    import zlib

    data = tiny.encode(picture(40, 40), 50)
    with pytest.raises(CorruptStream):
        tiny.decode(data[:-5])
    rng = np.random.default_rng(0)
    outcomes = set()
    for place in [*range(4, 24), *rng.integers(24, len(data) - 4, 20)]:
        body = bytearray(data[:-4])
        body[place] ^= 1 << rng.integers(8)
        try:
            tiny.decode(bytes(body) + zlib.crc32(body).to_bytes(4, "little"))
            outcomes.add("decoded")
        except (FormatError, WrongModel) as error:
            outcomes.add(type(error).__name__)
    assert {"CorruptStream", "WrongModel"} <= outcomes


def test_a_stream_longer_than_its_symbols_is_not_looked_at(
    tiny: Codec, picture: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = container.unpack(tiny.encode(picture(40, 40), 50))
    monkeypatch.setattr(coding, "batch_decoder", lambda *_, **__: pytest.fail("looked at"))
    with pytest.raises(CorruptStream, match="more words than symbols"):
        tiny.decode(container.pack(replace(file, codes=file.codes + bytes(100_000))))


def test_other_weights_are_refused(tiny: Codec, picture: Make) -> None:
    other = Codec(lively(TINY, seed=1), b"otherone")
    with pytest.raises(WrongModel, match=f"made by weights {b'otherone'.hex()}"):
        tiny.decode(other.encode(picture(20, 20)))


def test_limits(tiny: Codec) -> None:
    wide = np.broadcast_to(np.zeros(3, np.uint8), (1, 70000, 3))
    with pytest.raises(LimitExceeded, match="no side may be longer than 65535"):
        tiny.encode(wide)


def test_decompression_bombs(tiny: Codec, picture: Make) -> None:
    """A small file that claims 2^28 pixels is refused before any of them is decoded, unless that is asked for."""
    data = tiny.encode(picture(20, 30))
    file = container.unpack(data)
    bomb = container.pack(replace(file, header=replace(file.header, width=16384, height=16384)))
    small = {"max_pixels": 599}
    for decode in (tiny.decode, tiny.decode_array, tiny.decode_raster, tiny.codes, tiny.stage_bytes):
        with pytest.raises(LimitExceeded, match=f"more than {container.MAX_DECODED_PIXELS} pixels.*max_pixels"):
            decode(bomb)
        with pytest.raises(LimitExceeded):
            decode(data, **small)
        decode(data, max_pixels=600)
        with pytest.raises(CorruptStream):  # past the limit: of 256 tiles there is no table
            decode(bomb, max_pixels=None)
    for several in (tiny.decode_batch, tiny.decode_tensors, tiny.codes_batch):
        with pytest.raises(LimitExceeded):
            several([data, bomb])
    assert [type(r.error) for r in tiny.decode_iter([data, bomb])] == [type(None), LimitExceeded]
    assert [type(r.error) for r in tiny.decode_iter([data], **small)] == [LimitExceeded]
    with pytest.raises(LimitExceeded):
        tiny.decode(data, region=(0, 0, 1, 1), **small)


def test_rate_is_what_the_model_says(tiny: Codec, picture: Make) -> None:
    """Stream length against the sum of -log2 of the integer frequencies."""
    data, bits = ideal_bits(tiny, picture(300, 300), 80)
    stream = container.unpack(data).codes
    assert bits / 8 <= len(stream) <= bits / 8 * 1.001 + 1 + 4 * (1 << stream[0])
