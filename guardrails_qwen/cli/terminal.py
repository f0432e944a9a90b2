"""Text from elsewhere on standard output: it cannot steer a terminal."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Mapping

import typer

from guardrails_qwen import Severity

Colour = str | None
"""One of the terminal's colours, or None for its own."""

COLOURS: Mapping[Severity | None, Colour] = {
    Severity.SAFE: None,
    Severity.CONTROVERSIAL: typer.colors.YELLOW,
    Severity.UNSAFE: typer.colors.RED,
    None: typer.colors.MAGENTA,
}
"""How what was judged is shown, and what was not."""

_JOINERS = frozenset("\u00ad\u061c\u200c\u200d\u200e\u200f\u2060\ufeff")
"""Invisible characters of ordinary text: they join and part letters, hyphens and emoji."""


def printable(text: str) -> str:
    """Text that cannot steer a terminal; a line break may be CR LF."""
    return "\r\n".join(map(_printable, text.split("\r\n")))


def write_json(data: Mapping[str, object]) -> None:
    """An object on a line of its own."""
    line = json.dumps(data, ensure_ascii=False)
    typer.echo("".join(c if _harmless(c) else json.dumps(c)[1:-1] for c in line))


class Output:
    """Standard output, written piece by piece; every piece is there at once."""

    def __init__(self, *, coloured: bool) -> None:
        self._coloured = coloured
        self._carried = ""
        """A carriage return that may become a line break."""
        self._inside_line = False

    def write(self, text: str, colour: Colour = None, *, bold: bool = False) -> None:
        """More text.

        Raises:
            BrokenPipeError: Nobody reads.
        """
        text = self._carried + text
        self._carried = "\r" if text.endswith("\r") else ""
        self._put(text.removesuffix("\r") if self._carried else text, colour, bold=bold)

    def end_line(self) -> None:
        """Nothing more comes; on a terminal, what else is said begins on a line of its own."""
        carried, self._carried = self._carried, ""
        self._put(carried)
        if self._inside_line and sys.stdout.isatty():
            self._put("\n")

    def _put(self, text: str, colour: Colour = None, *, bold: bool = False) -> None:
        if not text:
            return
        shown = printable(text)
        if self._coloured and (colour or bold):
            shown = typer.style(shown, fg=colour, bold=bold or None)
        typer.echo(shown, nl=False, color=self._coloured)
        self._inside_line = not text.endswith("\n")


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if _harmless(c) else "\ufffd" for c in text)


def _harmless(character: str) -> bool:
    if character.isprintable() or character in "\n\t" or character in _JOINERS:
        return True
    return unicodedata.category(character) == "Zs"
