"""Many files in one run: which, where to, in what order, and what came of each."""

from __future__ import annotations

import errno
import functools
import glob
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import Progress

from mcodec.cli.options import STREAM, Folder, check_apart, reason
from mcodec.errors import CodecError

Item = TypeVar("Item")
Found = TypeVar("Found")
Plan = list[tuple[Path, Path]]
#: From source and target to what there is to report; FileExistsError where the target is there and must stay.
Work = Callable[[Path, Path], dict[str, Any]]
#: The work, made ready once, given how many files are worked on at a time.
Prepare = Callable[[int], Work]
#: What a file gives, why it failed, or None where its target is there.
Outcome = dict[str, Any] | str | None
#: One picture is in work per job: more would only take memory.
DEFAULT_JOBS = 4
#: So many suffixes of files that are passed over are named.
KINDS = 8
#: What the files that follow would meet as well, each after it has been coded in vain.
HOPELESS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def wanted(paths: tuple[Path, ...]) -> bool:
    """Whether the paths name more than one file and where it goes."""
    return len(paths) > 2 or paths[0].is_dir() or _is_pattern(paths[0]) or isinstance(paths[0], Folder)


def pictures(path: Path) -> bool:
    """Whether Pillow reads such a file, by its suffix."""
    from PIL import Image

    from mcodec.image import register

    register()
    return Image.registered_extensions().get(path.suffix.lower()) in Image.OPEN


def coded(path: Path) -> bool:
    """Whether it is a .mci file, by its suffix."""
    return path.suffix.lower() == ".mci"


def plan(
    paths: tuple[Path, ...],
    suffix: str,
    choose: Callable[[Path], bool],
    recursive: bool,
    base: Path | None = None,
) -> Plan:
    """(source, target) of every file. A folder's files keep their place below it.

    base: every file keeps its place below this folder, and every picture its suffix: targets are then the same whatever
    else a run takes, so that what is skipped as done is this picture and no namesake of another run.
    """
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
            chosen, others = [], Counter[str]()
            for path in files(source, recursive):
                if choose(path):
                    chosen.append(path)
                else:
                    others[path.suffix.lower() or path.name] += 1
            if not chosen:
                hint = "" if recursive else "; --recursive looks below it"
                raise CodecError(f"{source} holds no file to work on{hint}")
            if count := others.total():
                kinds = ", ".join(f"{number} {kind}" for kind, number in others.most_common(KINDS))
                note = f"{source}: {count} of {count + len(chosen)} files passed over by their names ({kinds})"
                click.echo(f"mcodec: note: {note}", err=True)
            found += [(path, path.relative_to(source)) for path in chosen]
        elif _is_pattern(source):
            found += [(path, Path(path.name)) for path in _matches(source)]
        else:
            found.append((source, Path(source.name)))
    if base is not None:
        found = [(path, _below(path, base)) for path, _ in found]
    # a.jpg and a.png cannot both become a.mci: they keep their suffix
    taken = Counter(place.with_suffix(suffix) for _, place in found)
    targets = []
    for _, place in found:
        short = place.with_suffix(suffix)
        alone = taken[short] == 1 if base is None else coded(place)
        targets.append(short if alone else place.with_name(place.name + suffix))
    folded: Callable[[str], str] = str.casefold if _ignores_case(out) else str
    if twice := [name for name, count in Counter(folded(str(target)) for target in targets).items() if count > 1]:
        raise CodecError(f"several files would become {twice[0]}")
    pairs = [(source, out / target) for (source, _), target in zip(found, targets, strict=True)]
    for source, target in pairs:
        check_apart(source, target)
    return pairs


def _below(path: Path, base: Path) -> Path:
    try:
        place = Path(os.path.abspath(path)).relative_to(os.path.abspath(base))  # links stay
        if place.name:
            return place
    except ValueError:
        pass
    raise CodecError(f"{path} is not below {base}")


def run(
    plan: Plan,
    prepare: Prepare,
    jobs: int | None,
    as_json: bool,
    force: bool,
) -> int:
    """Work through a plan; a file that fails is reported and the rest goes on. Returns the exit status."""
    todo: Plan = []
    skipped: Plan = []  # not Path.exists, which for a name that is too long raises what would end the run
    for source, target in plan:
        (todo if force or not os.path.exists(target) else skipped).append((source, target))
    counts = Counter(skipped=len(skipped), done=0, failed=0)
    if as_json:
        for source, target in skipped:
            click.echo(line(source, target, "skipped", {}))
    jobs = jobs or max(1, min(DEFAULT_JOBS, cores(), len(todo)))
    console = Console(stderr=True, highlight=False)
    bar = Progress(console=console, disable=not console.is_terminal or not todo)
    with bar, shared_threads(jobs) if todo else nullcontext():  # where there is nothing to do, nothing is loaded
        task = bar.add_task("files", total=len(todo))
        results = each(todo, functools.partial(_guarded, prepare(jobs), force), jobs) if todo else ()
        for (source, target), result in results:
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


def each(items: Iterable[Item], work: Callable[[Item], Found], jobs: int) -> Iterator[tuple[Item, Found]]:
    """What `work` makes of items, so many at a time, as they are done; few are drawn ahead."""
    if jobs == 1:  # on this thread, where Ctrl-C ends what is in work
        for item in items:
            yield item, work(item)
        return
    pool = ThreadPoolExecutor(jobs)
    waiting: dict[Future[Found], Item] = {}
    failed: Exception | None = None
    queue = iter(items)
    try:
        while True:
            try:
                for item in queue:
                    waiting[pool.submit(work, item)] = item
                    if len(waiting) >= 2 * jobs:
                        break
            except Exception as error:  # of the items: what was drawn before is reported first
                failed = error
            if not waiting:
                if failed is not None:
                    raise failed
                return
            done = wait(waiting, return_when=FIRST_COMPLETED).done
            for future in [one for one in waiting if one in done]:
                yield waiting.pop(future), future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def shared_threads(jobs: int) -> Iterator[None]:
    """Each job has its part of the CPUs for torch, or OMP_NUM_THREADS where the user says so."""
    import torch

    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores() // jobs))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cores() -> int:
    """Those that this process may use: under a batch system fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _guarded(work: Work, force: bool, files: tuple[Path, Path]) -> Outcome:
    source, target = files
    if os.path.exists(target) and not force:  # by now: a run may take hours, and others may write there
        return None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            return work(source, target)
        except FileExistsError:  # or since the work on it began
            return None
    except Exception as error:
        if (text := reason(error)) is None:
            error.add_note(f"while working on {source}")
            raise
        text = named(text, source)
        if any(isinstance(e, OSError) and e.errno in HOPELESS for e in (error, error.__cause__)):
            raise CodecError(f"{text}; the run ends here, and the same command goes on with what is left") from error
        return text


def _is_pattern(path: Path) -> bool:
    return any(mark in str(path) for mark in "*?[") and not path.exists()


def _ignores_case(folder: Path) -> bool:
    """Whether names that differ in case alone are one file in a folder, as far as what is there tells."""
    folder = Path(os.path.realpath(folder))
    there = next((path for path in (folder, *folder.parents) if path.is_dir()), folder)
    with suppress(OSError):
        for path in (*islice(there.iterdir(), 64), there):
            if path.name != path.name.swapcase():
                other = path.with_name(path.name.swapcase())
                return other.exists() and other.samefile(path)
    return False


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
