"""A diskcache that holds short texts and nothing else. Imported only where it is used."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, cast

import diskcache

_TIMEOUT = 1
"""How long to wait for a locked database, in seconds."""


class NotText(Exception):
    """A row that this program did not write: a pickle, a file, a number, another kind of key."""


class TextCache(Protocol):
    """What is used of `diskcache.Cache`."""

    def get(self, key: str) -> object:
        """The text, or None."""
        ...

    def set(self, key: str, value: str, expire: float | None = None) -> bool:
        """Keep a text, for `expire` seconds or without end."""
        ...

    def close(self) -> None:
        """Close the connection of this thread; the next call opens one."""
        ...


def text_cache(folder: Path, max_bytes: int) -> TextCache:
    """Open the cache in a folder; what settings it finds there do not count.

    Raises:
        sqlite3.Error: There is no database that could be used, or it stays locked.
    """
    return cast(
        "TextCache",
        diskcache.Cache(
            str(folder),
            timeout=_TIMEOUT,
            disk=TextDisk,
            **{**diskcache.DEFAULT_SETTINGS, "size_limit": max_bytes},
        ),
    )


class TextDisk(diskcache.Disk):
    """Keeps keys and values as text in the database itself, and refuses every other row.

    The library's own disks unpickle what a row says is a pickle, `JSONDisk` included, which is
    running code that somebody else may have put there; and they read and remove the files that a
    row names, wherever these are.
    """

    def put(self, key: object) -> tuple[str, bool]:
        """The key as the database holds it."""
        return _text(key), True

    def get(self, key: object, raw: object) -> str:
        """A key that the database holds."""
        if not raw:
            raise NotText("a key that is a pickle")
        return _text(key)

    def store(self, value: object, read: bool, key: object = None) -> tuple[int, int, None, str]:
        """Size beyond the row, mode, file and value of a row."""
        return 0, diskcache.core.MODE_RAW, None, _text(value)

    def fetch(self, mode: object, filename: object, value: object, read: bool) -> str:
        """The value of a row."""
        if mode != diskcache.core.MODE_RAW or filename is not None:
            raise NotText("a value that is a pickle or a file")
        return _text(value)

    def remove(self, file_path: object) -> None:
        """Nothing: no row of ours has a file, and what another's names is not ours to remove."""

    def filename(self, key: object = None, value: object = None) -> Any:
        """Never: no value goes to a file."""
        raise NotText("a value for a file")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise NotText(f"{type(value).__name__} where a text belongs")
    return value
