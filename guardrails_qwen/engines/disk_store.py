"""Verdicts on disk, for several processes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from guardrails_qwen.engines.verdict_store import require_limits
from guardrails_qwen.verdict import Verdict

logger = logging.getLogger("guardrails_qwen")


class DiskStore:
    """Verdicts in a folder that processes of one machine share; the oldest goes first.

    Needs `pip install 'guardrails-qwen[cache]'`. The folder is created for this user alone: who can
    write to it can forge verdicts. It has to be on a local disk, because SQLite's locks do not hold
    on network file systems.

    The folder is opened here, so that a wrong one is found at the start and not while judging.

    Args:
        folder: Where; used for nothing else.
        max_bytes: About how large it may grow, in bytes; one entry takes about 1 kB.
        ttl: How long a verdict is valid after it was put, in seconds; None is without end.

    Raises:
        ImportError: The library diskcache is not installed.
        OSError: The folder cannot be made or used, or everybody may write to it.
    """

    blocking = True

    def __init__(
        self,
        folder: str | Path,
        *,
        max_bytes: int = 256 * 1024 * 1024,
        ttl: float | None = 24 * 3600.0,
    ) -> None:
        require_limits(ttl=ttl, max_bytes=max_bytes)
        try:
            from guardrails_qwen.engines.text_disk import NotText, text_cache
        except ModuleNotFoundError as error:
            raise ImportError(
                f"a cache on disk needs {error.name}: pip install 'guardrails-qwen[cache]'"
            ) from error
        self.folder = _own_folder(Path(folder).expanduser().absolute())
        self.ttl = ttl
        self._unreadable = (NotText, ValueError, RecursionError)
        self._warned = False
        try:
            self._cache = text_cache(self.folder, max_bytes)
        except (sqlite3.Error, TypeError, ValueError, AttributeError, KeyError) as error:
            raise OSError(
                f"the verdict cache in {self.folder} cannot be opened ({type(error).__name__}): "
                "delete the folder, or name another"
            ) from error

    def __repr__(self) -> str:
        return f"DiskStore({str(self.folder)!r}, ttl={self.ttl})"

    def get(self, key: str) -> Verdict | None:
        """The verdict under a key; an entry that is not exactly what was put counts as none.

        Raises:
            Exception: The database failed.
        """
        try:
            entry = self._cache.get(key)
            return None if entry is None else _read(key, entry)
        except self._unreadable:
            self._warn()
            return None

    def put(self, key: str, verdict: Verdict) -> None:
        """Keep a verdict, in place of the oldest where there is no room.

        Raises:
            Exception: The database failed.
        """
        self._cache.set(key, _written(key, verdict), expire=self.ttl)

    def close(self) -> None:
        """Close this thread's connection; that of another closes when the thread ends."""
        self._cache.close()

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("unreadable entries in the verdict cache in %s are skipped", self.folder)


_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class _ScoresEntry(BaseModel):
    model_config = _STRICT
    severity: dict[str, float]
    category: dict[str, float]
    refusal: float | None


class _SpanEntry(BaseModel):
    model_config = _STRICT
    start: int
    end: int
    categories: list[str]


class _Entry(BaseModel):
    """`Verdict.to_dict()`, by the letter."""

    model_config = _STRICT
    severity: str
    categories: list[str]
    refusal: bool | None
    scores: _ScoresEntry | None
    spans: list[_SpanEntry]
    labels: list[str] = Field(default_factory=list[str])
    label_scores: dict[str, float] = Field(default_factory=dict[str, float])
    model: str
    fingerprint: str
    tokens: int | None
    seconds: float | None


_SEAL = hashlib.sha256().digest_size * 2
"""Characters of a seal."""


def _written(key: str, verdict: Verdict) -> str:
    """A verdict as text, sealed. It holds nothing of what was judged."""
    body = json.dumps(verdict.to_dict())
    return _seal(key, body) + body


def _read(key: str, entry: object) -> Verdict:
    """The inverse of `_written`.

    Raises:
        ValueError: It is not what was written under this key.
    """
    if not isinstance(entry, str):
        raise ValueError("no text")  # noqa: TRY004  one error for whatever a file may hold
    seal, body = entry[:_SEAL], entry[_SEAL:]
    if seal != _seal(key, body):
        raise ValueError("a broken seal")
    return Verdict.from_dict(_Entry.model_validate(json.loads(body)).model_dump())


def _seal(key: str, body: str) -> str:
    """Finds out what was cut, altered or moved to another key by accident. It has no secret."""
    return hashlib.sha256(f"{key}\n{body}".encode(errors="surrogatepass")).hexdigest()


def _own_folder(folder: Path) -> Path:
    """The folder, made for this user alone where there is none."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.name == "posix" and folder.stat().st_mode & 0o002:
        raise PermissionError(
            f"everybody may write to {folder}, and so forge verdicts: "
            "name a folder of your own, or take that right away with chmod o-w"
        )
    return folder
