"""The `mms` command, put together."""

from __future__ import annotations

import errno
import io
import os
import sys

import typer

from features.errors import UserError
from mms_apps.cli.attributes import attributes
from mms_apps.cli.comparing import compare, concepts, drift
from mms_apps.cli.converting import convert
from mms_apps.cli.explore import explore
from mms_apps.cli.importing import import_store
from mms_apps.cli.robustness import robustness
from mms_apps.cli.run import run
from mms_apps.cli.stages import extract, fit, report, score
from mms_apps.cli.steer import steer
from mms_apps.cli.train_encoder import train_encoder
from mms_apps.cli.train_generator import train_generator

# Threads that wait for work sleep: spinning starves what else runs on the machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    name="mms",
    help="Which features of a CLIP-like model are driven by images, which by text, which by both.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

INTERRUPTED = 130

for command in (run, extract, fit, score, report, compare, drift, concepts, explore):
    app.command()(command)
app.command("import")(import_store)
app.command()(convert)
app.command("train-encoder")(train_encoder)
app.command()(robustness)
app.command()(steer)
app.command("train-generator")(train_generator)
app.add_typer(attributes)


ADVICE = {
    errno.EEXIST: "; name another folder",
    errno.ENOTDIR: "; name another folder",
    errno.ENOSPC: "; free some of it, and run the same command again",
}
"""What to do about errors of the system."""


def main() -> None:
    """Run the command line; a user's mistake is one line and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # which may not know all characters of captions
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except UserError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        typer.echo(f"Error: {where}{error.strerror}{ADVICE.get(error.errno or 0, '')}", err=True)
        sys.exit(2)
    except SystemExit as stopped:  # typer turns a KeyboardInterrupt into this exit code
        if stopped.code == INTERRUPTED:
            typer.echo("Interrupted; run the same command again to go on.", err=True)
        raise
