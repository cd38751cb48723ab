"""Writing files whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write through a temporary file in the same folder, then rename: never a half-written file.

    Raises OSError; the temporary file is removed.
    """
    path = Path(path)
    # Not tempfile: its mode 0600 is for secrets. The name is short, so any name the folder takes can be written.
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
