"""The package against the oldest and the newest of what it stands on, each in a fresh environment.

    python tests/matrix.py --python python3.11 --python python3.12 --tests "tests/test_api.py tests/test_entropy.py"

Each row installs the repository with its pins, without what only the benchmark needs, runs the tests and removes the
environment. A row whose packages cannot be had is reported as such, not as passed. Interpreters are names or paths.
Where torch's default build is too large, name an index of CPU builds:
PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu. Exit status 1 unless every row passed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
#: Oldest and newest that setup.py admits; "" is the newest that pip finds.
PINS = {
    "oldest": {"torch": "==2.11.*", "numpy": "==1.26.*", "pillow": "==11.0.*"},
    "oldest torch": {"torch": "==2.11.*", "numpy": ">=2", "pillow": ""},
    "oldest numpy and Pillow": {"torch": "", "numpy": "==1.26.*", "pillow": "==11.0.*"},
    "newest": {"torch": "", "numpy": ">=2", "pillow": ""},
}
TESTED = ("golden", "container", "image", "api", "entropy", "verify", "encode_verify", "cli")
TESTS = " ".join(f"tests/test_{name}.py" for name in TESTED)


@dataclass
class Row:
    """One environment and what came of it."""

    python: str
    pins: str
    outcome: str
    versions: str = ""
    log: str = ""

    @property
    def passed(self) -> bool:
        return self.outcome.startswith("passed")


def run(command: list[str], log: Path, cwd: Path = ROOT) -> bool:
    """Whether a command succeeded; what it says is appended to the log."""
    with open(log, "a") as out:
        return subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, cwd=cwd).returncode == 0


def row_of(python: str, name: str, pins: dict[str, str], tests: str, folder: Path, override: dict[str, str]) -> Row:
    """One row: environment, installation, tests."""
    log = folder / f"{Path(python).name}-{name.replace(' ', '-')}.log"
    wanted = [f"{package}{override.get(package, version)}" for package, version in pins.items()]
    if shutil.which(python) is None:
        return Row(python, name, "no such Python")
    with tempfile.TemporaryDirectory(dir=folder) as environment:
        run([python, "-m", "venv", environment], log)
        program = f"{environment}/bin/python"
        if not run([program, "-m", "pip", "install", "-q", *wanted, "pytest", "hypothesis", f"{ROOT}[images]"], log):
            return Row(python, name, "not installable", log=str(log))
        command = [program, "-m", "pip", "list", "--format=json"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        versions = {p["name"].lower(): p["version"] for p in json.loads(listed)}
        shown = ", ".join(f"{package} {versions[package]}" for package in (*pins, "triton") if package in versions)
        passed = run([f"{environment}/bin/pytest", "-q", *tests.split()], log)
    last = log.read_text().splitlines()[-1]
    return Row(python, name, f"{'passed' if passed else 'FAILED'}: {last}", shown, str(log))


@click.command(help=__doc__)
@click.option("--python", "pythons", multiple=True, default=("python3.11", "python3.12"), show_default=True)
@click.option("--row", "rows", multiple=True, type=click.Choice(list(PINS)), help="Only these. [default: all]")
@click.option("--pin", "override", multiple=True, metavar="NAME==VERSION", help="Replaces a pin of every row.")
@click.option("--tests", default=TESTS, help="Test files to run.")
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), help="Folder for the logs.")
def main(
    pythons: tuple[str, ...], rows: tuple[str, ...], override: tuple[str, ...], tests: str, keep: Path | None
) -> None:
    pins = {name: "==" + version for name, _, version in (item.partition("==") for item in override)}
    folder = keep or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    failed = False
    click.echo("| Python | pins | versions | outcome |\n|---|---|---|---|")
    for python in pythons:
        for name in rows or PINS:
            row = row_of(python, name, PINS[name], tests, folder, pins)
            failed = failed or not row.passed
            click.echo(f"| {row.python} | {row.pins} | {row.versions} | {row.outcome} |")
            if not row.passed:
                click.echo(f"see {row.log}", err=True)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
