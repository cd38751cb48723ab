"""Entry point: the command group, and how failures reach the user.

Every failure the user can cause is one line on standard error, ``mcodec: error: ...``. Exit status: 0 done,
1 failed, 2 wrong usage, 130 interrupted. Torch is imported inside the commands that need it, so that help
and `info` are quick.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn, TextIO

import click

from mcodec.cli.bench import bench
from mcodec.cli.coding import decode, encode
from mcodec.cli.options import reason
from mcodec.cli.show import info, models, version
from mcodec.cli.train import experiment, export, train
from mcodec.cli.verify import verify

EPILOG = """\b
Examples:
  mcodec encode photo.jpg              writes photo.mci
  mcodec encode photo.jpg -q 80 big.mci
  mcodec decode photo.mci              writes photo.png
  mcodec info photo.mci
  mcodec verify --deep *.mci           checks that files are whole
"""


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        click.echo(version())
        context.exit()


@click.group(
    epilog=EPILOG,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print package, default weights and backends.",
)
@click.pass_context
def cli(context: click.Context) -> None:
    """Learned image codec: photograph in, small .mci file out, picture back."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (encode, decode, info, verify, models, train, export, experiment, bench):
    cli.add_command(command)


def _fail(message: str, status: int) -> int:
    click.echo("mcodec: error: " + " ".join(message.split()), err=True)
    return status


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    click.echo("mcodec: warning: " + " ".join(str(message).split()), err=True)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (default: ``sys.argv``) and return its exit status."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            status = cli.main(args=arguments, prog_name="mcodec", standalone_mode=False)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except Exception as error:
        if (text := reason(error)) is None:
            raise
        return _fail(text, 1)
    return status if isinstance(status, int) else 0


def main() -> NoReturn:
    """Console entry point."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be text, nor fit a code page of Windows
        sys.stdout.reconfigure(errors="surrogateescape" if os.name == "posix" else "backslashreplace")
    sys.exit(run())
