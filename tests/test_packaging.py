"""What `pip install .` ships is what the repository holds."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("codec", "kernels", "cli", "bench", "checkpoints")


def packages() -> dict[str, str]:
    """PACKAGES of setup.py, read without running the build."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "PACKAGES":
            found = ast.literal_eval(node.value)
            assert isinstance(found, dict)
            return found
    raise AssertionError("setup.py has no PACKAGES")


def test_every_folder_is_packaged() -> None:
    """A folder that setup.py does not name would be missing from the wheel, with no other sign."""
    found = [init.parent for top in FOLDERS for init in (ROOT / top).rglob("__init__.py")]
    assert sorted(packages().values()) == sorted(f.relative_to(ROOT).as_posix() for f in found)


def test_every_folder_with_code_has_an_init() -> None:
    folders = {p.parent for top in FOLDERS for p in (ROOT / top).rglob("*.py")}
    assert [f for f in folders if not (f / "__init__.py").exists()] == []


@pytest.mark.parametrize("name", packages())
def test_every_package_imports(name: str) -> None:
    command = [sys.executable, "-c", f"import {name}"]
    done = subprocess.run(command, cwd=ROOT.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="the tag is no part of the name there")
def test_the_compiled_coder_fits_every_python() -> None:
    """A wheel made with one Python is installed by those that follow."""
    coder = pytest.importorskip("mcodec.entropy._rans")
    assert ".abi3." in Path(coder.__file__).name


def test_typed() -> None:
    assert resources.files("mcodec").joinpath("py.typed").is_file()


def test_weights_ship_with_their_cards() -> None:
    names = {Path(f.name) for f in resources.files("mcodec.checkpoints").iterdir()}
    weights = {n.stem for n in names if n.suffix == ".safetensors"}
    assert "cascade" in weights
    assert weights <= {n.stem for n in names if n.suffix == ".json"}


def test_installed_version_is_this_one() -> None:
    from importlib.metadata import version

    match = re.search(r'"(.+)"', (ROOT / "codec" / "_version.py").read_text())
    assert match is not None
    assert version("mcodec") == match.group(1)
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{match.group(1)}]" in changelog or "## [Unreleased]" in changelog


@pytest.mark.parametrize("command", [["mcodec"], ["python", "-m", "mcodec.cli"]], ids=["script", "module"])
def test_version_runs(command: list[str]) -> None:
    program = Path(sys.executable).parent / command[0]
    done = subprocess.run([str(program), *command[1:], "--version"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("mcodec ")


def test_commands_of_the_readme_are_there() -> None:
    """With the options that it gives them."""
    import click

    from mcodec.cli import main as entry

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    commands = re.findall(r"(?:^|/|&& )mcodec (.*?)(?:&&|$)", blocks, re.MULTILINE)
    commands += re.findall(r"`mcodec\s([^`]+)`", text)
    assert len(commands) > 30
    for line in commands:
        command: click.Command = entry.cli
        for word in shlex.split(line, comments=True):
            if word.startswith("-") and word != "-":
                options = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
                assert word in options | {"--help"}, line
            elif isinstance(command, click.Group) and word != "COMMAND":
                assert word in command.commands, line
                command = command.commands[word]


def test_text_that_is_not_ascii_names_its_encoding() -> None:
    """On Windows the default is another, in which the README's frames cannot be read."""
    for name in ("setup.py", "bench/report/page.py", "cli/bench.py"):
        assert "read_text()" not in (ROOT / name).read_text(encoding="utf-8"), name
