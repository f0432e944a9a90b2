"""The command line: one command a file."""

from __future__ import annotations

import io
import logging
import sys
from typing import Annotated

import typer

import guardrails_qwen
from guardrails_qwen.cli.calibrate import calibrate
from guardrails_qwen.cli.check import check
from guardrails_qwen.cli.common import Exit
from guardrails_qwen.cli.watch import watch

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
app.command()(check)
app.command()(watch)
app.command()(calibrate)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Guardrails for LLM applications on the Qwen3Guard safety models."""
    if version:
        typer.echo(guardrails_qwen.__version__)
        raise typer.Exit


def main() -> None:
    """The entry point `guardrails-qwen`."""
    logging.getLogger("guardrails_qwen").addHandler(logging.NullHandler())  # it prints all itself
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except Exception as error:  # noqa: BLE001  a crash must not look like a decision
        sys.stderr.write(f"error: {type(error).__name__}\n")
        sys.exit(Exit.ENGINE_FAILURE)
