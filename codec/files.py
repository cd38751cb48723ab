"""Writing files whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic(path: str | Path) -> Iterator[BinaryIO]:
    """A temporary file in the same folder, renamed to `path` at the end: never a half-written file.

    Raises OSError; after any exception the temporary file is removed and `path` is as it was.
    """
    path = Path(path)
    # Not tempfile: its mode 0600 is for secrets. The name is short, so any name the folder takes can be written.
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        with open(temporary, "x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: str | Path, data: bytes) -> None:
    """A file with this content, through `atomic`."""
    with atomic(path) as file:
        file.write(data)
