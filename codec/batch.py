"""Many pictures, one after another: reading and coding overlap, order is kept, a bad item is its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image

from mcodec import container
from mcodec.errors import CodecError, FormatError, is_lack_of_memory
from mcodec.files import read_bytes
from mcodec.image import Raster, read_raster, to_raster
from mcodec.image.raster import is_tensor

T = TypeVar("T")
V = TypeVar("V")

#: A micro-batch ends at this many pixels or items.
BATCH_PIXELS = 2**23
BATCH_ITEMS = 32
#: Threads that read ahead. Beyond the micro-batch that is being filled each is two items ahead at most: pictures can be
#: large.
READERS = 4


@dataclass(frozen=True)
class Result(Generic[V]):
    """What became of one item: either `value` or `error`."""

    source: Any
    value: V | None = None
    error: Exception | None = None


def encoded(
    encode: Callable[[Sequence[Raster]], list[bytes]], items: Iterable[Any], readers: int
) -> Iterator[Result[bytes]]:
    """Files of pictures. items: what `Codec.encode` takes, or picture files as bytes, paths and URLs."""
    return _coded(encode, items, _own, _picture, lambda r: r.size[0] * r.size[1], readers)


def decoded(
    decode: Callable[[Sequence[bytes]], list[Image.Image]], items: Iterable[Any], readers: int
) -> Iterator[Result[Image.Image]]:
    """Pictures of files. items: bytes, or paths and URLs of .mci files."""
    return _coded(decode, items, _own_file, _file, _claimed, readers)


def _picture(item: Raster | bytes | str | PathLike[str]) -> Raster:
    if isinstance(item, bytes):
        return read_raster(item)
    if isinstance(item, str | PathLike):
        place = fspath(item)
        return read_raster(read_bytes(place) if "://" in place else place)
    return to_raster(item)


def _own(item: Any) -> Any:
    """Pictures in memory as they are now: for the next their owner may fill the same array or seek in the same file."""
    if isinstance(item, Image.Image):
        return to_raster(item)
    if isinstance(item, np.ndarray):
        return item.copy()
    if isinstance(item, bytearray | memoryview):  # of a picture file
        return bytes(item)
    return to_raster(item.clone()) if is_tensor(item) else item


def _own_file(item: Any) -> Any:
    """Bytes as they are now, as `_own`: a buffer may be filled again for the next."""
    return item if isinstance(item, bytes | str | PathLike) else bytes(memoryview(item))  # TypeError for what is none


def _file(item: bytes | str | PathLike[str]) -> bytes:
    return item if isinstance(item, bytes) else read_bytes(item)


def _claimed(data: bytes) -> int:
    """Pixels of a file's picture; 0 for what is no file, which decoding says."""
    try:
        header = container.unpack(data).header
    except FormatError:
        return 0
    return header.width * header.height


def _coded(
    code: Callable[[Sequence[T]], list[V]],
    items: Iterable[Any],
    take: Callable[[Any], Any],
    read: Callable[[Any], T],
    size: Callable[[T], int],
    readers: int,
) -> Iterator[Result[V]]:
    """Read ahead on threads while a micro-batch is coded on one more; results in the order of the items."""
    pool, coder = ThreadPoolExecutor(readers), ThreadPoolExecutor(1)
    try:
        work: Future[list[Result[V]]] | None = None
        for batch in _batches(_ahead(pool, take, read, items, 2 * readers), size):
            following = coder.submit(_code, code, batch)
            if work is not None:
                yield from work.result()
            work = following
        if work is not None:
            yield from work.result()
    finally:  # of an iteration that is given up, too
        pool.shutdown(cancel_futures=True)
        coder.shutdown(cancel_futures=True)


def _ahead(
    pool: ThreadPoolExecutor, take: Callable[[Any], Any], read: Callable[[Any], T], items: Iterable[Any], ahead: int
) -> Iterator[Result[T]]:
    """take: at once, before the next item is asked for; read: on a thread."""

    def guarded(work: Callable[[Any], V], item: Any, value: Any) -> Result[V]:
        try:
            return Result(item, work(value))
        except Exception as error:  # whatever a picture's reader raises belongs to its item
            return Result(item, error=error)

    def finished(taken: Result[Any]) -> Result[T]:
        return taken if taken.error is not None else guarded(read, taken.source, taken.value)

    waiting: deque[Future[Result[T]]] = deque()
    for item in items:
        waiting.append(pool.submit(finished, guarded(take, item, item)))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _batches(results: Iterator[Result[T]], size: Callable[[T], int]) -> Iterator[list[Result[T]]]:
    batch: list[Result[T]] = []
    total = 0
    for result in results:
        batch.append(result)
        total += 0 if result.value is None else size(result.value)
        if total >= BATCH_PIXELS or len(batch) >= BATCH_ITEMS:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def _code(code: Callable[[Sequence[T]], list[V]], batch: list[Result[T]]) -> list[Result[V]]:
    """One pass for all; if it fails, one for each, so that the error stays with its item."""
    good = [result.value for result in batch if result.value is not None]
    try:
        values = iter(code(good) if good else [])
        return [Result(r.source, None if r.value is None else next(values), r.error) for r in batch]
    except (CodecError, ValueError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_lack_of_memory(error):
            raise
        failure = error.with_traceback(None)  # whose frames hold all that was in work
    if len(batch) == 1:
        return [Result(batch[0].source, error=failure)]
    return [result for item in batch for result in _code(code, [item])]
