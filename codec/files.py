"""Files: read from a path or URL, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Any, BinaryIO

from mcodec.errors import CodecError


def read_bytes(source: str | PathLike[str]) -> bytes:
    """The content of a path or, through fsspec, of a URL. Raises OSError; CodecError where fsspec is missing."""
    place = fspath(source)
    if "://" not in place:
        with open(place, "rb") as file:
            return file.read()
    try:
        import fsspec
    except ImportError as error:
        raise CodecError("URLs need fsspec: pip install '.[url]'") from error
    with fsspec.open(place, "rb") as file:
        data: bytes = file.read()
    return data


@contextmanager
def atomic(path: str | Path, replace: bool = True) -> Iterator[BinaryIO]:
    """A temporary file in the same folder, renamed to `path` at the end: never a half-written file.

    A link stays one: the file that it names is written. Raises OSError, also where `path` is no file but a device or
    pipe; after any exception the temporary file is gone and `path` is as it was. replace: False for a FileExistsError
    where there is a file by then, from whomever.
    """
    path = Path(os.path.realpath(path))  # not Path.resolve, which before Python 3.13 has a RuntimeError for a loop
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    # Not tempfile: its mode 0600 is for secrets. The name is short, so any name the folder takes can be written.
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        with _open(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if unnamed := os.fstat(file.fileno()).st_nlink == 0:
                # src_dir_fd makes this linkat, which follows the link to the file itself; see open(2), O_TMPFILE
                _link(f"/proc/self/fd/{file.fileno()}", temporary if replace else path, src_dir_fd=file.fileno())
        if replace:
            os.replace(temporary, path)
        elif not unnamed:
            _rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_bytes(
    path: str | Path, data: bytes, check: Callable[[bytes], None] | None = None, replace: bool = True
) -> None:
    """A file with this content, through `atomic`.

    check: gets what the file holds, read back; if it raises, `path` stays as it was.
    """
    with atomic(path, replace) as file:
        file.write(data)
        if check is not None:
            file.seek(0)
            check(file.read())


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One line of JSON each at the end of a file, which is made where there is none. ValueError for NaN."""
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(text)


def _link(source: str | Path, path: Path, **more: Any) -> None:
    """Another name for a file; FileExistsError where there is one of this name."""
    try:
        os.link(source, path, **more)
    except FileExistsError as error:
        raise FileExistsError(error.errno, error.strerror, str(path)) from error


def _rename(temporary: Path, path: Path) -> None:
    """To a name that no file has; FileExistsError where one has it.

    Of two that come at once as well, but for file systems without links: there the later one may win.
    """
    try:
        _link(temporary, path)
    except FileExistsError:
        raise
    except OSError as error:  # to make the name first would leave an empty file behind where the process is killed
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        os.rename(temporary, path)  # which replaces nothing on Windows
    else:
        temporary.unlink()


def _open(temporary: Path) -> BinaryIO:
    """A new file, without a name where the system has such: a process that is killed then leaves nothing behind."""
    if hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # not on every file system; other errors come again below
            return open(os.open(temporary.parent, os.O_TMPFILE | os.O_RDWR, 0o666), "w+b")
    return open(temporary, "x+b")


def _sync_folder(path: Path) -> None:
    """Makes a rename outlive a power failure, on systems that can open a folder."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
