"""Writes the corpus of files, `corpus/files`: what the tiny model makes of a few pictures. Existing files stay."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fuzz.bulk import seeds

FOLDER = Path(__file__).parent / "corpus" / "files"


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for seed in seeds()[1]:
        (FOLDER / hashlib.sha256(seed.data).hexdigest()[:16]).write_bytes(seed.data)


if __name__ == "__main__":
    main()
