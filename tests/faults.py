"""kill -9 at random moments of encode, decode and runs over folders: nothing lost, nothing half written.

    python tests/faults.py --kills 500

Each trial starts the command line on a target that exists, kills it, and looks at every file: a source must be as it
was, a target the old content or the whole new one. What a kill leaves is at most one hidden temporary file per file
that was being written; they are counted and removed. Exit status 1 after any violation.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import click
import numpy as np
import torch
from PIL import Image
from tiny import TINY, lively

from mcodec import weights
from mcodec.cli import main as entry

OLD = b"what was there before"


def child(arguments: list[str], quiet: bool = True) -> int:
    """Forks; the child runs the command line and exits with its status. The parent has imported all it needs."""
    pid = os.fork()
    if pid:
        return pid
    try:
        if quiet:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
        status = entry.run(arguments)
    except BaseException:
        status = 99
    os._exit(status)


def finished(pid: int) -> int:
    """Exit status of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Command:
    """A command line with its sources, and the targets it writes."""

    def __init__(self, name: str, arguments: list[str], sources: list[Path], targets: list[Path]) -> None:
        self.name, self.arguments, self.targets = name, arguments, targets
        self.sources = {path: path.read_bytes() for path in sources}
        self.whole: dict[Path, bytes] = {}
        self.seconds = 0.0

    def complete(self) -> bool:
        """Runs to the end and keeps what it writes; False where the command does not exist."""
        began = time.monotonic()
        done = finished(child(self.arguments)) == 0
        self.seconds = time.monotonic() - began
        if done:
            self.whole = {path: path.read_bytes() for path in self.targets}
        return done

    def trial(self, generator: random.Random) -> Counter[str]:
        """Kills it after a random part of its time; what was found."""
        for path in self.targets:
            path.write_bytes(OLD)
        pid = child(self.arguments)
        time.sleep(generator.uniform(0, 1.2 * self.seconds))
        os.kill(pid, signal.SIGKILL)
        found = Counter({"killed" if finished(pid) < 0 else "finished before": 1})
        found["lost"] += sum(path.read_bytes() != data for path, data in self.sources.items() if path.exists())
        found["lost"] += sum(not path.exists() for path in (*self.sources, *self.targets))
        for path in self.targets:
            data = path.read_bytes() if path.exists() else b""
            found["old" if data == OLD else "new" if data == self.whole[path] else "half written"] += 1
        left = [path for folder in {path.parent for path in self.targets} for path in folder.glob(".*")]
        found["temporary files left"] += len(left)
        if len(left) > len(self.targets):
            found["too many temporary files"] += 1
        for path in left:
            path.unlink()
        return found


BROKEN = ("lost", "half written", "too many temporary files")


def commands(folder: Path) -> list[Command]:
    """The command lines under test, on a tiny model and small pictures."""
    model = folder / "tiny.safetensors"
    weights.save(lively(TINY), model, {})
    rng = np.random.default_rng(0)
    names = ["a", "b", "c"]
    for name in ("pictures", "coded", "again"):
        (folder / name).mkdir()
    pictures = [folder / "pictures" / f"{name}.png" for name in names]
    for path in pictures:
        Image.fromarray(rng.integers(0, 256, (120, 160, 3)).astype(np.uint8)).save(path)
    coded = [folder / "coded" / f"{name}.mci" for name in names]
    again = [folder / "again" / f"{name}.png" for name in names]
    single, back = folder / "single.mci", folder / "back.png"
    options = ["--force", "--device", "cpu", "--model", str(model)]
    out = [Command("encode", ["encode", str(pictures[0]), str(single), *options], pictures[:1], [single])]
    out.append(Command("encode --verify", [*out[0].arguments, "--verify"], pictures[:1], [single]))
    if not (out[0].complete() and out[1].complete()):
        raise RuntimeError("encoding fails")
    kept = folder / "kept.mci"
    kept.write_bytes(single.read_bytes())
    out.append(Command("decode", ["decode", str(kept), str(back), *options], [kept], [back]))
    if not out[2].complete():
        raise RuntimeError("decoding fails")
    arguments = ["encode", str(pictures[0].parent), str(coded[0].parent), *options]
    many = Command("encode a folder", arguments, pictures, coded)
    if many.complete():
        sources = [folder / "sources" / path.name for path in coded]
        sources[0].parent.mkdir()
        for source, path in zip(sources, coded, strict=True):
            source.write_bytes(path.read_bytes())
        arguments = ["decode", str(sources[0].parent), str(again[0].parent), *options]
        out += [many, Command("decode a folder", arguments, sources, again)]
        if not out[-1].complete():
            raise RuntimeError("decoding a folder fails")
    return out


def kill(count: int, seed: int, folder: Path) -> dict[str, Counter[str]]:
    """`count` kills in turn over the commands; what was found, by command."""
    generator = random.Random(seed)
    torch.set_num_threads(1)
    tested = commands(folder)
    found = {command.name: Counter[str]() for command in tested}
    for index in range(count):
        command = tested[index % len(tested)]
        found[command.name] += command.trial(generator)
    return found


@click.command(help=__doc__)
@click.option("--kills", type=int, default=500, show_default=True)
@click.option("--seed", type=int, default=0)
def main(kills: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = kill(kills, seed, Path(folder))
    for name, counts in found.items():
        click.echo(f"{name}: " + ", ".join(f"{n} {what}" for what, n in sorted(counts.items())))
    if any(counts[what] for counts in found.values() for what in BROKEN):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
