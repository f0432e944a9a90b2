"""Standard input as text, as soon as it comes."""

from __future__ import annotations

import codecs
import os
import select
from collections.abc import Generator

_INPUT = 0
_MOST = 4096
"""Bytes read at once, so that what comes fast is shown while the rest is judged."""


class InputError(ValueError):
    """Standard input holds no text; the message says where."""


def require_input() -> None:
    """Look whether there is a standard input.

    Raises:
        InputError: It is closed.
    """
    try:
        os.fstat(_INPUT)
    except OSError:
        raise InputError("there is no standard input: it is closed") from None


def pieces() -> Generator[str]:
    """What arrives, without waiting for the end or for a line.

    Closing this closes standard input, so that whoever writes to it stops. Where bytes are no text,
    what comes before them is yielded first.

    Raises:
        InputError: They are not UTF-8, and the message says where; or they cannot be read.
    """
    text = Utf8()
    try:
        while data := _read():
            yield from text.feed(data)
        yield from text.feed(b"", final=True)
    finally:
        _close()


class Utf8:
    """Bytes that were cut anywhere, as text."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._done = 0
        """Bytes before those that wait for the rest of their character."""

    def feed(self, data: bytes, *, final: bool = False) -> Generator[str]:
        """The characters that are complete now, if there are any.

        Raises:
            InputError: They are not UTF-8.
        """
        waiting = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(data, final)
        except UnicodeDecodeError as error:
            sound, position = error.object[: error.start], self._done + error.start
        else:
            self._done += waiting + len(data) - len(self._decoder.getstate()[0])
            if text:
                yield text
            return
        if sound:
            yield sound.decode()
        raise InputError(f"standard input is not UTF-8 at byte {position}")


def _read() -> bytes:
    while True:
        try:
            return os.read(_INPUT, _MOST)
        except BlockingIOError:  # whoever shares it made it so
            select.select([_INPUT], [], [])
        except OSError as error:
            raise InputError(f"standard input cannot be read: {error.strerror}") from error


def _close() -> None:
    """The number stays taken, so that no other file gets it."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, _INPUT)
    os.close(nothing)
