"""The command line: parse, call, print. Heavy imports happen inside commands, so that `--help` answers at once."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from typing import Annotated

import typer

from jmt_fast.errors import JMTError

app = typer.Typer(
    name="jmt-fast",
    help="Continuous valence and arousal from talking-face video: predict, train, evaluate, verify.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_debug = False


def _version(value: bool) -> None:
    if value:
        from jmt_fast import __version__

        print(f"jmt-fast {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show who decodes each file and why, and the traceback behind an error.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    global _debug
    _debug = debug
    if debug:
        logging.basicConfig(format="debug: %(message)s")
        logging.getLogger("jmt_fast").setLevel(logging.DEBUG)


def _one_line_warning(message: Warning | str, category: type[Warning], *rest: object, **named: object) -> None:
    if issubclass(category, UserWarning):
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def main() -> None:
    """Entry point: turns errors with a known cause into one line on stderr and the exit code 1."""
    # importing registers the commands
    from jmt_fast.cli import bench, check, demo, export, predict, prepare, protocols, report, submit, train  # noqa: F401

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a path goes out with the bytes that it has
    warnings.showwarning = _one_line_warning  # type: ignore[assignment]
    try:
        app()
    except JMTError as error:
        if _debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as stop:
        if stop.code == 130:
            print("interrupted: what was finished is kept; the same command goes on from there", file=sys.stderr)
        raise
