"""Many files in one run: which, where to, in what order, and what came of each."""

from __future__ import annotations

import glob
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from mcodec.cli.options import STREAM, Folder, check_apart, reason
from mcodec.errors import CodecError

Plan = list[tuple[Path, Path]]
#: From source and target to what there is to report; FileExistsError where the target is there and must stay.
Work = Callable[[Path, Path], dict[str, Any]]
#: What a file gives, why it failed, or None where its target is there.
Outcome = dict[str, Any] | str | None
#: One picture is in work per job: more would only take memory.
DEFAULT_JOBS = 4


def wanted(paths: tuple[Path, ...]) -> bool:
    """Whether the paths name more than one file and where it goes."""
    return len(paths) > 2 or paths[0].is_dir() or _is_pattern(paths[0]) or isinstance(paths[0], Folder)


def pictures(path: Path) -> bool:
    """Whether Pillow reads such a file, by its suffix."""
    from PIL import Image

    return Image.registered_extensions().get(path.suffix.lower()) in Image.OPEN


def coded(path: Path) -> bool:
    """Whether it is a .mci file, by its suffix."""
    return path.suffix.lower() == ".mci"


def plan(paths: tuple[Path, ...], suffix: str, choose: Callable[[Path], bool], recursive: bool) -> Plan:
    """(source, target) of every file. A folder's files keep their place below it."""
    if STREAM in paths:
        raise click.UsageError("- stands for a single file.")
    if len(paths) < 2:
        if _is_pattern(paths[0]):
            _matches(paths[0])
        raise click.UsageError("a folder to write into is needed.")
    *sources, out = paths
    if out.exists() and not out.is_dir():
        raise CodecError(f"{out} is no folder; several files go into the folder that is named last")
    found: list[tuple[Path, Path]] = []  # source, place below the folder
    for source in sources:
        if source.is_dir():
            inside = list(files(source, recursive))
            chosen = [path for path in inside if choose(path)]
            if not chosen:
                hint = "" if recursive else "; --recursive looks below it"
                raise CodecError(f"{source} holds no file to work on{hint}")
            if other := len(inside) - len(chosen):
                note = f"{source}: {other} of {len(inside)} files passed over by their names"
                click.echo(f"mcodec: note: {note}", err=True)
            found += [(path, path.relative_to(source)) for path in chosen]
        elif _is_pattern(source):
            found += [(path, Path(path.name)) for path in _matches(source)]
        else:
            found.append((source, Path(source.name)))
    # a.jpg and a.png cannot both become a.mci: they keep their suffix
    taken = Counter(place.with_suffix(suffix) for _, place in found)
    targets = []
    for _, place in found:
        short = place.with_suffix(suffix)
        targets.append(short if taken[short] == 1 else place.with_name(place.name + suffix))
    if twice := [str(target) for target, count in Counter(targets).items() if count > 1]:
        raise CodecError(f"several files would become {twice[0]}")
    pairs = [(source, out / target) for (source, _), target in zip(found, targets, strict=True)]
    for source, target in pairs:
        check_apart(source, target)
    return pairs


def run(
    plan: Plan,
    prepare: Callable[[], Work],
    jobs: int | None,
    as_json: bool,
    force: bool,
) -> int:
    """Work through a plan; a file that fails is reported and the rest goes on. Returns the exit status."""
    todo: Plan = []
    skipped: Plan = []
    for source, target in plan:
        (todo if force or not target.exists() else skipped).append((source, target))
    counts = Counter(skipped=len(skipped), done=0, failed=0)
    if as_json:
        for source, target in skipped:
            click.echo(line(source, target, "skipped", {}))
    console = Console(stderr=True, highlight=False)
    with Progress(console=console, disable=not console.is_terminal or not todo) as bar:
        task = bar.add_task("files", total=len(todo))
        for source, target, result in _results(todo, prepare, jobs, force) if todo else ():
            bar.advance(task)
            status = "skipped" if result is None else "failed" if isinstance(result, str) else "done"
            counts[status] += 1
            report: dict[str, Any] = {}
            if isinstance(result, str):
                click.echo(f"mcodec: error: {' '.join(result.split())}", err=True)
                report = {"error": result}
            elif result is not None:
                report = {key: value for key, value in result.items() if key != "text"}
                if not as_json:
                    tell(source, report)
            if as_json:
                click.echo(line(source, target, status, report))
    click.echo(", ".join(f"{counts[name]} {name}" for name in ("done", "skipped", "failed")), err=as_json)
    return 1 if counts["failed"] else 0


def tell(source: Path, report: dict[str, Any]) -> None:
    """Say what of a picture its file does not keep."""
    for note in report.get("notes", ()):
        click.echo(f"mcodec: note: {source}: {note}", err=True)


def named(text: str, source: Path | str) -> str:
    """Why it failed, with the file that it failed on."""
    return text if str(source) in text else f"{source}: {text}"


def line(source: Path, target: Path | None, status: str, report: dict[str, Any]) -> str:
    """What came of a file, as one line of JSON."""
    return json.dumps({"source": str(source), "target": str(target), "status": status, **report})


def _results(
    todo: Plan, prepare: Callable[[], Work], jobs: int | None, force: bool
) -> Iterator[tuple[Path, Path, Outcome]]:
    import torch

    work = prepare()
    cores = os.cpu_count() or 1
    jobs = jobs or min(DEFAULT_JOBS, cores, len(todo))
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, cores // jobs))
    pool = ThreadPoolExecutor(jobs)
    waiting: dict[Future[Outcome], tuple[Path, Path]] = {}
    queue = iter(todo)
    try:
        while True:
            for source, target in queue:
                waiting[pool.submit(_guarded, work, source, target, force)] = source, target
                if len(waiting) >= 2 * jobs:
                    break
            if not waiting:
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield *waiting.pop(future), future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)


def _guarded(work: Work, source: Path, target: Path, force: bool) -> Outcome:
    if target.exists() and not force:  # by now: a run may take hours, and others may write there
        return None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            return work(source, target)
        except FileExistsError:  # or since the work on it began
            return None
    except Exception as error:
        if (text := reason(error)) is None:
            raise
        return named(text, source)


def _is_pattern(path: Path) -> bool:
    return any(mark in str(path) for mark in "*?[") and not path.exists()


def _matches(pattern: Path) -> list[Path]:
    matches = [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True)) if Path(name).is_file()]
    if not matches:
        raise CodecError(f"no file matches {pattern}")
    return matches


def _refuse(error: OSError) -> None:
    raise error


def files(folder: Path, recursive: bool) -> Iterator[Path]:
    """Visible files, in order of their names; OSError for a folder that cannot be read."""
    for where, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        for path in (Path(where, name) for name in folders):
            if path.is_symlink():  # it may lead back
                click.echo(f"mcodec: note: {path}: a link to a folder is not followed", err=True)
        yield from (Path(where, name) for name in sorted(names) if not name.startswith("."))
