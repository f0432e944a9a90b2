"""What a guard has decided before, so that a conversation is not judged anew at each turn."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from threading import Lock

from typing_extensions import Self

from guardrails_qwen import Decision, Guard, Message

_FIRST = b"first"


class Known:
    """Digests of messages, and whether they were allowed. Copies share them.

    A digest is over a message, the words before it, and the guard's policy and model. So a reply is
    judged again behind another prompt, and everything is by another policy; a conversation of which
    the beginning was cut off is not. No text is kept but what a redaction has left.

    Args:
        most: How many are kept; those go first that were not looked for the longest.
    """

    def __init__(self, most: int = 10_000) -> None:
        self._most = most
        self._digests = OrderedDict[bytes, Decision | None]()
        self._lock = Lock()

    def __contains__(self, digest: bytes) -> bool:
        """Whether this was allowed."""
        with self._lock:
            return self._looked_for(digest) and self._digests[digest] is None

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[type[Self], tuple[int]]:
        """In another process nothing is known."""
        return type(self), (self._most,)

    def refused(self, digest: bytes) -> Decision | None:
        """What was decided about something that was not allowed; None: nothing, or it was."""
        with self._lock:
            return self._digests[digest] if self._looked_for(digest) else None

    def add(self, digest: bytes, refused: Decision | None = None) -> None:
        """This was allowed, or refused."""
        with self._lock:
            self._digests[digest] = refused
            self._digests.move_to_end(digest)
            while len(self._digests) > self._most:
                self._digests.popitem(last=False)

    def _looked_for(self, digest: bytes) -> bool:
        if digest not in self._digests:
            return False
        self._digests.move_to_end(digest)
        return True


def digests_of(messages: Sequence[Message], guard: Guard) -> list[bytes]:
    """The digest of each message of a conversation."""
    marks = [_mark(message) for message in messages]
    before = [_mark(replace(message, images=())) for message in messages]
    fingerprint = sha256(guard.fingerprint.encode()).digest()
    return [
        sha256(fingerprint + behind + mark).digest()
        for behind, mark in zip([_FIRST, *before], marks, strict=False)
    ]


def _mark(message: Message) -> bytes:
    calls = [part for call in message.tool_calls for part in (call.name, call.arguments)]
    parts = [message.role.value, message.name or "", message.text, *calls, *message.images]
    return sha256("".join(f"{len(part)}:{part}" for part in parts).encode()).digest()
